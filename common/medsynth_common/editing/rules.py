"""The rules by which a lesion and a brain are put together, whatever the edit.

    1. The brain keeps its outline: background stays background, and nothing else becomes it.
    2. Solid tumour replaces parenchyma and the fluid that it squeezes away, but not the skin of
       fluid around the brain, and no other tumour. A ventricle in its way is first pushed aside
       as far as the mass presses (`push`), and what is still in its way is filled.
    3. Oedema is reached from the solid part through tissue: all the way in white matter, less far
       in deep grey, least in cortex, never through fluid.
    4. Core touches only tumour: where it would touch anything else, it is rim.
    5. A lesion keeps most of its solid part where it is put, or there is no room for it.

Phantoms are carved by the same rules (`phantom.tumour`), but for ventricles: theirs hold, since
they were pushed aside when the head was drawn.
"""

from typing import Final

import numpy as np
from scipy import ndimage

from medsynth_common.editing.levels import Block, Levels, Mask, Voxel
from medsynth_common.errors import BadInput, Problem
from medsynth_common.labels import TUMOUR, Tissue
from medsynth_common.phantom.anatomy import Labels
from medsynth_common.phantom.fields import Floats
from medsynth_common.phantom.tumour import INVADED, OEDEMA_REACH, SKIN, largest

#: Length of an adult brain, mm: label maps come without a scale, brains with much the same one.
_BRAIN_MM: Final = 170.0
_ROOM: Final = 0.6
_OPEN: Final = (Tissue.VENTRICLE, *(tissue for tissue in INVADED if tissue not in TUMOUR))
_EASE: Final = np.array([OEDEMA_REACH.get(tissue, 0.0) for tissue in Tissue], dtype=np.float32)


def voxel_mm(labels: Labels) -> float:
    """Estimate the edge of a voxel, mm, from the brain's longest side."""
    box = brain_box(labels)
    return _BRAIN_MM / max(int(side.stop - side.start) for side in box)


def brain_box(labels: Labels) -> Block:
    """Give the smallest block that holds the brain; raises `BadInput` where there is none."""
    found = ndimage.find_objects((labels != Tissue.BACKGROUND).astype(np.uint8))
    if not found:
        raise BadInput(Problem(name="label map", value="background alone", wanted="a brain"))
    x, y, z = found[0]
    return x, y, z


def lay(healthy: Labels, levels: Levels, *, kept: Mask | None = None) -> Labels:
    """Lay a lesion into an anatomy.

    Args:
        healthy: `Tissue` values (x, y, z) without this lesion; others may be there.
        levels: the lesion.
        kept: (x, y, z) where this lesion was already: it may stay there whatever lay beneath.

    Returns:
        A new map.

    Raises:
        BadInput: there is no room for the lesion (rule 5).

    """
    block, cut = levels.on(healthy.shape)
    tissue = healthy[block]
    own = np.zeros(tissue.shape, dtype=bool) if kept is None else kept[block]
    solid = _solid(healthy, block, cut.solid, own, anew=kept is None)
    wanted = np.count_nonzero(levels.solid < 0)
    if kept is None and np.count_nonzero(solid) < _ROOM * wanted:
        raise no_room(levels.centre)
    oedema = _oedema(tissue, cut, solid, own)
    if not (solid.any() or oedema.any()):
        raise no_room(levels.centre)
    laid = tissue.copy()
    laid[oedema] = Tissue.OEDEMA
    laid[solid] = Tissue.ENHANCING
    laid[solid & (cut.core < 0)] = Tissue.CORE
    _wall_off(laid, solid)
    result = healthy.copy()
    result[block] = laid
    return result


def push(labels: Labels, centre: Voxel, *, reach: float, strength: float) -> Labels:
    """Push tissue away from a mass at `centre` (rule 2); beyond `reach` voxels nothing moves.

    What is seen at a distance r comes from r (1 - strength (1 - (r / reach)^2)^2), which is
    one-to-one for a strength below 1. Neither the brain's outline nor a tumour is ever pushed:
    the reach ends before them.
    """
    firm = np.pad((labels == Tissue.BACKGROUND) | np.isin(labels, TUMOUR), 1, constant_values=True)
    nearest = float(np.linalg.norm(np.argwhere(firm) - 1 - centre, axis=1).min())
    reach = min(reach, nearest - 1)
    if reach <= 1 or strength == 0:
        return labels.copy()
    whole = int(reach)
    block = tuple(slice(middle - whole, middle + whole + 1) for middle in centre)
    offsets = np.mgrid[-whole : whole + 1, -whole : whole + 1, -whole : whole + 1].astype(float)
    share = np.clip(1 - (offsets**2).sum(axis=0) / reach**2, 0, None)
    source = np.rint(offsets * (1 - strength * share**2)).astype(int) + whole
    result = labels.copy()
    result[block] = labels[block][source[0], source[1], source[2]]
    return result


def no_room(centre: Voxel) -> BadInput:
    """Say that a lesion does not fit where it was to be."""
    return BadInput(
        Problem(
            name="edit",
            value=f"no room for the lesion at voxel {centre}",
            wanted="a place in the brain that can hold most of it",
            mend="choose another place, or a smaller lesion",
        )
    )


def _solid(healthy: Labels, block: Block, level: Floats, own: Mask, *, anew: bool) -> Mask:
    tissue = healthy[block]
    room = np.isin(tissue, _OPEN) & ((tissue != Tissue.CSF) | _below_skin(healthy, block))
    solid: Mask = (level < 0) & (room | own)
    if anew:
        return largest(solid)
    # Grown from where it was: not through a fissure into the next gyrus.
    reached: Mask = ndimage.binary_propagation(solid & own, mask=solid)
    # One that wastes does not leave crumbs.
    return reached if (reached & ~own).any() else largest(reached)


def _oedema(tissue: Labels, cut: Levels, solid: Mask, own: Mask) -> Mask:
    ease = np.where(own, np.float32(1), _EASE[tissue])
    # How far the oedema goes beyond the solid part just here, if the tissue lets it.
    reach = cut.solid - cut.whole
    wet = (ease > 0) & (cut.solid < ease * reach)
    source = solid if solid.any() else largest(wet)
    reached: Mask = ndimage.binary_propagation(source, mask=wet | solid) & ~solid
    return reached


def _below_skin(healthy: Labels, block: Block) -> Mask:
    """Tell which voxels of a block lie deeper than the fluid that always covers the brain."""
    depth = max(SKIN / voxel_mm(healthy), 1.0)
    margin = int(np.ceil(depth)) + 1
    wide = tuple(slice(side.start, side.stop + 2 * margin) for side in block)
    air = np.pad(healthy == Tissue.BACKGROUND, margin, constant_values=True)[wide]
    if not air.any():
        return np.ones(healthy[block].shape, dtype=bool)
    far: Floats = ndimage.distance_transform_edt(~air)
    inner = slice(margin, -margin)
    deep: Mask = far[inner, inner, inner] > depth
    return deep


def _wall_off(labels: Labels, solid: Mask) -> None:
    outside = ~np.isin(labels, TUMOUR)
    exposed = ndimage.binary_dilation(outside, border_value=1) & (labels == Tissue.CORE)
    labels[exposed & solid] = Tissue.ENHANCING
