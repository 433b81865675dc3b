"""Where the brain is in a skull-stripped volume."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Box = tuple[slice, slice, slice]


def brain_mask(image: NDArray[np.float32] | Sequence[NDArray[np.float32]]) -> NDArray[np.bool_]:
    """Return the brain of skull-stripped contrasts (c, x, y, z), or each (x, y, z), as a mask.

    Skull-stripping leaves 0 outside the brain (and interpolation small negative values): the brain
    is the largest connected piece where any contrast is above 0, its holes filled. The mask is
    empty when no voxel is above 0.
    """
    bright = np.zeros(image[0].shape, dtype=bool)
    for contrast in image:  # one by one: all at once would take four times the memory
        bright |= contrast > 0
    mask = np.zeros_like(bright)
    if bright.any():
        box = bounding_box(bright)
        mask[box] = _fill_holes(largest_piece(bright[box]))
    return mask


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """Return the smallest box that holds all of a mask (x, y, z) that is not empty."""
    x, y, z = ndimage.find_objects(mask.astype(np.uint8))[0]
    return x, y, z


def largest_piece(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the largest face-connected piece of a mask (x, y, z)."""
    pieces, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    largest: NDArray[np.bool_] = pieces == sizes.argmax()
    return largest


def _fill_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    # One labelling of the outside: scipy's binary_fill_holes dilates voxel by voxel, and is slow.
    outside, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    filled: NDArray[np.bool_] = (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]
    return filled
