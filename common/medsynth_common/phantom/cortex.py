"""The folded surface of the brain: how far each point lies below the nearest grey-matter surface.

The cortex is one sheet of even thickness, laid over everything that faces cerebrospinal fluid: the
outer surface, the fissures, and the sulci. Sulci are sheets that follow the zero level of ripples
on the surface and dive towards the hemisphere's centre, each to its own depth.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from medsynth_common.phantom.fields import Floats, Ripples
from medsynth_common.phantom.shapes import Points

#: A hemisphere's skeleton, mm: an upright plate from which sulci fan out, so that they meet the
#: outer surface and the medial wall alike at about a right angle.
_PLATE_X: Final = 27.0
_PLATE_Y: Final = (-48.0, 44.0)
_PLATE_Z: Final = (0.0, 36.0)
#: Typical distance from the plate to the surface, mm.
_PLATE_TO_SURFACE: Final = 32.0


@dataclass(frozen=True, kw_only=True)
class Voxel:
    """The size of a voxel, mm; what is thinner than a voxel is drawn about a voxel thick."""

    x: float
    y: float
    z: float

    @property
    def mean(self) -> float:
        """Edge of the cube of the same volume, mm."""
        return float((self.x * self.y * self.z) ** (1 / 3))


@dataclass(frozen=True, kw_only=True)
class Folds:
    """One brain's folding.

    Attributes:
        ripples: whose zero level the sulci follow.
        depths: how deep each sulcus dives, as ripples of mean 0 and SD 1.
        width: half width of a sulcus at its mouth, mm.
        thickness: of the cortex, mm.

    """

    ripples: Ripples
    depths: Ripples
    width: float
    thickness: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, voxel: Voxel, atrophy: float) -> Self:
        """Draw a folding; on a coarse grid gyri are fewer, so that each is still resolved."""
        wavelength = max(rng.uniform(26, 32), 13.0 * voxel.mean)
        return cls(
            ripples=Ripples.draw(rng, wavelength=wavelength, reach=110),
            depths=Ripples.draw(rng, wavelength=2 * wavelength, reach=110),
            width=max(0.4 + 0.7 * atrophy, 0.33 * voxel.mean),
            thickness=max(rng.uniform(2.8, 3.4) - 0.5 * atrophy, 0.95 * voxel.mean),
        )

    def trace(self, points: Floats, voxel: Voxel) -> "Traces":
        """Follow the folds through `points` (3, *grid), mm."""
        surface = _towards_surface(points)
        level = self.ripples.at(surface)
        slopes = np.gradient(level, voxel.x, voxel.y, voxel.z)
        steepness = np.sqrt(sum(s * s for s in slopes)) + np.float32(1e-3)
        floor = np.float32(13.5) + np.float32(4.5) * np.clip(self.depths.at(surface), -1.7, 2)
        return Traces(level=level, sheet=np.abs(level) / steepness, floor=floor)

    def distance_to_sulci(self, traces: "Traces", depth: Floats, shared: Floats) -> Floats:
        """Distance in mm to the fluid of the nearest sulcus, negative inside it.

        Args:
            traces: of the folds on the grid.
            depth: mm below the outer surface or the medial wall, (*grid).
            shared: distance to the core that both halves share, into which no sulcus goes.

        """
        below = np.maximum(np.maximum(depth - traces.floor, -shared), 0)
        # A sulcus is a cleft that opens towards its mouth.
        opening = np.clip(1.4 - 0.8 * depth / traces.floor, 0.75, 1.4)
        distance: Floats = np.hypot(traces.sheet, below) - np.float32(self.width) * opening
        return distance


@dataclass(frozen=True, kw_only=True)
class Traces:
    """The folds on a grid, each (*grid).

    Attributes:
        level: of the ripples, SD about 1.
        sheet: distance to the middle of the nearest sulcus, mm.
        floor: how deep that sulcus dives, mm.

    """

    level: Floats
    sheet: Floats
    floor: Floats

    @property
    def dimple(self) -> Floats:
        """How much the surface dips towards its sulci, mm: gyri are round, not cut."""
        dip: Floats = np.float32(1.6) * np.exp(-((self.level / np.float32(0.4)) ** 2))
        return dip


def _towards_surface(points: Floats) -> Floats:
    """Slide every point away from its hemisphere's plate towards the surface."""
    side = np.where(points[0] < 0, np.float32(-1), np.float32(1))
    plate = np.empty_like(points)
    plate[0] = side * np.float32(_PLATE_X)
    np.clip(points[1], *_PLATE_Y, out=plate[1])
    np.clip(points[2], *_PLATE_Z, out=plate[2])
    rays = points - plate
    level = np.sqrt(np.einsum("i...,i...->...", rays, rays)) / np.float32(_PLATE_TO_SURFACE)
    # Not all the way: sulci that bend with depth look grown, straight ones look cut.
    rays /= np.maximum(level, np.float32(0.2)) ** np.float32(0.75)
    return plate + rays


def distance_to_fissure(x: Floats, midline_core: Floats, width: float) -> Floats:
    """Distance to the interhemispheric fissure, which stops at the corpus callosum.

    `midline_core` is the distance to the region that the two halves share.
    """
    inside = np.maximum(-midline_core, 0)
    distance: Floats = np.sqrt(x * x + inside * inside) - np.float32(width)
    return distance


def distance_to_sylvian(points: Points, width: float) -> Floats:
    """Distance to the Sylvian fissure and to the fluid over the insula, on |x|, y, z."""
    lateral, y, z = points
    across = (z + 5 + np.float32(0.38) * y) * np.float32(0.935)  # it climbs backwards
    along = np.maximum(np.abs(y - 2) - 33, 0)
    mouth = np.sqrt(across**2 + np.maximum(38 - lateral, 0) ** 2 + along**2)
    bank = np.maximum(np.abs(across) - 11, 0)
    insula = np.sqrt((lateral - 39) ** 2 + bank**2 + np.maximum(np.abs(y - 4) - 22, 0) ** 2)
    distance: Floats = np.minimum(mouth - np.float32(1.4 * width), insula - np.float32(1.2 * width))
    return distance


def distance_to_folia(points: Points, depth: Floats, *, phase: float, fissures: float) -> Floats:
    """Distance to the cerebellum's fissures, which fan out from the fourth ventricle."""
    x, y, z = points
    behind, above = y + 26, z + 36 + np.float32(0.006) * x * x
    angle = np.arctan2(above, -behind)
    radius = np.sqrt(behind * behind + above * above)
    turns = np.float32(fissures / 2)
    sheet = np.abs(np.sin(angle * turns + np.float32(phase))) * radius / turns
    below = np.maximum(depth - 14, 0)
    distance: Floats = np.sqrt(sheet * sheet + below * below)
    return distance
