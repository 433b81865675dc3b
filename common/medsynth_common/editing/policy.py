"""Which edits are sensible: kinds to choose from, and their parameters drawn for a given map."""

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsynth_common.edit_kind import EditKind
from medsynth_common.editing.edits import (
    Edit,
    Inserted,
    Mirrored,
    Moved,
    Removed,
    Resized,
    Rotated,
    VentriclesEnlarged,
    apply,
    apply_all,
    lesion_mask,
    lesions,
)
from medsynth_common.editing.healing import healed, mirror_plane
from medsynth_common.editing.levels import Levels, Voxel
from medsynth_common.editing.rules import voxel_mm
from medsynth_common.errors import BadInput, Problem
from medsynth_common.labels import Tissue
from medsynth_common.phantom.anatomy import Labels

Drawn = tuple[Edit, ...]
Draw = Callable[[np.random.Generator, Labels], Drawn]

#: How often parameters are drawn before a kind is given up for a map.
_TRIES: Final = 12
#: What `random` chooses from, and how often; kinds that a map does not allow drop out.
_CHANCES: Final = {
    EditKind.LARGER: 0.18,
    EditKind.SMALLER: 0.16,
    EditKind.MOVED: 0.2,
    EditKind.MIRRORED: 0.1,
    EditKind.ROTATED: 0.1,
    EditKind.SEVERAL: 0.12,
    EditKind.VENTRICLES: 0.1,
    EditKind.REMOVED: 0.04,
}
#: The same where there is no tumour.
_CHANCES_HEALTHY: Final = {EditKind.INSERTED: 0.85, EditKind.VENTRICLES: 0.15}
#: A new tumour's centre lies this far (mm) below the brain's surface, off the ventricles and off
#: the middle, as gliomas of the hemispheres do.
_DEPTH, _OFF_VENTRICLES, _OFF_MIDDLE = 9.0, 9.0, 17.0
#: Growth aims no further than this radius of the solid part, mm: phantoms' largest are as large.
_LARGEST: Final = 32.0


def draw_edits(rng: np.random.Generator, labels: Labels, kind: EditKind) -> Drawn:
    """Draw edits of a kind that this map allows; `apply_all` makes them.

    Args:
        rng: all parameters come from it; an equal generator draws equal edits.
        labels: `Tissue` values (x, y, z).
        kind: what is wanted; `RANDOM` leaves that to chance.

    Returns:
        One edit, or several for `SEVERAL` and for the removal of several lesions.

    Raises:
        BadInput: the map does not allow it, for instance no tumour to move.

    """
    if kind is not EditKind.RANDOM:
        return _drawn(rng, labels, kind)
    chances = dict(_CHANCES if lesion_mask(labels).any() else _CHANCES_HEALTHY)
    while chances:
        weights = np.array(list(chances.values()))
        choice = list(chances)[int(rng.choice(len(weights), p=weights / weights.sum()))]
        try:
            return _drawn(rng, labels, choice)
        except BadInput:
            del chances[choice]  # this map does not allow it; another kind may do
    raise _impossible(kind, "nothing that can be edited")


def _drawn(rng: np.random.Generator, labels: Labels, kind: EditKind) -> Drawn:
    """Draw until the edits can be made; the last reason why not is told."""
    ill = bool(lesion_mask(labels).any())
    if kind is EditKind.INSERTED and ill:
        raise _impossible(kind, "a map with tumour", mend=f"ask for {EditKind.SEVERAL}")
    if kind not in (EditKind.INSERTED, EditKind.VENTRICLES) and not ill:
        raise _impossible(kind, "a map without tumour", mend="insert one first")
    reason = BadInput("")
    for _ in range(_TRIES):
        try:
            edits = _DRAWS[kind](rng, labels)
            apply_all(edits, labels)
        except BadInput as error:
            reason = error
        else:
            return edits
    raise reason


def _larger(rng: np.random.Generator, labels: Labels) -> Drawn:
    which = _any_lesion(rng, labels)
    radius = Levels.of(labels, lesions(labels)[which]).radius * voxel_mm(labels)
    high = min(max(_LARGEST / radius, 1.2), 1.7)
    return (Resized(lesion=which, factor=_factor(rng, 1.15, high)),)


def _smaller(rng: np.random.Generator, labels: Labels) -> Drawn:
    return (Resized(lesion=_any_lesion(rng, labels), factor=_factor(rng, 0.45, 0.87)),)


def _factor(rng: np.random.Generator, low: float, high: float) -> float:
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))), 3)


def _moved(rng: np.random.Generator, labels: Labels) -> Drawn:
    which = _any_lesion(rng, labels)
    mine = lesions(labels)[which]
    size = Levels.of(labels, mine).radius
    place = _place(rng, healed(labels, mine), size)
    return (Moved(lesion=which, to=place, push=_press(rng)),)


def _mirrored(rng: np.random.Generator, labels: Labels) -> Drawn:
    return (Mirrored(lesion=_any_lesion(rng, labels)),)


def _rotated(rng: np.random.Generator, labels: Labels) -> Drawn:
    x, y, z = (round(float(angle), 1) for angle in rng.uniform(-180, 180, 3))
    return (Rotated(lesion=_any_lesion(rng, labels), degrees=(x, y, z)),)


def _removed(rng: np.random.Generator, labels: Labels) -> Drawn:
    # Each removal leaves the next lesion the largest.
    return tuple(Removed() for _ in lesions(labels))


def _inserted(rng: np.random.Generator, labels: Labels) -> Drawn:
    return (_insertion(rng, labels, size=float(rng.uniform(0.6, 1.1))),)


def _several(rng: np.random.Generator, labels: Labels) -> Drawn:
    """One or two smaller lesions beside what is there."""
    edits: list[Edit] = []
    for _ in range(int(rng.integers(1, 3))):
        edit = _insertion(rng, labels, size=float(rng.uniform(0.4, 0.7)))
        labels = apply(edit, labels)
        edits.append(edit)
    return tuple(edits)


def _ventricles(rng: np.random.Generator, labels: Labels) -> Drawn:
    millimetres = rng.uniform(1.0, 3.5)
    return (VentriclesEnlarged(by=round(max(millimetres / voxel_mm(labels), 0.6), 2)),)


_DRAWS: Final[Mapping[EditKind, Draw]] = {
    EditKind.LARGER: _larger,
    EditKind.SMALLER: _smaller,
    EditKind.MOVED: _moved,
    EditKind.MIRRORED: _mirrored,
    EditKind.ROTATED: _rotated,
    EditKind.REMOVED: _removed,
    EditKind.INSERTED: _inserted,
    EditKind.VENTRICLES: _ventricles,
    EditKind.SEVERAL: _several,
}


def _insertion(rng: np.random.Generator, labels: Labels, *, size: float) -> Inserted:
    drawn = Inserted(
        at=(0, 0, 0), seed=int(rng.integers(2**31)), size=round(size, 2), push=_press(rng)
    )
    radius = drawn.levels(labels).radius
    return drawn.model_copy(update={"at": _place(rng, labels, radius)})


def _press(rng: np.random.Generator) -> float:
    return round(float(rng.uniform(0, 0.55)), 2)


def _any_lesion(rng: np.random.Generator, labels: Labels) -> int:
    return int(rng.integers(len(lesions(labels))))


def _place(rng: np.random.Generator, labels: Labels, radius: float) -> Voxel:
    """Draw a place in white matter where a tumour of that radius could have begun."""
    white = labels == Tissue.WHITE
    fit = white & _hemispheric(labels) & (_away(lesion_mask(labels)) > radius)
    places = np.argwhere(fit if fit.any() else white)
    if not len(places):
        raise BadInput(Problem(name="label map", value="no white matter", wanted="some of it"))
    x, y, z = (int(value) for value in places[rng.integers(len(places))])
    return x, y, z


def _hemispheric(labels: Labels) -> NDArray[np.bool_]:
    mm = voxel_mm(labels)
    deep = _away(np.pad(labels == Tissue.BACKGROUND, 1, constant_values=True))[1:-1, 1:-1, 1:-1]
    across = np.abs(np.arange(labels.shape[0]) - mirror_plane(labels) / 2)[:, None, None]
    fit: NDArray[np.bool_] = (
        (deep * mm > _DEPTH)
        & (_away(labels == Tissue.VENTRICLE) * mm > _OFF_VENTRICLES)
        & (across * mm > _OFF_MIDDLE)
    )
    return fit


def _away(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Distance of every voxel to the mask, voxels; endless where there is none."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(~mask)
    return distance


def _impossible(kind: EditKind, value: str, *, mend: str = "") -> BadInput:
    wanted = "a map that can be edited like that"
    return BadInput(Problem(name=f"edit {kind}", value=value, wanted=wanted, mend=mend))
