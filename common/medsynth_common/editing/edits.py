"""The edits: drawn parameters as values that can be logged, and what each does to a label map.

An edit is a pure function of its own fields and the map: the same edit replayed on the same map
gives the same bytes. Places and lengths are in voxels of the map; lesions are counted from the
largest, which is 0. A map is never changed in place; shape and dtype are kept.
"""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Annotated, Final, Literal

import numpy as np
from pydantic import Field, TypeAdapter
from scipy import ndimage

from medsynth_common.editing.healing import healed, mirror_plane
from medsynth_common.editing.levels import Levels, Mask, Voxel, signed_distance
from medsynth_common.editing.rules import lay, no_room, push, voxel_mm
from medsynth_common.errors import BadInput, Problem
from medsynth_common.labels import TUMOUR, Tissue
from medsynth_common.phantom.anatomy import Brain, Labels
from medsynth_common.phantom.fields import Axes
from medsynth_common.phantom.tumour import Lesion
from medsynth_common.privacy.mechanism import Value

#: A mass pushes what is within so many of its radii.
_PUSH_REACH: Final = 1.8
_TOUCHING: Final = np.ones((3, 3, 3), dtype=bool)

Number = Annotated[int, Field(ge=0)]
#: How hard a mass presses: 0 not at all; 1 would press its centre's tissue all the way out.
Push = Annotated[float, Field(ge=0, le=0.8)]


class _OfLesion(Value):
    """An edit of one lesion."""

    lesion: Number = 0

    def apply(self, labels: Labels) -> Labels:
        """Give the edited map. Raises `BadInput` where the edit cannot be made."""
        every = lesions(labels)
        if self.lesion >= len(every):
            raise BadInput(
                Problem(
                    name=f"edit {self.kind}",  # type: ignore[attr-defined]  # every edit has one
                    value=f"lesion {self.lesion} of {len(every)}",
                    wanted="a map with that lesion (0 is the largest)",
                    mend="insert one first, or choose another map",
                )
            )
        mine = every[self.lesion]
        return self._edited(labels, mine, healed(labels, mine))

    @abstractmethod
    def _edited(self, labels: Labels, mine: Mask, healthy: Labels) -> Labels:
        """Give the edited map of `labels`, whose lesion `mine` is no longer in `healthy`."""


class Resized(_OfLesion):
    """A lesion larger (factor above 1) or smaller: the factor is that of its radius."""

    kind: Literal["resized"] = "resized"
    factor: float = Field(ge=0.3, le=3)

    def _edited(self, labels: Labels, mine: Mask, healthy: Labels) -> Labels:
        levels = Levels.of(labels, mine, growth=self.factor).resized(self.factor)
        result = lay(healthy, levels, kept=mine)
        before, after = np.count_nonzero(mine), np.count_nonzero(lesion_mask(result))
        others = np.count_nonzero(lesion_mask(labels)) - before
        grown = after - others - before
        if grown * (self.factor - 1) <= 0:
            raise BadInput(
                Problem(
                    name="edit resized",
                    value=f"a lesion of {before} voxels that cannot change by {self.factor:g}",
                    wanted="one with room to grow or voxels to lose",
                    mend="choose a factor further from 1, or another lesion",
                )
            )
        return result


class Moved(_OfLesion):
    """A lesion in another place, pressing on what is there."""

    kind: Literal["moved"] = "moved"
    to: Voxel
    push: Push = 0.0

    def _edited(self, labels: Labels, mine: Mask, healthy: Labels) -> Labels:
        return _place(healthy, Levels.of(labels, mine).unbitten(labels).at(self.to), self.push)


class Mirrored(_OfLesion):
    """A lesion on the other side of the brain, as in a mirror."""

    kind: Literal["mirrored"] = "mirrored"

    def _edited(self, labels: Labels, mine: Mask, healthy: Labels) -> Labels:
        return lay(
            healthy, Levels.of(labels, mine).unbitten(labels).mirrored(plane=mirror_plane(labels))
        )


class Rotated(_OfLesion):
    """A lesion turned in its place, about the x, then the y, then the z axis."""

    kind: Literal["rotated"] = "rotated"
    degrees: tuple[float, float, float]

    def _edited(self, labels: Labels, mine: Mask, healthy: Labels) -> Labels:
        return lay(healthy, Levels.of(labels, mine).unbitten(labels).rotated(self.degrees))


class Removed(_OfLesion):
    """A lesion gone, and healthy tissue in its place."""

    kind: Literal["removed"] = "removed"

    def _edited(self, labels: Labels, mine: Mask, healthy: Labels) -> Labels:
        return healthy


class Inserted(Value):
    """A new, procedural lesion; `seed` draws its size and shape as those of phantoms are drawn."""

    kind: Literal["inserted"] = "inserted"
    at: Voxel
    seed: Number
    size: float = Field(default=1.0, ge=0.3, le=1.5)
    push: Push = 0.0

    def apply(self, labels: Labels) -> Labels:
        """Give the edited map. Raises `BadInput` where there is no room."""
        return _place(labels, self.levels(labels), self.push)

    def levels(self, labels: Labels) -> Levels:
        """Draw the lesion, sized for the brain in `labels`."""
        return drawn_lesion(self.seed, size=self.size, mm=voxel_mm(labels)).at(self.at)


class VentriclesEnlarged(Value):
    """Ventricles that reach `by` voxels further into white matter, half as far into deep grey.

    They keep off the cortex and its fluid by a voxel, and never take a tumour's place.
    """

    kind: Literal["ventricles"] = "ventricles"
    by: float = Field(gt=0.5, le=20)

    def apply(self, labels: Labels) -> Labels:
        """Give the edited map. Raises `BadInput` where there is no ventricle, or no room."""
        ventricles = labels == Tissue.VENTRICLE
        thin = ndimage.binary_dilation(
            np.isin(labels, (Tissue.BACKGROUND, Tissue.CSF, Tissue.GREY)), border_value=1
        )
        away = signed_distance(ventricles)
        room = (labels == Tissue.WHITE) & (away < self.by)
        room |= (labels == Tissue.DEEP_GREY) & (away < self.by / 2)
        enlarged = ndimage.binary_propagation(ventricles, mask=ventricles | (room & ~thin))
        if not (enlarged & ~ventricles).any():
            value = "no room around the ventricles" if ventricles.any() else "no ventricle"
            raise BadInput(
                Problem(name="edit ventricles", value=value, wanted="a map where they can grow")
            )
        result = labels.copy()
        result[enlarged] = Tissue.VENTRICLE
        return result


Edit = Annotated[
    Resized | Moved | Mirrored | Rotated | Removed | Inserted | VentriclesEnlarged,
    Field(discriminator="kind"),
]
#: Reads what `model_dump` wrote: `EDITS.validate_json(text)` can be replayed by `apply_all`.
EDITS: Final[TypeAdapter[tuple[Edit, ...]]] = TypeAdapter(tuple[Edit, ...])


def apply(edit: Edit, labels: Labels) -> Labels:
    """Make one edit.

    Args:
        edit: what to do.
        labels: `Tissue` values (x, y, z), not changed.

    Returns:
        A new map of the same shape and type.

    Raises:
        BadInput: the map cannot be edited like that: no such lesion, no room, no brain.

    Example:
        >>> apply(Resized(factor=1.5), labels)

    """
    return edit.apply(labels)


def apply_all(edits: Iterable[Edit], labels: Labels) -> Labels:
    """Make several edits, each on what the one before it left; see `apply`."""
    for edit in edits:
        labels = edit.apply(labels)
    return labels


def lesion_mask(labels: Labels) -> Mask:
    """Mark all tumour."""
    mask: Mask = np.isin(labels, TUMOUR)
    return mask


def lesions(labels: Labels) -> list[Mask]:
    """Part the tumour into lesions that do not touch, the largest first."""
    pieces, count = ndimage.label(lesion_mask(labels), structure=_TOUCHING)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    return [pieces == number + 1 for number in np.argsort(-sizes, kind="stable")]


def drawn_lesion(seed: int, *, size: float, mm: float) -> Levels:
    """Draw a lesion as phantoms have it, in voxels of `mm`; the same seed draws the same."""
    lesion = Lesion.draw(
        np.random.default_rng([seed]), centre=(0.0, 0.0, 0.0), scale=size, finest=mm
    )
    radius = int(np.ceil(lesion.extent / mm)) + 1
    axis = (np.arange(-radius, radius + 1) * mm).astype(np.float32)
    axes: Axes = (axis, axis, axis)
    labels = np.full((len(axis),) * 3, Tissue.WHITE, dtype=np.uint8)
    # All white matter, however deep: what the anatomy allows is for `lay` to say.
    lesion.carve(Brain(labels=labels, depth=np.full(labels.shape, np.inf, dtype=np.float32)), axes)
    return Levels.of(labels, lesion_mask(labels))


def _place(healthy: Labels, levels: Levels, strength: float) -> Labels:
    """Put a lesion where it was not: its centre in tissue, and its surroundings pushed away."""
    where = levels.centre
    inside = all(0 <= middle < edge for middle, edge in zip(where, healthy.shape, strict=True))
    if not inside or healthy[where] not in (Tissue.WHITE, Tissue.GREY, Tissue.DEEP_GREY):
        raise no_room(where)
    pushed = push(healthy, where, reach=_PUSH_REACH * levels.radius, strength=strength)
    return lay(pushed, levels)
