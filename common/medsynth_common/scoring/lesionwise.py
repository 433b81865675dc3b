"""Dice and HD95 lesion by lesion, as the BraTS 2023 challenge scores them.

After github.com/rachitsaluja/BraTS-2023-Metrics: true lesions are components of 26 neighbours,
those whose dilations meet being one; a found component belongs to every lesion whose dilation it
touches. Lesions that were missed and components that belong to none count 0 and `PENALTY_MM`.
True lesions of at most 50 mm^3 are left out.

There voxels are of 1 mm and the dilation is three of them; here it is as many as 3 mm are, by the
mean side of a voxel, and at least one.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from medsynth_common.scoring.hausdorff import PENALTY_MM, Mask, Sides, hd95

_DILATION_MM: Final = 3.0
_SMALLEST_MM3: Final = 50.0
_NEIGHBOURS: Final = np.ones((3, 3, 3), dtype=bool)
_DILATION: Final = ndimage.generate_binary_structure(3, 2)


@dataclass(frozen=True, kw_only=True)
class LesionScores:
    """One patient's lesions of one region.

    Attributes:
        dice: mean over true lesions and false components, 0..1; 1 when there are neither.
        hd95: the same, millimetres; 0 when there are neither.
        lesions: true lesions that count.
        missed: of these, how many no component touches.
        false: components that belong to no lesion.

    """

    dice: float
    hd95: float
    lesions: int
    missed: int
    false: int


def score_lesions(found: Mask, there: Mask, *, voxel: Sides) -> LesionScores:
    """Compare two masks (x, y, z) of voxels with sides `voxel`, millimetres."""
    components, count = ndimage.label(found, structure=_NEIGHBOURS)
    touched: set[int] = set()
    dice: list[float] = []
    distances: list[float] = []
    missed = 0
    for lesion in _lesions(there, voxel):
        near = np.unique(components[_dilated(lesion, voxel)])
        mine = near[near > 0]
        touched.update(mine.tolist())
        if lesion.sum() * math.prod(voxel) <= _SMALLEST_MM3:
            continue
        part = np.isin(components, mine) if mine.size else np.zeros_like(lesion)
        missed += not mine.size
        dice.append(2 * float((part & lesion).sum()) / float(part.sum() + lesion.sum()))
        distances.append(hd95(part, lesion, voxel=voxel))
    false = int(count) - len(touched)
    scored = len(dice) + false
    return LesionScores(
        dice=sum(dice) / scored if scored else 1.0,
        hd95=(sum(distances) + PENALTY_MM * false) / scored if scored else 0.0,
        lesions=len(dice),
        missed=missed,
        false=false,
    )


def _lesions(there: Mask, voxel: Sides) -> list[Mask]:
    """Split the truth; components whose dilations meet are one lesion."""
    grown, count = ndimage.label(_dilated(there, voxel), structure=_NEIGHBOURS)
    return [there & (grown == number) for number in range(1, int(count) + 1)]


def _dilated(mask: Mask, voxel: Sides) -> Mask:
    steps = max(1, round(_DILATION_MM / math.prod(voxel) ** (1 / 3)))
    dilated: Mask = ndimage.binary_dilation(mask, structure=_DILATION, iterations=steps)
    return dilated
