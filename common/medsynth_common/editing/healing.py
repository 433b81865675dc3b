"""What lay beneath a lesion: the other hemisphere's anatomy, or the nearest healthy tissue.

The two hemispheres are much alike but not mirror images, and heads lie askew. So the mirror image
is first shifted to where it agrees best with the tissue around the lesion, and it is used only if
most of that tissue agrees; the folds of the cortex differ between sides and have no say in that.
Where the other side is ill too, or there is no other side, white matter takes the lesion's place,
under a cortex as thick as elsewhere.
"""

from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsynth_common.editing.levels import Block, Mask
from medsynth_common.editing.rules import brain_box, voxel_mm
from medsynth_common.labels import TUMOUR, Tissue
from medsynth_common.phantom.anatomy import Labels

Places = NDArray[np.int64]

#: Thickness of the cortex, mm.
_CORTEX: Final = 3.0
#: Fluid -> what takes the place of a pool of it that the brain's own fluid does not reach.
_STRAY_FLUID: Final = {Tissue.VENTRICLE: Tissue.WHITE, Tissue.CSF: Tissue.GREY}
#: Voxels around the lesion that the mirror image is fitted to, and how many are compared at most.
_SHELL: Final = 3
_COMPARED: Final = 4000
#: The mirror image is shifted up to this share of the brain's width to fit.
_SHIFT: Final = 1 / 24
#: Less agreement than this around the lesion, and the mirror image says nothing about it.
_AGREEMENT: Final = 0.6
#: Tissues as they are compared: cortex and the white matter of its folds are one.
_COMPARABLE: Final = np.array(
    [Tissue.WHITE if tissue is Tissue.GREY else tissue for tissue in Tissue], dtype=np.uint8
)


def healed(labels: Labels, lesion: Mask) -> Labels:
    """Give a new map with healthy tissue in the place of the mask `lesion`; the rest stays."""
    result = labels.copy()
    block = _around(lesion)
    places = np.argwhere(lesion)
    result[lesion] = Tissue.WHITE
    mirrored = _mirrored(labels, lesion, places)
    found = ~np.isin(mirrored, (Tissue.BACKGROUND, *TUMOUR))
    result[tuple(places[found].T)] = mirrored[found]
    _drain(result[block], lesion[block])
    unknown = np.zeros_like(lesion)
    unknown[tuple(places[~found].T)] = True
    _lay_cortex(result[block], unknown[block], thickness=_CORTEX / voxel_mm(labels))
    return result


def mirror_plane(labels: Labels) -> int:
    """Twice the middle of the brain from left to right: voxel x mirrors to this minus x."""
    across = brain_box(labels)[0]
    return int(across.start + across.stop - 1)


def _around(lesion: Mask) -> Block:
    x, y, z = ndimage.find_objects(lesion.astype(np.uint8))[0]
    near = [slice(max(side.start - _SHELL - 1, 0), side.stop + _SHELL + 1) for side in (x, y, z)]
    return near[0], near[1], near[2]


def _mirrored(labels: Labels, lesion: Mask, places: Places) -> Labels:
    """The tissue on the other side, fitted, for every voxel of the lesion, (n,); 0 for none."""
    shell = _shell(labels, lesion)
    reach = max(int((brain_box(labels)[0].stop - brain_box(labels)[0].start) * _SHIFT), 1)
    steps = range(-reach, reach + 1)
    shifts = sorted(product(steps, steps, steps), key=lambda shift: sum(map(abs, shift)))
    plane = mirror_plane(labels)
    here = _COMPARABLE[labels[tuple(shell.T)]]
    best, agreement = (0, 0, 0), -1.0
    for shift in shifts:
        there = _COMPARABLE[_across(labels, shell, plane, shift)]
        alike = float(np.mean(there == here)) if len(here) else 0.0
        if alike > agreement:
            best, agreement = shift, alike
    if agreement < _AGREEMENT:
        return np.zeros(len(places), dtype=labels.dtype)
    return _across(labels, places, plane, best)


def _shell(labels: Labels, lesion: Mask) -> Places:
    """Healthy voxels around the lesion, (n, 3), evenly thinned out to what need be compared."""
    near = ndimage.binary_dilation(lesion, iterations=_SHELL) & ~lesion
    shell = np.argwhere(near & ~np.isin(labels, (Tissue.BACKGROUND, *TUMOUR)))
    return shell[:: max(len(shell) // _COMPARED, 1)]


def _across(labels: Labels, places: Places, plane: int, shift: tuple[int, int, int]) -> Labels:
    """Read the map on the other side of the plane, shifted; 0 beyond the grid."""
    source = places * (-1, 1, 1) + (plane, 0, 0) + shift
    inside = ((source >= 0) & (source < labels.shape)).all(axis=1)
    seen = np.zeros(len(places), dtype=labels.dtype)
    seen[inside] = labels[tuple(source[inside].T)]
    return seen


def _drain(labels: Labels, lesion: Mask) -> None:
    """Turn new pools of fluid that no old fluid reaches into tissue, in place."""
    for fluid, tissue in _STRAY_FLUID.items():
        here = labels == fluid
        reached = ndimage.binary_propagation(here & ~lesion, mask=here)
        labels[here & ~reached] = tissue


def _lay_cortex(labels: Labels, unknown: Mask, *, thickness: float) -> None:
    """Turn the unknown tissue next to the fluid around the brain into cortex, in place."""
    outside = np.isin(labels, (Tissue.CSF, Tissue.BACKGROUND))
    if outside.any():
        near = ndimage.distance_transform_edt(~outside) <= max(thickness, 1.0)
        labels[unknown & near] = Tissue.GREY
