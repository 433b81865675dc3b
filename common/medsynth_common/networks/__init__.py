"""The three networks: label->image generator, PatchGAN critic, tumour segmenter."""

from medsynth_common.networks.build import (
    Network,
    build_critic,
    build_segmenter,
    load_network,
)
from medsynth_common.networks.generator import Generator
from medsynth_common.networks.settings import PRESETS, NetworkSettings

__all__ = [
    "PRESETS",
    "Generator",
    "Network",
    "NetworkSettings",
    "build_critic",
    "build_segmenter",
    "load_network",
]
