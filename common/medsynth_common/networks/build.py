"""The critic and the segmenter, as MONAI builds them, in a form private gradients can pass.

No batch normalisation (it mixes patients), no spectral normalisation (it hides a buffer), no
running statistics. Instance normalisation keeps every patient apart. MONAI takes a second to load
and is loaded when a network is built: a node or a command that only reads settings does not wait.
"""

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from medsynth_common.labels import CONTRASTS, SEGMENTER_CLASSES, TISSUES
from medsynth_common.networks.any_grid import AnyGrid
from medsynth_common.networks.settings import NetworkSettings

Network = TypeVar("Network", bound=nn.Module)


def load_network(
    build: Callable[[NetworkSettings], Network],
    settings: NetworkSettings,
    weights: Mapping[str, Tensor],
    *,
    device: torch.device,
) -> Network:
    """Build a network on `device` with copies of these weights, and draw none first.

    Raises RuntimeError when they are not the network's: every name, every shape.
    """
    network: Network = copy.deepcopy(_skeleton(build, settings))
    copies = {name: tensor.to(device, copy=True) for name, tensor in weights.items()}
    network.load_state_dict(copies, assign=True)
    return network


@lru_cache(maxsize=8)  # a plan comes every round, and MONAI takes longer to build than to copy
def _skeleton(build: Callable[[NetworkSettings], nn.Module], settings: NetworkSettings) -> Any:
    """A network without weights."""
    with torch.device("meta"):
        return build(settings)


def build_critic(settings: NetworkSettings) -> nn.Module:
    """Build a PatchGAN on (label, image) pairs (Isola et al. 2017).

    Takes (n, len(TISSUES) + 4, *grid); returns a list of feature maps, the last one the logits.
    """
    from monai.networks.nets import PatchDiscriminator

    critic: nn.Module = PatchDiscriminator(
        spatial_dims=settings.spatial_dims,
        channels=settings.critic_channels,
        in_channels=len(TISSUES) + len(CONTRASTS),
        out_channels=1,
        num_layers_d=settings.critic_layers,
        norm=("INSTANCE", {"affine": True}),
    )
    return _without_inplace(critic)


def build_segmenter(settings: NetworkSettings) -> nn.Module:
    """Build a segmenter: (n, 4, *grid) images to (n, len(SEGMENTER_CLASSES), *grid) logits."""
    from monai.networks.nets import SegResNet, UNet

    shape: dict[str, Any] = {
        "spatial_dims": settings.spatial_dims,
        "in_channels": len(CONTRASTS),
        "out_channels": len(SEGMENTER_CLASSES),
    }
    channels = settings.segmenter_channels
    network: nn.Module
    if settings.segmenter == "segresnet":
        network = SegResNet(
            **shape,
            init_filters=channels[0],
            blocks_down=(1,) * len(channels),
            blocks_up=(1,) * (len(channels) - 1),
        )
    else:
        network = UNet(
            **shape,
            channels=channels,
            strides=(2,) * (len(channels) - 1),
            num_res_units=2,
            norm=("INSTANCE", {"affine": True}),
        )
    return AnyGrid(_without_inplace(network), levels=len(channels))


def _without_inplace(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010 - torch types attributes as tensors
    return network
