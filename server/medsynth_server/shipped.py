"""The public weights that come with medsynth: generator, critic, segmenter, and what is measured.

They saw phantoms alone, drawn from one seed, so that every federation may start from anatomy
without training for it. `medsynth-server pretrain models` makes them again.
"""

from pathlib import Path
from typing import Final

import torch

from medsynth_common.networks import PRESETS
from medsynth_common.weights.file import Recipe, Weights, read_weights, write_weights
from medsynth_common.weights.shipped import shipped
from medsynth_server.config import Pretrain
from medsynth_server.model import Model
from medsynth_server.public_pool import draw_pools
from medsynth_server.stages.pretrain import PretrainStage

#: The sizes of the networks that are shipped.
NETWORKS: Final = PRESETS["cpu"]
NAME: Final = "models"
_GRID: Final = (48, 48, 48)
_CROP: Final = (32, 32, 32)
_SEED: Final = 2026
_SETTINGS: Final = Pretrain(
    rounds=8, steps=150, scanners=60, phantoms=4, segmenter_learning_rate=4e-3
)
#: An optimizer's memory, a run's own; everything else of a model is shipped.
_PARTS: Final = ("generator", "segmenter", "critic", "prior", "variation", "features", "clips")


def shipped_model() -> Model:
    """Give the model that comes with medsynth. Raises `BadData` when its files are damaged."""
    weights = read_weights(shipped(NAME), network=NAME)
    return Model(networks=NETWORKS, tensors=weights.tensors)


def make_models(
    path: Path, *, settings: Pretrain = _SETTINGS, seed: int = _SEED, workers: int = 1
) -> Recipe:
    """Train on public phantoms and write weights and recipe; the last digits are the machine's."""
    pools = draw_pools(
        seed=seed,
        scanners=settings.scanners,
        phantoms=settings.phantoms,
        grid=_GRID,
        workers=workers,
    )
    stage = PretrainStage(settings, pools, crop=_CROP, seed=seed, device=torch.device("cpu"))
    model = Model.fresh(NETWORKS, seed=seed)
    for number in range(1, stage.rounds + 1):
        model, _ = stage.after(model, number)
    return write_model(path, model, settings=settings, seed=seed)


def write_model(path: Path, model: Model, *, settings: Pretrain, seed: int) -> Recipe:
    """Write a model's public parts and the recipe that led to them."""
    tensors = {name: t for part in _PARTS for name, t in model.part(part).items()}
    recipe = Recipe(
        network=NAME,
        settings={
            "networks": NETWORKS.model_dump(mode="json"),
            "pretrain": settings.model_dump(mode="json"),
            "grid": list(_GRID),
            "crop": list(_CROP),
        },
        command=f"medsynth-server pretrain models --out {path.name} --seed {seed}",
        seed=seed,
        data=("procedural phantoms of randomised scanners, medsynth's own; no patient",),
    )
    return write_weights(path, Weights(tensors=tensors, recipe=recipe))
