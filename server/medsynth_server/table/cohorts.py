"""The patients and volumes of a table: real ones of a finished run, synthetic ones painted anew.

No synthetic volume is derived from a held-out patient: label maps are drawn from nothing, and the
generator was trained on the sites' training patients.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from medsynth_common.durable import write_bytes
from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom import draw_labels
from medsynth_common.scoring.hausdorff import Sides
from medsynth_common.scoring.measured import Measured
from medsynth_server.config import RunConfig
from medsynth_server.model import Model
from medsynth_server.record import Arm
from medsynth_server.simulated_sites import SimulatedSite
from medsynth_server.synthesis import Painter


@dataclass(frozen=True)
class Cache:
    """Volumes that are made once a table: held-out patients, and what each generator painted.

    They are mapped from disk, so that workers share them.
    """

    path: Path

    def held_out(self, sites: Sequence[SimulatedSite]) -> dict[str, list[Measured]]:
        """Read every site's held-out patients."""
        return {
            site.name: [_patient(self._held_out(site, n)) for n in range(len(site.held_out))]
            for site in sites
        }

    def keep_held_out(self, site: SimulatedSite, number: int, config: RunConfig) -> None:
        """Prepare one held-out patient, unless he is there."""
        path = self._held_out(site, number)
        if not path.exists():
            one = site.load_one_held_out(number, config)
            _write(path, one.volume, voxel=one.voxel)

    def synthetic(self, arm: Arm, count: int) -> list[Volume]:
        """Read the volumes of one generator."""
        return [_volume(self._synthetic(arm, number)) for number in range(count)]

    def keep_synthetic(self, arm: Arm, number: int, painting: "Painting") -> None:
        """Paint one volume, unless it is there."""
        path = self._synthetic(arm, number)
        if not path.exists():
            _write(path, painting.volume(number), voxel=(0.0, 0.0, 0.0))

    def _held_out(self, site: SimulatedSite, number: int) -> Path:
        return self.path / "held-out" / site.name / f"{number}.safetensors"

    def _synthetic(self, arm: Arm, number: int) -> Path:
        return self.path / f"synthetic-{arm}" / f"{number:05d}.safetensors"


class Painting:
    """One generator's volumes: each from its number and the run's seed alone, sites in turn."""

    def __init__(self, model: Model, sites: Sequence[str], config: RunConfig, *, seed: int) -> None:
        self._sites, self._grid, self._seed = sorted(sites), config.grid, seed
        self._painter = Painter(model, sites, grid=config.grid, device=torch.device("cpu"))

    def volume(self, number: int) -> Volume:
        """Draw a label map and paint it as the number's site would have imaged it."""
        digest = hashlib.sha256(f"table {self._seed} {number}".encode()).digest()
        seed = int.from_bytes(digest[:7], "big")
        x, y, z = self._grid
        labels = torch.from_numpy(draw_labels(np.random.default_rng(seed), (x, y, z)))
        draw = torch.Generator().manual_seed(seed)
        image = self._painter.paint(labels.unsqueeze(0), [self.site(number)], draw)[0]
        return Volume(image=image, labels=labels)

    def site(self, number: int) -> str:
        """Whose style the volume has."""
        return self._sites[number % len(self._sites)]


def _write(path: Path, volume: Volume, *, voxel: Sides) -> None:
    tensors = {"image": volume.image.contiguous(), "labels": volume.labels.contiguous()}
    content = safetensors.torch.save(tensors | {"voxel": torch.tensor(voxel, dtype=torch.float64)})
    write_bytes(path, content)


def _volume(path: Path) -> Volume:
    tensors = safetensors.torch.load_file(path)
    return Volume(image=tensors["image"], labels=tensors["labels"])


def _patient(path: Path) -> Measured:
    tensors = safetensors.torch.load_file(path)
    volume = Volume(image=tensors["image"], labels=tensors["labels"])
    x, y, z = tensors["voxel"].tolist()
    return Measured(volume=volume, voxel=(x, y, z))
