"""Patients of a few voxels, as folders of NIfTI files, for tests to read and to spoil."""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medsynth_common.labels import BRATS_VALUE_OF, CONTRASTS, TUMOUR, Tissue
from medsynth_common.volumes import write_volume

SHAPE: Final = (24, 28, 20)
#: Stored turned by half a circle about z, as BraTS stores its volumes (LPS).
AFFINE: Final = np.array([[-2.0, 0, 0, 90], [0, -2.0, 0, 126], [0, 0, 2.0, -72], [0, 0, 0, 1]])
BRATS_OLD: Final = {"t1": "_t1", "t1gd": "_t1ce", "t2": "_t2", "flair": "_flair", "seg": "_seg"}
BRATS_2023: Final = {"t1": "-t1n", "t1gd": "-t1c", "t2": "-t2w", "flair": "-t2f", "seg": "-seg"}

#: Mean intensity of each tissue in T1, T1Gd, T2, FLAIR.
_MEANS: Final = {
    Tissue.CSF: (150, 150, 900, 80),
    Tissue.VENTRICLE: (150, 150, 900, 80),
    Tissue.GREY: (450, 480, 450, 420),
    Tissue.WHITE: (700, 720, 300, 330),
    Tissue.CORE: (250, 260, 700, 400),
    Tissue.OEDEMA: (400, 410, 650, 700),
    Tissue.ENHANCING: (400, 900, 550, 600),
}


def small_labels(shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    """An egg of CSF, cortex and white matter, a ventricle inside, a tumour to one side."""
    axes = [np.linspace(-1.1, 1.1, size) for size in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    labels = np.zeros(shape, dtype=np.uint8)
    labels[radius < 1.0] = Tissue.CSF
    labels[radius < 0.9] = Tissue.GREY
    labels[radius < 0.7] = Tissue.WHITE
    labels[np.sqrt(x**2 + (y / 2) ** 2 + z**2) < 0.22] = Tissue.VENTRICLE
    to_tumour = np.sqrt((x - 0.45) ** 2 + y**2 + (z - 0.2) ** 2)
    labels[to_tumour < 0.32] = Tissue.OEDEMA
    labels[to_tumour < 0.24] = Tissue.ENHANCING
    labels[to_tumour < 0.16] = Tissue.CORE
    return labels


def small_image(labels: NDArray[np.uint8], seed: int = 0) -> NDArray[np.float32]:
    """The four contrasts (4, x, y, z) of a label map, with a little noise, 0 outside the brain."""
    rng = np.random.default_rng(seed)
    image = np.zeros((len(CONTRASTS), *labels.shape), dtype=np.float32)
    for tissue, means in _MEANS.items():
        inside = labels == tissue
        image[:, inside] = np.asarray(means)[:, None] + rng.normal(0, 15, (4, inside.sum()))
    return image


def write_patient(folder: Path, *, naming: dict[str, str] | None = None, seed: int = 0) -> Path:
    """Write one good patient with BraTS file names; return its folder."""
    naming = BRATS_OLD if naming is None else naming
    labels = small_labels()
    for contrast, data in zip(CONTRASTS, small_image(labels, seed), strict=True):
        spoil(folder, naming[contrast], data)
    tumour = np.zeros_like(labels)
    for tissue in TUMOUR:
        tumour[labels == tissue] = BRATS_VALUE_OF[tissue]
    spoil(folder, naming["seg"], tumour)
    return folder


def spoil(
    folder: Path,
    ending: str,
    data: NDArray[np.float32] | NDArray[np.uint8],
    affine: NDArray[np.float64] = AFFINE,
) -> None:
    """Put `data` in place of a patient's file."""
    path = folder / f"{folder.name}{ending}.nii.gz"
    write_volume(path, data, affine, description="test")
