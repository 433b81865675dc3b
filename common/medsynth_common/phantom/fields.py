"""Smooth random fields in head space: what makes one head, tumour or coil unlike the next."""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]
Axes = tuple[Floats, Floats, Floats]
Triple = tuple[float, float, float]

#: SD of one cubic B-spline interpolation of unit white noise over three axes: (151/315)^(3/2).
_SPLINE_SD: Final = (151 / 315) ** 1.5


@dataclass(frozen=True, kw_only=True)
class Field:
    """A smooth field given by cubic B-spline control values on a regular lattice.

    It is evaluated on the product of three 1-D axes, which costs three small matrix products
    however fine the grid is, so that noise of any grid costs milliseconds.

    Attributes:
        control: control values, (m0, m1, m2).
        origin: where control value (0, 0, 0) sits, in the axes' unit.
        spacing: distance between control values; bumps are about 2.5 spacings wide.

    """

    control: Floats
    origin: tuple[float, float, float]
    spacing: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, low: Triple, high: Triple, spacing: float) -> Self:
        """Draw a field of mean about 0 and standard deviation about 1 over the box low..high."""
        counts = tuple(int(np.ceil((b - a) / spacing)) + 4 for a, b in zip(low, high, strict=True))
        control = rng.standard_normal(counts, dtype=np.float32) / np.float32(_SPLINE_SD)
        x, y, z = (a - spacing * 1.5 for a in low)
        return cls(control=control, origin=(x, y, z), spacing=spacing)

    def on(self, axes: Axes) -> Floats:
        """Evaluate on the grid spanned by `axes`, (len(x), len(y), len(z))."""
        values = self.control
        for axis, start in zip(axes, self.origin, strict=True):
            weights = _spline_weights((axis - start) / self.spacing, values.shape[0])
            # Contract the first axis and let the new one go last: after three turns, (x, y, z).
            values = np.tensordot(values, weights, axes=(0, 1))
        return np.ascontiguousarray(values, dtype=np.float32)


def _spline_weights(position: Floats, count: int) -> Floats:
    """Cubic B-spline weight of every control value at every position, (len(position), count)."""
    distance = np.abs(position[:, None] - np.arange(count, dtype=np.float32))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Ripples:
    """Band-passed isotropic noise: its zero level winds through space at an even spacing.

    Attributes:
        lattice: values on a cubic lattice centred on the origin, (m, m, m).
        spacing: lattice spacing in mm.

    """

    lattice: Floats
    spacing: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, wavelength: float, reach: float) -> Self:
        """Draw ripples of about one `wavelength` (mm) within `reach` mm of the origin."""
        spacing = wavelength / 7
        count = 2 * int(np.ceil(reach / spacing)) + 1
        noise = rng.standard_normal((count, count, count), dtype=np.float32)
        fine = wavelength / 6.5 / spacing
        # A difference of Gaussians keeps one octave around the wavelength.
        band = ndimage.gaussian_filter(noise, fine, mode="wrap", truncate=3)
        band -= ndimage.gaussian_filter(band, fine * 1.5, mode="wrap", truncate=3)
        return cls(lattice=band / band.std(), spacing=spacing)

    def at(self, points: Floats) -> Floats:
        """Evaluate at `points` (3, *grid) in mm; returns (*grid)."""
        centre = (self.lattice.shape[0] - 1) / 2
        values: Floats = ndimage.map_coordinates(
            self.lattice, points / self.spacing + centre, order=1, mode="nearest"
        )
        return values
