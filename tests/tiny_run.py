"""The smallest settings that have every stage, and a publicly trained model for them."""

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.crash_matrix import SETTINGS

from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom import make_phantom, random_scanner
from medsynth_server.checkpoint import Checkpoint
from medsynth_server.config import RunConfig, parse_config
from medsynth_server.model import Model
from medsynth_server.public_pool import Pool, scanner_code
from medsynth_server.stages.pretrain import PretrainStage

SEED = 1


def tiny_config(changes: Mapping[str, Any] | None = None) -> RunConfig:
    """The tiny settings with other values in some tables."""
    values = tomllib.loads(SETTINGS)
    for key, value in (changes or {}).items():
        both_tables = isinstance(value, Mapping) and isinstance(values.get(key), Mapping)
        values[key] = {**values[key], **value} if both_tables else value
    return parse_config(values, name="tiny")


def write_settings(folder: Path, extra: str = "") -> Path:
    """The same settings as a file, with more TOML at its end."""
    path = folder / "tiny.toml"
    path.write_text(SETTINGS + extra)
    return path


def tiny_volume(seed: int = 3) -> Volume:
    """One phantom on the tiny grid."""
    scanner = random_scanner(np.random.default_rng(seed))
    phantom = make_phantom(seed, (24, 24, 24), scanner, tumours=1)
    return Volume(image=torch.from_numpy(phantom.image), labels=torch.from_numpy(phantom.labels))


def tiny_pools() -> list[Pool]:
    """Two scanners with two phantoms each, drawn in this process."""
    pools = []
    for index in range(2):
        scanner = random_scanner(np.random.default_rng([SEED, index]))
        volumes = []
        for number in range(2):
            phantom = make_phantom(10 * index + number, (24, 24, 24), scanner)
            image, labels = torch.from_numpy(phantom.image), torch.from_numpy(phantom.labels)
            volumes.append(Volume(image=image, labels=labels))
        pools.append(Pool(volumes=volumes, code=scanner_code(scanner)))
    return pools


@cache
def public_model() -> Model:
    """A model after one public step: it knows next to nothing, but has every part."""
    config = tiny_config()
    stage = PretrainStage(
        config.pretrain,
        tiny_pools(),
        crop=config.crop,
        seed=SEED,
        device=torch.device("cpu"),
    )
    model, _ = stage.after(Model.fresh(config.networks, seed=SEED), 1)
    return model


def same_tensors(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two sets of named tensors are the same, bit for bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def stored_model(path: Path) -> Model:
    """The model in a checkpoint of a tiny run."""
    return Checkpoint(path).load(Model.fresh(tiny_config().networks, seed=SEED))[0]
