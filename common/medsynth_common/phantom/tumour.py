"""Tumours: a necrotic core in an enhancing rim, with oedema that creeps along white matter.

Each lesion is drawn first (where, how large, how ragged, how thick a rim) and then carved into the
anatomy. What always holds, on any grid: tumour never reaches into a ventricle or out of the brain;
core touches only rim, oedema, or itself.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from scipy import ndimage

from medsynth_common.labels import TUMOUR, Tissue
from medsynth_common.phantom.anatomy import Brain, Bulge, Labels
from medsynth_common.phantom.fields import Axes, Field, Floats, Triple

#: How far oedema goes in each tissue, relative to white matter: U-fibres and cortex hold it back.
OEDEMA_REACH: Final = {Tissue.WHITE: 1.0, Tissue.DEEP_GREY: 0.45, Tissue.GREY: 0.30}
#: What a solid tumour may replace; sulcal fluid too, which a mass squeezes away.
INVADED: Final = (Tissue.WHITE, Tissue.GREY, Tissue.DEEP_GREY, Tissue.CSF, *TUMOUR)
#: Fluid this close (mm) under the surface is the skin of the brain and stays.
SKIN: Final = 2.5
#: Relative frequency of 0, 1, 2 and 3 tumours.
_COUNTS: Final = (0.12, 0.70, 0.13, 0.05)


@dataclass(frozen=True, kw_only=True)
class Lesion:
    """One tumour, drawn but not yet on a grid; lengths in mm, fields in scanner coordinates.

    Attributes:
        centre: where it sits.
        radius: mean radius of core and rim together.
        metric: (3, 3), turns an offset into one in which the solid part is round.
        ragged: what makes its surface uneven, SD about 1; `raggedness` is its relative size.
        rim: mean thickness of the enhancing rim; `rim_field` makes it uneven and `rim_gap` is the
            level of that field under which it is missing.
        oedema: mean reach of oedema into white matter; `oedema_field` makes it uneven.

    """

    centre: Triple
    radius: float
    metric: Floats
    ragged: Field
    raggedness: float
    rim: float
    rim_field: Field
    rim_gap: float
    oedema: float
    oedema_field: Field

    @property
    def extent(self) -> float:
        """No part of the lesion is further than this from its centre, mm."""
        return 2.0 * self.radius + 2.2 * self.oedema

    def bulge(self, depth: float, strength: float) -> Bulge:
        """Give the mass effect of this lesion lying `depth` mm under the surface."""
        # The skull does not give: what is pushed must have come to rest before it.
        return Bulge(
            centre=self.centre, reach=min(1.6 * self.radius, depth / 1.5), strength=strength
        )

    @classmethod
    def draw(cls, rng: np.random.Generator, *, centre: Triple, scale: float, finest: float) -> Self:
        """Draw a lesion at `centre`; no smaller than a grid of voxels of `finest` mm can show."""
        radius = scale * float(np.clip(rng.lognormal(np.log(17), 0.38), 7, 30))
        radius = max(radius, 2.2 * finest)
        low = tuple(c - 4 * radius - 60 for c in centre)
        high = tuple(c + 4 * radius + 60 for c in centre)
        box = {"low": (low[0], low[1], low[2]), "high": (high[0], high[1], high[2])}
        return cls(
            centre=centre,
            radius=radius,
            metric=_stretch(rng),
            ragged=Field.draw(rng, **box, spacing=max(0.55 * radius, 4.0)),
            raggedness=rng.uniform(0.08, 0.20),
            rim=max(radius * rng.uniform(0.12, 0.32), 1.0 * finest),
            rim_field=Field.draw(rng, **box, spacing=max(0.6 * radius, 4.0)),
            rim_gap=rng.uniform(-3.0, -0.9),
            oedema=float(np.clip(rng.lognormal(np.log(12), 0.45), 4, 22)),
            oedema_field=Field.draw(rng, **box, spacing=12.0),
        )

    def carve(self, brain: Brain, axes: Axes) -> None:
        """Write the lesion into `brain.labels`, in place."""
        block = _block(axes, self.centre, self.extent)
        near = (axes[0][block[0]], axes[1][block[1]], axes[2][block[2]])
        labels, depth = brain.labels[block], brain.depth[block]
        surface = self._surface(near)  # mm to the surface of the solid part, negative inside
        solid = self._solid(surface, labels, depth)
        if not solid.any():
            return
        oedema = self._oedema(surface, solid, labels, near)
        uneven = self.rim_field.on(near)
        thickness = np.float32(self.rim) * np.exp(np.float32(0.3) * uneven)
        # The thickest rim still leaves a core.
        thickness = np.minimum(thickness, np.float32(0.5 * self.radius))
        thickness = np.where(uneven < self.rim_gap, np.float32(0), thickness)
        core = solid & (surface < -thickness)
        labels[oedema] = Tissue.OEDEMA
        labels[solid] = Tissue.ENHANCING
        labels[core] = Tissue.CORE
        _wall_off(labels)

    def _surface(self, axes: Axes) -> Floats:
        """Signed distance, mm, to the ragged surface of core and rim."""
        offsets = np.meshgrid(
            *(axis - np.float32(c) for axis, c in zip(axes, self.centre, strict=True)),
            indexing="ij",
        )
        stretched = np.tensordot(self.metric, np.stack(offsets), axes=1)
        distance = np.sqrt(np.einsum("i...,i...->...", stretched, stretched))
        ragged = 1 + np.float32(self.raggedness) * np.clip(self.ragged.on(axes), -2.5, 2.5)
        surface: Floats = distance - np.float32(self.radius) * ragged
        return surface

    def _solid(self, surface: Floats, labels: Labels, depth: Floats) -> np.ndarray:
        allowed = np.isin(labels, INVADED) & ((labels != Tissue.CSF) | (depth > SKIN))
        return largest((surface < 0) & allowed)

    def _oedema(self, surface: Floats, solid: np.ndarray, labels: Labels, axes: Axes) -> np.ndarray:
        """Oedema is what is reached from the solid part through tissue that lets it spread."""
        ease = np.zeros(labels.max() + 1, dtype=np.float32)
        for tissue, share in OEDEMA_REACH.items():
            if tissue < len(ease):
                ease[tissue] = share
        reach = np.float32(self.oedema) * ease[labels]
        reach *= 1 + np.float32(0.4) * np.clip(self.oedema_field.on(axes), -2, 2)
        wet = (surface < reach) & (reach > 0)
        spread: np.ndarray = ndimage.binary_propagation(solid, mask=wet | solid) & ~solid
        return spread


def count(rng: np.random.Generator) -> int:
    """Draw how many tumours a patient has: mostly one, about one in eight has none."""
    return int(rng.choice(len(_COUNTS), p=_COUNTS))


def _wall_off(labels: Labels) -> None:
    """Turn core that touches healthy tissue, fluid or air into rim."""
    outside = ~np.isin(labels, TUMOUR)
    exposed = ndimage.binary_dilation(outside) & (labels == Tissue.CORE)
    labels[exposed] = Tissue.ENHANCING


def largest(mask: np.ndarray) -> np.ndarray:
    """Keep the largest connected piece."""
    pieces, found = ndimage.label(mask)
    if found < 2:
        return mask
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    kept: np.ndarray = pieces == sizes.argmax()
    return kept


def _block(axes: Axes, centre: Triple, extent: float) -> tuple[slice, slice, slice]:
    """Find the block of the grid within `extent` mm of `centre` along each axis."""
    spans = []
    for axis, middle in zip(axes, centre, strict=True):
        held = np.flatnonzero(np.abs(axis - middle) <= extent)
        spans.append(slice(int(held[0]), int(held[-1]) + 1))
    return spans[0], spans[1], spans[2]


def _stretch(rng: np.random.Generator) -> Floats:
    """Draw a symmetric matrix that stretches space up to about 1.3 in a random direction."""
    frame, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    stretches = np.exp(rng.normal(0, 0.14, 3))
    stretches /= stretches.prod() ** (1 / 3)
    matrix = frame @ np.diag(stretches) @ frame.T
    rounded: Floats = matrix.astype(np.float32)
    return rounded
