"""A lesion as three nested level sets, so that an edit is arithmetic on distances.

`solid` is core and rim together; `core` lies in it and it lies in `whole`. Growing subtracts from
the distances, moving shifts them, rotating resamples them: what comes out has smooth borders and
keeps its order, which scaling or rotating the label values themselves does not.
"""

from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medsynth_common.labels import REGION_TISSUES, TUMOUR, Region, Tissue
from medsynth_common.phantom.anatomy import Labels
from medsynth_common.phantom.fields import Floats

Mask = NDArray[np.bool_]
Voxel = tuple[int, int, int]
Block = tuple[slice, slice, slice]

#: The distance to what is not there, voxels; float32 still adds fractions to it.
FAR: Final = np.float32(1000)
#: What a lesion never grew into, and the reach of the closing that mends it, in lesion radii.
_NO_TISSUE: Final = (Tissue.BACKGROUND, Tissue.CSF, Tissue.VENTRICLE)
_CLOSING: Final = 0.8


@dataclass(frozen=True, kw_only=True, eq=False)
class Levels:
    """A lesion in a cube around its centre, which need not lie inside the grid.

    Attributes:
        centre: the voxel that the cube is centred on.
        whole: signed distance, in voxels, to the surface of the whole lesion; negative inside.
            (edge, edge, edge) with an odd edge.
        solid: the same for core and enhancing rim.
        core: the same for the core.

    """

    centre: Voxel
    whole: Floats
    solid: Floats
    core: Floats

    @classmethod
    def of(cls, labels: Labels, lesion: Mask, *, growth: float = 1.0) -> Self:
        """Measure the lesion in the mask `lesion` of `labels`, with room to grow that much."""
        places = np.argwhere(lesion)
        x, y, z = (int(middle) for middle in np.rint(places.mean(axis=0)))
        reach = float(np.linalg.norm(places - (x, y, z), axis=1).max())
        radius = int(np.ceil(reach * max(growth, 1.0))) + 2
        cut = np.pad(np.where(lesion, labels, 0), radius)[
            x : x + 2 * radius + 1, y : y + 2 * radius + 1, z : z + 2 * radius + 1
        ]
        return cls(
            centre=(x, y, z),
            whole=signed_distance(np.isin(cut, TUMOUR)),
            solid=signed_distance(np.isin(cut, REGION_TISSUES[Region.CORE])),
            core=signed_distance(cut == Tissue.CORE),
        )

    @property
    def radius(self) -> float:
        """Radius of a ball of the solid part's volume, voxels; the lesion's where none is solid."""
        return radius_of(self.solid) or radius_of(self.whole)

    def at(self, centre: Voxel) -> "Levels":
        """The same lesion elsewhere."""
        return replace(self, centre=centre)

    def mirrored(self, *, plane: int) -> "Levels":
        """The lesion on the other side: voxel x goes to `plane` - x."""
        x, y, z = self.centre
        flipped = {name: np.ascontiguousarray(level[::-1]) for name, level in self._all().items()}
        return Levels(centre=(plane - x, y, z), **flipped)

    def rotated(self, degrees: tuple[float, float, float]) -> "Levels":
        """The lesion turned about the x, then the y, then the z axis through its centre."""
        matrix = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix().T
        middle = np.full(3, self.whole.shape[0] // 2)
        turned = {
            name: ndimage.affine_transform(
                level, matrix, offset=middle - matrix @ middle, order=1, cval=FAR
            )
            for name, level in self._all().items()
        }
        return Levels(centre=self.centre, **turned)

    def unbitten(self, labels: Labels) -> "Levels":
        """The lesion as it would be had fluid, or the brain's surface, not bitten into it here.

        Elsewhere the bite would be a hole. It is closed where there is no parenchyma in `labels`,
        and the rim that lined it becomes core.
        """
        radius = self.whole.shape[0] // 2
        cut = np.pad(labels, radius)[
            tuple(slice(middle, middle + 2 * radius + 1) for middle in self.centre)
        ]
        bite = np.isin(cut, _NO_TISSUE)
        size = _CLOSING * self.radius
        solid = (self.solid < 0) | (bite & _closed(self.solid, size))
        inner = signed_distance(solid)
        rim = self.radius - radius_of(self.core)
        lining = signed_distance(bite) < rim
        core = (self.core < 0) | (lining & _closed(self.core, size) & (inner < -rim))
        whole = (self.whole < 0) | (bite & _closed(self.whole, size))
        return Levels(
            centre=self.centre,
            whole=signed_distance(whole | solid),
            solid=inner,
            core=signed_distance(core & solid),
        )

    def resized(self, factor: float) -> "Levels":
        """The lesion with every border moved out (factor above 1) or in.

        Each of the three bodies grows or wastes evenly over its surface, until its volume has
        changed by the cube of the factor; a ball is scaled, a ragged body swells. None wastes
        away altogether, nor does a part of a lesion outlive what it lies in.
        """
        core, solid, whole = (
            level - np.float32(_step(level, factor))
            for level in (self.core, self.solid, self.whole)
        )
        return Levels(
            centre=self.centre,
            whole=np.minimum(whole, solid),
            solid=solid,
            core=np.maximum(core, solid),
        )

    def on(self, shape: tuple[int, ...]) -> tuple[Block, "Levels"]:
        """Cut off what lies beyond a grid of `shape`; also gives the block of the grid it is."""
        block, part = [], []
        radius = self.whole.shape[0] // 2
        for middle, edge in zip(self.centre, shape, strict=True):
            low, high = max(middle - radius, 0), min(middle + radius + 1, edge)
            block.append(slice(low, max(high, low)))
            part.append(slice(low - middle + radius, max(high, low) - middle + radius))
        held = (part[0], part[1], part[2])
        cut = {name: level[held] for name, level in self._all().items()}
        return (block[0], block[1], block[2]), Levels(centre=self.centre, **cut)

    def _all(self) -> dict[str, Floats]:
        return {"whole": self.whole, "solid": self.solid, "core": self.core}


def signed_distance(mask: Mask) -> Floats:
    """Distance of every voxel's centre to the mask's surface, voxels, negative inside."""
    if not mask.any():
        return np.full(mask.shape, FAR)
    distance: Floats = np.where(mask, -_outside(~mask), _outside(mask))
    return distance


def _outside(mask: Mask) -> Floats:
    """Distance of the voxels outside the mask to its surface, voxels; inside it means nothing."""
    distance: Floats = (ndimage.distance_transform_edt(~mask) - 0.5).astype(np.float32)
    return distance


def _closed(level: Floats, size: float) -> Mask:
    """Close the gaps in a body that are narrower than about twice `size` voxels."""
    margin = int(np.ceil(size)) + 2  # beyond the block there is nothing, and that must be seen
    body = np.pad(level < 0, margin)
    if not body.any():
        return np.zeros(level.shape, dtype=bool)
    grown = body | (_outside(body) < size)
    closed: Mask = -_outside(~grown) < -size
    return closed[(slice(margin, -margin),) * 3]


def radius_of(level: Floats) -> float:
    """Radius of a ball as large as the body, voxels."""
    return float(np.cbrt(0.75 / np.pi * np.count_nonzero(level < 0)))


def _step(level: Floats, factor: float) -> float:
    """How far the border moves for the volume to change by the cube of `factor`, voxels."""
    size = np.count_nonzero(level < 0)
    if size == 0:
        return 0.0
    order = min(max(round(size * factor**3), 1), level.size - 1)
    border = float(np.partition(level, order, axis=None)[order])
    if factor > 1:
        return border + 0.01  # with all that are as far, so that it always grows
    return max(border, float(level.min()) + 0.01)  # without them, but never without the deepest
