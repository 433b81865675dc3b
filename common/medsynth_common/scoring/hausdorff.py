"""The 95th percentile of the Hausdorff distance, in millimetres."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
#: Sides of a voxel, millimetres.
Sides = tuple[float, float, float]

#: What a region counts that one side has and the other has not: the value of the BraTS 2023
#: evaluation (github.com/rachitsaluja/BraTS-2023-Metrics), about the diagonal of its grid.
PENALTY_MM: Final = 374.0


def hd95(found: Mask, there: Mask, *, voxel: Sides) -> float:
    """Measure the distance between two masks (x, y, z).

    From every surface voxel of one to the nearest of the other, the 95th percentile; the larger
    of the two directions, as MONAI has it. 0 when both are empty, `PENALTY_MM` when one is.

    Args:
        found: what a segmenter found.
        there: the truth.
        voxel: sides of a voxel, millimetres.

    """
    if not found.any() or not there.any():
        return 0.0 if found.any() == there.any() else PENALTY_MM
    box = _around(found | there)
    one, other = _surface(found[box]), _surface(there[box])
    return max(_directed(one, other, voxel), _directed(other, one, voxel))


def _directed(start: Mask, end: Mask, voxel: Sides) -> float:
    distances = ndimage.distance_transform_edt(~end, sampling=voxel)[start]
    return float(np.percentile(distances, 95))


def _surface(mask: Mask) -> Mask:
    surface: Mask = mask & ~ndimage.binary_erosion(mask)  # beyond the grid counts as outside
    return surface


def _around(mask: Mask) -> tuple[slice, ...]:
    """Give the box that holds a mask."""
    box: tuple[slice, ...] = ndimage.find_objects(mask.astype(np.uint8))[0]
    return box
