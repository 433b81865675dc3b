"""Label maps of the bench's patients: heads and lesions that public training has never seen.

Nothing here is shared with `medsynth_common.phantom`: a brain is an egg with a noisy surface, its
folds are ridges of noise, and a lesion is a union of balls with a fractal border, often of several
lobes and without a rim all round. It is less of a brain than the public phantoms are; it is meant
to be another one, as patients are.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsynth_common.labels import Tissue

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]

#: Relative frequency of 0 to 4 lesions; the public phantoms have mostly one.
_COUNTS: Final = (0.06, 0.44, 0.26, 0.16, 0.08)


def fractal(shape: tuple[int, ...], slope: float, rng: np.random.Generator) -> Floats:
    """Noise whose amplitude falls with frequency f as f^-slope; mean 0, SD 1, (*shape)."""
    frequencies = np.meshgrid(*(np.fft.fftfreq(side) for side in shape), indexing="ij")
    radius = np.sqrt(sum(f * f for f in frequencies))
    radius[(0,) * len(shape)] = np.inf
    waves = np.fft.fftn(rng.standard_normal(shape)) * radius**-slope
    noise = np.real(np.fft.ifftn(waves))
    fractal_noise: Floats = (noise / noise.std()).astype(np.float32)
    return fractal_noise


def draw_head(rng: np.random.Generator, side: int) -> Labels:
    """Draw one patient's `Tissue` values, (side, side, side)."""
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    warp = [0.035 * fractal((side,) * 3, 2.6, rng) for _ in range(3)]
    x, y, z = (
        c + w for c, w in zip(np.meshgrid(axis, axis, axis, indexing="ij"), warp, strict=True)
    )
    labels = _anatomy((x, y, z), rng)
    for _ in range(int(rng.choice(len(_COUNTS), p=_COUNTS))):
        _lesion(labels, rng)
    return labels


def _anatomy(points: tuple[Floats, Floats, Floats], rng: np.random.Generator) -> Labels:
    """Envelope, folded mantle, white matter, nuclei and ventricles, from the outside in."""
    x, y, z = points
    width, length, height = rng.uniform((0.74, 0.84, 0.70), (0.84, 0.94, 0.82))
    egg = np.sqrt((x / width) ** 2 + (y / length) ** 2 + ((z + 0.1 * y**2) / height) ** 2)
    voxel = 2 / x.shape[0]
    depth = (1 - egg) * min(width, height)  # in half edges of the grid; positive inside
    labels = np.full(x.shape, Tissue.BACKGROUND, dtype=np.uint8)
    labels[depth > 0] = Tissue.CSF
    folds = np.abs(fractal(x.shape, rng.uniform(1.5, 1.9), rng))
    sulcus = rng.uniform(0.10, 0.24) * np.exp(-np.clip(depth, 0, None) / 0.12)
    mantle = (depth > rng.uniform(0.4, 0.9) * voxel) & (folds > sulcus)
    mantle &= (np.abs(x) > 0.5 * voxel) | (depth > 0.28)  # the cleft between the halves
    labels[mantle] = Tissue.GREY
    thickness = rng.uniform(0.09, 0.14) * (1 + 0.3 * fractal(x.shape, 2.2, rng))
    labels[mantle & (depth > thickness)] = Tissue.WHITE
    swollen = rng.uniform(0.7, 1.7)
    lateral = np.abs(x)
    nuclei = ((lateral - 0.22) / 0.10) ** 2 + ((y - 0.08) / 0.26) ** 2 + ((z + 0.02) / 0.16) ** 2
    labels[(nuclei < 1) & (depth > 0.1)] = Tissue.DEEP_GREY
    bow = 0.09 + 0.10 * (y - 0.1) ** 2
    horn = ((lateral - bow) / (0.055 * swollen)) ** 2 + (y / 0.42) ** 2
    horn += ((z - 0.10) / (0.13 * np.sqrt(swollen))) ** 2
    labels[(horn < 1) & (depth > 0.1)] = Tissue.VENTRICLE
    return labels


def _lesion(labels: Labels, rng: np.random.Generator) -> None:
    """Grow one lesion, in place: lobes of balls, a fractal border, a rim that may be missing."""
    side = labels.shape[0]
    places = np.argwhere(np.isin(labels, (Tissue.WHITE, Tissue.GREY)))
    centre = places[int(rng.integers(len(places)))].astype(np.float32)
    radius = side * float(np.clip(rng.lognormal(np.log(0.085), 0.45), 0.05, 0.17))
    grid: Floats = np.indices(labels.shape).astype(np.float32)
    distance = np.full(labels.shape, np.inf, dtype=np.float32)
    for lobe in range(int(rng.integers(1, 5))):
        shift = rng.normal(0, 0.7 * radius, 3) if lobe else np.zeros(3)
        size = radius * (rng.uniform(0.5, 0.9) if lobe else 1)
        offset = grid - (centre + shift).astype(np.float32).reshape(3, 1, 1, 1)
        distance = np.minimum(distance, np.sqrt((offset**2).sum(0)) - size)
    distance += 0.28 * radius * fractal(labels.shape, 1.7, rng)
    brain = ~np.isin(labels, (Tissue.BACKGROUND, Tissue.VENTRICLE))
    solid = (distance < 0) & brain
    if solid.sum() < 6:
        return
    wet = (distance < rng.uniform(0.2, 1.1) * radius) & np.isin(
        labels, (Tissue.WHITE, Tissue.DEEP_GREY)
    )
    labels[wet & ~solid] = Tissue.OEDEMA
    labels[solid] = Tissue.ENHANCING
    within = ndimage.distance_transform_edt(solid)
    kind = rng.random()
    patchy = fractal(labels.shape, 1.4, rng)
    if kind < 0.6:  # a necrotic middle under a rim of uneven thickness
        labels[solid & (within > rng.uniform(1.0, 2.2) * (1 + 0.3 * patchy))] = Tissue.CORE
    elif kind < 0.85:  # hardly any enhancement: a core with islands
        labels[solid & (patchy < rng.uniform(0.6, 1.4))] = Tissue.CORE
