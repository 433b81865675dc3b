"""One patient's label map: a head, put on a grid that it fills, with its tumours."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import ndimage

from medsynth_common.errors import BadInput, Problem
from medsynth_common.labels import Tissue
from medsynth_common.phantom import tumour
from medsynth_common.phantom.anatomy import REACH, Brain, Bulge, Head, Labels
from medsynth_common.phantom.cortex import Folds, Voxel
from medsynth_common.phantom.fields import Axes, Floats, Triple
from medsynth_common.phantom.tumour import Lesion

Shape = tuple[int, int, int]

#: Grid edges, in voxels, that a brain can be drawn on.
SMALLEST: Final = 24
LARGEST: Final = 256
#: No more tumours than find room.
MOST_TUMOURS: Final = 8
#: How much of the grid the brain spans along each axis.
_FILL: Final = (0.88, 0.94)
_PREVIEW_EDGE: Final = 40


def draw_labels(rng: np.random.Generator, shape: Shape, *, tumours: int | None = None) -> Labels:
    """Draw one patient's label map.

    Args:
        rng: all of the patient comes from it; an equal generator gives an equal map.
        shape: grid, each edge 24 to 256 voxels; the brain spans about nine tenths of each.
        tumours: how many; None draws it (mostly one, none in about one of eight).

    Returns:
        uint8 `Tissue` values, `shape`, axes pointing right, anterior, superior.

    Raises:
        BadInput: an edge or the number of tumours is out of range.

    """
    _check(shape, tumours)
    head = Head.draw(rng)
    axes = _frame(head, shape, rng)
    voxel = _voxel(axes)
    folds = Folds.draw(rng, voxel=voxel, atrophy=head.atrophy)
    wanted = tumour.count(rng) if tumours is None else tumours
    lesions, bulges = _draw_lesions(rng, head, folds, wanted, voxel)
    brain = head.brain(head.points(axes, bulges), voxel, folds)
    for lesion in lesions:
        lesion.carve(brain, axes)
    return brain.labels


def _check(shape: Shape, tumours: int | None) -> None:
    problems = []
    if len(shape) != 3 or not all(SMALLEST <= edge <= LARGEST for edge in shape):
        problems.append(
            Problem(
                name="phantom shape",
                value=str(tuple(shape)),
                wanted=f"three edges of {SMALLEST} to {LARGEST} voxels",
            )
        )
    if tumours is not None and not 0 <= tumours <= MOST_TUMOURS:
        problems.append(
            Problem(name="tumours", value=str(tumours), wanted=f"a number from 0 to {MOST_TUMOURS}")
        )
    if problems:
        raise BadInput(problems)


def _preview_axes() -> Axes:
    axis = np.linspace(-REACH, REACH, _PREVIEW_EDGE, dtype=np.float32)
    return axis, axis, axis


def _frame(head: Head, shape: Shape, rng: np.random.Generator) -> Axes:
    """Fit a grid around the head: its voxel centres along each axis, mm."""
    coarse = _preview_axes()
    hull = head.hull(head.points(coarse))
    axes = []
    for axis, edge in enumerate(shape):
        others = tuple(other for other in range(3) if other != axis)
        low, high = _span(coarse[axis], hull.min(axis=others))
        field_of_view = (high - low) / rng.uniform(*_FILL)
        # Nobody lies quite in the middle.
        slack = field_of_view - (high - low)
        start = low - slack * rng.uniform(0.42, 0.58)
        step = field_of_view / edge
        axes.append((start + step * (np.arange(edge) + 0.5)).astype(np.float32))
    return axes[0], axes[1], axes[2]


def _span(axis: Floats, distance: Floats) -> tuple[float, float]:
    """Find where the profile `distance` along `axis` first and last crosses zero."""
    inside = np.flatnonzero(distance < 0)
    first, last = int(inside[0]), int(inside[-1])
    low = np.interp(0, [distance[first], distance[first - 1]], [axis[first], axis[first - 1]])
    high = np.interp(0, [distance[last], distance[last + 1]], [axis[last], axis[last + 1]])
    return float(low), float(high)


def _voxel(axes: Axes) -> Voxel:
    x, y, z = (float(axis[1] - axis[0]) for axis in axes)
    return Voxel(x=x, y=y, z=z)


@dataclass(frozen=True, kw_only=True)
class _Sites:
    """Where a tumour may grow: places (n, 3) in mm and how deep each lies, (n,)."""

    places: Floats
    depths: Floats

    @classmethod
    def of(cls, head: Head, folds: Folds) -> "_Sites":
        axes = _preview_axes()
        brain: Brain = head.brain(head.points(axes), _voxel(axes), folds)
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        # The white matter of the hemispheres, not what lies between the ventricles and below.
        central = (np.abs(grid[..., 0]) < 19) & (grid[..., 2] < 34)
        step = float(axes[0][1] - axes[0][0])
        clear = ndimage.distance_transform_edt(brain.labels != Tissue.VENTRICLE) * step > 11
        fit = (brain.labels == Tissue.WHITE) & (brain.depth > 9) & clear & ~central
        return cls(places=grid[fit], depths=brain.depth[fit])

    def apart_from(self, lesions: list[Lesion]) -> "_Sites":
        """Keep the places well away from `lesions`, or all where there is no such place."""
        gaps = np.full(len(self.places), np.inf)
        for lesion in lesions:
            offsets = self.places - np.asarray(lesion.centre, dtype=np.float32)
            gaps = np.minimum(gaps, np.linalg.norm(offsets, axis=1) - 1.6 * lesion.radius)
        free = gaps > 14
        if not free.any():
            return self
        return _Sites(places=self.places[free], depths=self.depths[free])


def _draw_lesions(
    rng: np.random.Generator, head: Head, folds: Folds, wanted: int, voxel: Voxel
) -> tuple[tuple[Lesion, ...], tuple[Bulge, ...]]:
    """Draw the tumours, the first the largest as a rule, and the mass effect of each."""
    if wanted == 0:
        return (), ()
    sites = _Sites.of(head, folds)
    lesions: list[Lesion] = []
    bulges: list[Bulge] = []
    finest = max(voxel.x, voxel.y, voxel.z)
    for number in range(wanted):
        free = sites.apart_from(lesions)
        chosen = int(rng.integers(len(free.places)))
        jitter = rng.uniform(-2.5, 2.5, 3)
        x, y, z = (float(value) for value in free.places[chosen] + jitter)
        centre: Triple = (x, y, z)
        scale = 1.0 if number == 0 else 0.6
        lesion = Lesion.draw(rng, centre=centre, scale=scale, finest=finest)
        lesions.append(lesion)
        bulges.append(lesion.bulge(float(free.depths[chosen]), float(rng.uniform(0, 0.55))))
    return tuple(lesions), tuple(bulges)
