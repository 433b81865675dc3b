"""How a synthetic set lies on disk: BraTS, BIDS or MSD names, and what its label values mean.

Sources: BraTS 2023 file names; Brain Imaging Data Structure 1.9 (Gorgolewski et al. 2016); Medical
Segmentation Decathlon (Antonelli et al. 2022).
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medsynth_common import __version__
from medsynth_common.dataset.frame import voxel_form
from medsynth_common.labels import BRATS_VALUE_OF, TUMOUR, Tissue
from medsynth_common.learning.volumes import Volume
from medsynth_common.volumes import write_volume

Voxels = NDArray[Any]

#: Stands in the header of every file of a set.
HEADER: Final = f"SYNTHETIC medsynth {__version__}"

#: The contrasts' suffixes in BraTS names, in the order of `CONTRASTS`.
BRATS_CONTRASTS: Final = ("t1n", "t1c", "t2w", "t2f")
_BIDS: Final = ("T1w", "ce-gadolinium_T1w", "T2w", "FLAIR")
#: MSD, and nnU-Net after it, wants values without gaps; BraTS reads 3 as 4 since 2023.
_MSD_VALUE_OF: Final = {Tissue.CORE: 1, Tissue.OEDEMA: 2, Tissue.ENHANCING: 3}
#: Length of an adult head's longest axis, mm: gives phantoms a voxel size.
_HEAD_MM: Final = 180.0


class Layout(StrEnum):
    """A convention of names that segmentation tools know."""

    BRATS = "brats"
    BIDS = "bids"
    MSD = "msd"


def tumour_values(layout: Layout) -> Mapping[Tissue, int]:
    """Give the value that each tumour class has in a layout's tumour maps."""
    return _MSD_VALUE_OF if layout is Layout.MSD else BRATS_VALUE_OF


def files_of(layout: Layout, name: str, volume: Volume) -> dict[str, Voxels]:
    """Give a volume's files: path below the set's folder -> voxels.

    Contrasts are float32 (x, y, z), or one file of (x, y, z, contrast) in MSD; the tumour map and
    the anatomy map are uint8 (x, y, z), each 0 where the other one speaks.
    """
    image, labels = volume.image.numpy(), volume.labels.numpy()  # (4, x, y, z), (x, y, z)
    tumour = np.zeros_like(labels, dtype=np.uint8)
    for tissue, value in tumour_values(layout).items():
        tumour[labels == tissue] = value
    anatomy = np.where(np.isin(labels, TUMOUR), 0, labels).astype(np.uint8)
    if layout is Layout.MSD:
        paths = [f"{part}Tr/{name}.nii.gz" for part in ("images", "labels", "anatomy")]
        return dict(zip(paths, (np.moveaxis(image, 0, -1), tumour, anatomy), strict=True))
    if layout is Layout.BIDS:
        subject = f"sub-{name.replace('-', '')}"
        stem = f"{subject}/anat/{subject}"
        contrasts = [f"{stem}_{suffix}.nii.gz" for suffix in _BIDS]
        maps = [f"derivatives/medsynth/{stem}_desc-{d}_dseg.nii.gz" for d in ("tumour", "anatomy")]
    else:
        contrasts = [f"{name}/{name}-{suffix}.nii.gz" for suffix in BRATS_CONTRASTS]
        maps = [f"{name}/{name}-{suffix}.nii.gz" for suffix in ("seg", "anatomy")]
    return dict(zip([*contrasts, *maps], [*image, tumour, anatomy], strict=True))


def phantom_affine(grid: tuple[int, ...]) -> NDArray[np.float64]:
    """Give label maps that were drawn a scale: voxel indices to millimetres, (4, 4)."""
    form = voxel_form(grid)
    return np.diag([*(form * _HEAD_MM / max(form * grid)), 1.0])


def write_file(folder: Path, path: str, voxels: Voxels, affine: NDArray[np.float64]) -> None:
    """Write one file of a set, whole or not at all; one that is there is not written again."""
    if not (folder / path).exists():
        write_volume(folder / path, voxels, affine, description=HEADER)
