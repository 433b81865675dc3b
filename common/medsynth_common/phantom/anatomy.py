"""A healthy brain without its skull: the shape of a head is drawn first, then its tissues are.

Head space is in mm, (x, y, z) to the right, anterior, superior, its origin between the thalami. The
body is built of signed distances; |x| stands for both halves, and a smooth warp of space makes each
head, and each half of it, differ.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from medsynth_common.labels import Tissue
from medsynth_common.phantom import cortex
from medsynth_common.phantom.cortex import Folds, Voxel
from medsynth_common.phantom.fields import Axes, Field, Floats, Triple
from medsynth_common.phantom.shapes import Points, ellipsoid, smooth_max, smooth_min, tube

Labels = NDArray[np.uint8]

#: Half the edge of the box, mm, that holds any head drawn here.
REACH: Final = 105.0

#: Where deep structures lie before warping: |x| below, y and z between; nothing is drawn outside.
_DEEP_BOX: Final = ((-56.0, 56.0), (-76.0, 56.0), (-66.0, 48.0))


@dataclass(frozen=True, kw_only=True)
class Bulge:
    """A mass that pushes tissue away by `strength` in [0, 1), fading over `reach` mm."""

    centre: Triple
    reach: float
    strength: float


@dataclass(frozen=True, kw_only=True)
class Brain:
    """Tissues on a grid.

    Attributes:
        labels: (*grid), a healthy brain.
        depth: (*grid), mm below the outer surface of the cerebrum, cerebellum or brainstem.

    """

    labels: Labels
    depth: Floats


@dataclass(frozen=True, kw_only=True)
class Head:
    """All that was drawn about one person's head, so that it can be put on any grid."""

    radii: Triple
    taper: float
    rotation: Floats
    warp: tuple[Field, Field, Field]
    warp_mm: float
    atrophy: float
    ventricles: float
    asymmetry: float
    folia_phase: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw size, shape, tilt, asymmetry, atrophy and ventricles of one person."""
        atrophy = float(rng.beta(1.3, 2.2))
        low, high = (-REACH,) * 3, (REACH,) * 3
        warp = tuple(Field.draw(rng, low=low, high=high, spacing=46) for _ in range(3))
        return cls(
            radii=(rng.uniform(64, 72), rng.uniform(80, 89), rng.uniform(56, 63)),
            taper=rng.uniform(0.06, 0.16),
            rotation=_tilt(rng.normal(0, (0.03, 0.03, 0.05))),
            warp=(warp[0], warp[1], warp[2]),
            warp_mm=rng.uniform(1.5, 2.8),
            atrophy=atrophy,
            ventricles=float(np.clip(0.85 + 0.75 * atrophy + rng.normal(0, 0.15), 0.65, 1.8)),
            asymmetry=float(rng.normal(0, 0.10)),
            folia_phase=rng.uniform(0, np.pi),
        )

    def points(self, axes: Axes, bulges: tuple[Bulge, ...] = ()) -> Floats:
        """Carry the grid spanned by scanner `axes` (mm) into head space, (3, *grid)."""
        grid = np.stack(np.meshgrid(*axes, indexing="ij"))
        for bulge in bulges:
            centre = np.asarray(bulge.centre, dtype=np.float32).reshape(3, 1, 1, 1)
            offset = grid - centre
            square = np.einsum("i...,i...->...", offset, offset)
            # What is seen at a point comes from nearer the mass: tissue was pushed outwards.
            grid -= offset * (bulge.strength * np.exp(-square / bulge.reach**2))
        for component, field in zip(grid, self.warp, strict=True):
            component += np.float32(self.warp_mm) * field.on(axes)
        turned: Floats = np.tensordot(self.rotation, grid, axes=1)
        return turned

    def hull(self, points: Floats) -> Floats:
        """Distance to the brain's envelope, fluid included (mm, negative inside)."""
        return self._hull_of(*self._bodies(points))

    def brain(self, points: Floats, voxel: Voxel, folds: Folds) -> Brain:
        """Draw every tissue at `points` (3, *grid) of voxels of the given size."""
        cerebrum, cerebellum, stem = self._bodies(points)
        hull = self._hull_of(cerebrum, cerebellum, stem)
        labels = np.full(hull.shape, Tissue.CSF, dtype=np.uint8)
        self._draw_cerebellum(labels, points, cerebrum, cerebellum, voxel)
        self._draw_cerebrum(labels, points, cerebrum, cerebellum, voxel, folds)
        labels[(stem < 0) & (cerebrum > -6)] = Tissue.WHITE
        self._draw_deep(labels, points, voxel)
        labels[hull >= 0] = Tissue.BACKGROUND
        return Brain(labels=labels, depth=-np.minimum(np.minimum(cerebrum, cerebellum), stem))

    def _bodies(self, points: Floats) -> tuple[Floats, Floats, Floats]:
        """Distances to the cerebrum, cerebellum and brainstem."""
        x, y, z = points
        lateral = np.abs(x)
        width, length, _ = self.radii
        tapered = lateral * (1 + np.float32(self.taper / length) * y)
        dome = ellipsoid((tapered, y, z), centre=(0, 0, 8), radii=self.radii)
        dome = smooth_max(dome, -(z + np.float32(17) - np.float32(0.06) * y), 14)
        temporal = ellipsoid(
            (lateral, y, z), centre=(0.62 * width, 6, -22), radii=(0.34 * width, 42, 23)
        )
        cerebrum = smooth_min(dome, temporal, 9)
        notch = np.float32(5) * np.exp(-((lateral / 9) ** 2)) * np.clip(-(y + 50) / 20, 0, 1)
        cerebellum = (
            ellipsoid((lateral, y, z), centre=(0, -0.55 * length, -38), radii=(52, 33, 25)) + notch
        )
        stem = tube(
            (x, y, z),
            nodes=((0, -14, -6), (0, -12, -30), (0, -22, -48), (0, -28, -64)),
            radii=(13, 15.5, 11, 7.5),
        )
        return cerebrum, cerebellum, stem

    def _hull_of(self, cerebrum: Floats, cerebellum: Floats, stem: Floats) -> Floats:
        joined = smooth_min(smooth_min(cerebrum, cerebellum, 9), stem, 9)
        return joined - np.float32(0.8 + 1.2 * self.atrophy)

    def _draw_cerebrum(
        self,
        labels: Labels,
        points: Floats,
        cerebrum: Floats,
        cerebellum: Floats,
        voxel: Voxel,
        folds: Folds,
    ) -> None:
        x, y, z = points
        lateral = np.abs(x)
        traces = folds.trace(points, voxel)
        wander = traces.level
        outer = np.minimum(-cerebrum, (cerebellum - cerebrum) / 2 - np.float32(0.4))
        section = ellipsoid((np.zeros_like(x), y, z), centre=(0, -3, 0), radii=(1e3, 39, 27.5))
        fissure = cortex.distance_to_fissure(x + wander, section, folds.width)
        sylvian = cortex.distance_to_sylvian((lateral + wander, y, z + 3 * wander), folds.width)
        core = ellipsoid((x, y, z), centre=(0, -3, 0), radii=(33, 39, 27.5))
        sulci = folds.distance_to_sulci(traces, np.minimum(outer, fissure), core)
        pial = np.minimum(np.minimum(outer - traces.dimple, fissure), np.minimum(sylvian, sulci))
        inside = cerebrum < 0
        # The base of the shared core faces the cisterns but bears no cortex.
        bare = (section < 3) & (lateral < 14) & (z < 0)
        labels[inside & (pial > 0)] = Tissue.GREY
        labels[inside & ((pial > folds.thickness) | bare)] = Tissue.WHITE

    def _draw_cerebellum(
        self, labels: Labels, points: Floats, cerebrum: Floats, cerebellum: Floats, voxel: Voxel
    ) -> None:
        depth = np.minimum(-cerebellum, (cerebrum - cerebellum) / 2)
        fissures = min(26.0, 80 / voxel.mean)
        folia = cortex.distance_to_folia(
            tuple(points), depth, phase=self.folia_phase, fissures=fissures
        )
        pial = np.minimum(depth, folia - np.float32(0.22 * voxel.mean))
        thickness = max(2.3, 0.9 * voxel.mean)
        labels[(cerebellum < 0) & (pial > 0)] = Tissue.GREY
        labels[(cerebellum < 0) & (pial > thickness)] = Tissue.WHITE

    def _draw_deep(self, labels: Labels, points: Floats, voxel: Voxel) -> None:
        """Draw ventricles and deep grey matter, on the part of the grid that may hold them."""
        near = _bounding_slices(points)
        x, y, z = points[(slice(None), *near)]
        part = labels[near]
        lateral = (np.abs(x), y, z)
        solid = part != Tissue.CSF
        part[solid & (_hippocampus(lateral) < 0)] = Tissue.GREY
        part[solid & (_thalamus(lateral) < 0)] = Tissue.DEEP_GREY
        part[_lentiform(lateral) < 0] = Tissue.DEEP_GREY
        size = self.ventricles * (1 + np.where(x > 0, self.asymmetry, -self.asymmetry))
        part[_lateral_ventricle(lateral, size.astype(np.float32)) < 0] = Tissue.VENTRICLE
        part[_caudate(lateral, self.ventricles) < 0] = Tissue.DEEP_GREY
        # A slit narrower than a voxel would come and go with the grid.
        slit = max(1.6 * self.ventricles, 0.5 * voxel.x)
        third = ellipsoid((x, y, z), centre=(0, -6, -2), radii=(slit, 13, 8))
        adhesion = ellipsoid((x, y, z), centre=(0, -9, 1), radii=(9, 4.5, 4))  # of the thalami
        third = smooth_max(third, -adhesion, 1)
        fourth = ellipsoid((x, y, z), centre=(0, -33, -38), radii=(7, 4.5 * self.ventricles, 9))
        part[np.minimum(third, fourth) < 0] = Tissue.VENTRICLE


def _lateral_ventricle(points: Points, size: Floats) -> Floats:
    """Frontal horn, body, atrium, occipital and temporal horn of the lateral ventricle."""
    x, y, z = points
    roof = tube(
        # Taller than wide: a horn is a cleft beside the septum, not a pipe.
        (x * np.float32(1.25), y, z * np.float32(0.85)),
        nodes=((17, 32, 3), (9, 20, 9), (8.5, 2, 16), (14, -18, 16), (27, -34, 8), (27, -56, 5)),
        radii=(2.2, 5.2, 4.8, 4.8, 6.2, 2.0),
    )
    horn = tube(points, nodes=((24, -33, 5), (34, -22, -11), (31, -2, -20)), radii=(4.5, 2.2, 1.6))
    # Bigger ventricles swell about their walls; the wall moves by what 3.5 mm of radius would.
    swell = np.float32(3.6) * (size - 1)
    # They never swell across the septum, two thin membranes in the midline.
    septum = np.float32(1.3) - x
    return smooth_max(smooth_min(roof, horn, 3) - swell, septum, 1)


def _caudate(points: Points, ventricles: float) -> Floats:
    """The caudate's head bulges into the frontal horn; its body rides along the ventricle."""
    shift = 2.2 * (ventricles - 1)
    return tube(
        points,
        nodes=((15 + shift, 23, 3), (16 + shift, 10, 12), (18 + shift, -8, 19), (23, -24, 17)),
        radii=(5.6, 5.0, 3.0, 1.4),
    )


def _lentiform(points: Points) -> Floats:
    """Putamen and pallidum: a lens between the insula and the internal capsule."""
    x, y, z = points
    turned = x + np.float32(0.28) * (y - 2)
    return ellipsoid((turned, y, z), centre=(26, 2, 1), radii=(6.8, 18, 11))


def _thalamus(points: Points) -> Floats:
    """An egg beside the third ventricle, its hind end further out."""
    x, y, z = points
    turned = x + np.float32(0.30) * (y + 16)
    return ellipsoid((turned, y, z), centre=(10.5, -16, 5), radii=(8.0, 14.5, 9))


def _hippocampus(points: Points) -> Floats:
    """Hippocampus and amygdala, on the floor of the temporal horn."""
    return tube(points, nodes=((24, -30, -6), (27, -16, -18), (23, 2, -21)), radii=(3, 4.2, 6))


def _bounding_slices(points: Floats) -> tuple[slice, slice, slice]:
    """Find the smallest block of the grid that holds every point of the deep box."""
    inside = np.ones(points.shape[1:], dtype=bool)
    for coordinate, (low, high) in zip(points, _DEEP_BOX, strict=True):
        inside &= (coordinate > low) & (coordinate < high)
    spans = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        held = np.flatnonzero(inside.any(axis=others))
        spans.append(slice(int(held[0]), int(held[-1]) + 1))
    return spans[0], spans[1], spans[2]


def _tilt(angles: NDArray[np.float64]) -> Floats:
    """Give the rotation by small `angles` (rad) about x, then y, then z, (3, 3)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [other for other in range(3) if other != axis]
        turn = np.eye(3)
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix.astype(np.float32)
