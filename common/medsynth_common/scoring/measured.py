"""A patient on the training grid together with the size of a voxel there, as distances need it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from medsynth_common.dataset import DataConfig, PatientFiles, prepare
from medsynth_common.dataset.source import PhantomSource, Source, files_of
from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom import Scanner, make_phantom
from medsynth_common.scoring.hausdorff import Sides
from medsynth_common.set_layout import phantom_affine


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One patient.

    Attributes:
        volume: image and labels.
        voxel: its sides, millimetres.

    """

    volume: Volume
    voxel: Sides

    @classmethod
    def phantom(cls, seed: int, grid: Sequence[int], scanner: Scanner) -> "Measured":
        """Draw a phantom."""
        shape = (grid[0], grid[1], grid[2])
        made = make_phantom(seed, shape, scanner)
        return _measured(made.image, made.labels, phantom_affine(shape))

    @classmethod
    def patient(cls, files: PatientFiles, grid: Sequence[int], data: DataConfig) -> "Measured":
        """Prepare a patient. Raises BadData."""
        ready = prepare(files, (grid[0], grid[1], grid[2]), data)
        return _measured(ready.image, ready.labels, ready.affine)


def measured_patients(
    source: Source, names: Sequence[str], grid: Sequence[int]
) -> Iterator[Measured]:
    """Read patients of a site, by name and in order. Raises BadData."""
    if isinstance(source, PhantomSource):
        for number, name in enumerate(source.names()):
            if name in names:
                yield Measured.phantom(source.seed + number, grid, source.scanner)
        return
    if names:
        for files in files_of(source.model_copy(update={"patients": tuple(names)})):
            yield Measured.patient(files, grid, source.data)


def _measured(
    image: NDArray[np.float32], labels: NDArray[np.uint8], affine: NDArray[np.float64]
) -> Measured:
    volume = Volume(image=torch.from_numpy(image), labels=torch.from_numpy(labels))
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return Measured(volume=volume, voxel=(x, y, z))
