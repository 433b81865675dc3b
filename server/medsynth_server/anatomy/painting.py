"""Images of a label map as no hospital takes them: contrast, shading and grain at random.

Domain randomisation after SynthSeg (Billot et al. 2023): a network that has seen every contrast
takes a hospital's for one more. The signal equations of a random scanner give the means of the
tissues, so that T1 stays more often than not what a T1 is; they are then moved, now and then beyond
all physics, since a phantom's few tissues have less to tell apart than a patient's.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsynth_common.intensity import CEILING
from medsynth_common.labels import CONTRASTS, TISSUES, Tissue
from medsynth_common.phantom import random_scanner, tissue

Floats = NDArray[np.float32]
Labels = NDArray[np.uint8]

#: How far tissue properties are drawn beyond what nature varies, at most.
_RANDOMISE: Final = 0.6
#: Share of contrasts whose tissue means follow no sequence at all.
_WILD: Final = 0.05
#: SD of what is added to the other means, at most, in units of the brightest tissue.
_SHIFT: Final = 0.12
#: SD of what varies from place to place inside a tissue, at most, in the same unit.
_MOTLEY: Final = 0.07
#: SD of the logarithm of a coil's shading, at most; real ones come to about 0.2.
_BIAS: Final = 0.35
#: SD of Rician noise, at most.
_NOISE: Final = 0.08
#: Full width at half maximum of the blur along each axis, voxels.
_BLUR: Final = (0.4, 1.6)
#: Share of images with thick slices, and how much wider these blur, voxels at most.
_THICK: Final = (0.3, 2.0)
_FWHM: Final = 2.355


def paint(labels: Labels, kept: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    """Paint a label map (x, y, z) with a contrast of its own in each `kept` channel, (4, x, y, z).

    Values are on no scale yet: `scaled` puts them on it. What lies outside the brain is painted as
    fluid, as before the skull is stripped; it is the caller's to cut away.
    """
    means = _means(rng)  # (tissue, contrast)
    thick = _blur_widths(rng)
    image = np.zeros((len(CONTRASTS), *labels.shape), dtype=np.float32)
    # One patient's tissue is uneven in the same places whatever the contrast.
    motley = 0.7 * smooth(labels.shape, 14, rng) + 0.7 * smooth(labels.shape, 5, rng)
    shading = smooth(labels.shape, 40, rng)
    for contrast in np.flatnonzero(kept):
        table = means[:, contrast]
        uneven = rng.normal(0, rng.uniform(0, _MOTLEY), len(TISSUES)).astype(np.float32)
        signal = table[labels] + uneven[labels] * motley
        signal = ndimage.gaussian_filter(signal, thick, mode="nearest", truncate=2.5)
        own = 0.7 * shading + 0.7 * smooth(labels.shape, 40, rng)
        signal *= np.exp(np.float32(rng.uniform(0, _BIAS)) * np.clip(own, -2, 2))
        sigma = np.float32(np.exp(rng.uniform(np.log(0.004), np.log(_NOISE))))
        noise = sigma * rng.standard_normal((2, *labels.shape), dtype=np.float32)
        image[contrast] = np.hypot(np.maximum(signal, 0) + noise[0], noise[1])
    return image


def scaled(image: Floats, brain: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
    """Scale each contrast as preparation does, up to what a crop cannot know, with a gamma.

    Args:
        image: (4, x, y, z), none below 0; a contrast of zeros stays so.
        brain: (x, y, z), true somewhere.
        rng: draws gamma and scale.

    """
    result = np.zeros_like(image)
    for contrast, one in enumerate(image):
        top = float(np.percentile(one[brain], 99))
        if top > 0:
            values = (one[brain] / top).clip(0, CEILING) ** rng.uniform(0.75, 1.33)
            result[contrast][brain] = (values * rng.uniform(0.85, 1.15)).clip(0, CEILING)
    return result


def shaded(image: Floats, rng: np.random.Generator) -> Floats:
    """Give a real image (4, x, y, z) more shading, grain and blur than it came with."""
    fwhm = rng.uniform(0, 1.2)
    field = np.clip(smooth(image.shape[1:], 40, rng), -2, 2)
    bias = np.exp(np.float32(rng.uniform(0, 0.6 * _BIAS)) * field)
    blurred = [ndimage.gaussian_filter(one, fwhm / _FWHM, truncate=2.5) * bias for one in image]
    noise = np.float32(rng.uniform(0, 0.03)) * rng.standard_normal(image.shape, dtype=np.float32)
    worse: Floats = np.abs(np.stack(blurred) + noise * (image > 0))
    return worse


def smooth(shape: tuple[int, ...], spacing: float, rng: np.random.Generator) -> Floats:
    """Draw a field (*shape) of mean about 0 and SD about 1 that varies over `spacing` voxels."""
    coarse = [max(round(side / spacing) + 3, 4) for side in shape]
    field = rng.standard_normal(coarse, dtype=np.float32)
    for axis, side in enumerate(shape):
        # Each side is cut at random from the lattice, by linear interpolation along one axis.
        span = (side - 1) / spacing
        start = rng.uniform(0, max(coarse[axis] - 1 - span, 0))
        places = np.clip(start + np.arange(side) / spacing, 0, coarse[axis] - 1.001)
        low = places.astype(int)
        share = (places - low).astype(np.float32).reshape(-1, *(1,) * (field.ndim - 1 - axis))
        below, above = np.take(field, low, axis), np.take(field, low + 1, axis)
        field = below * (1 - share) + above * share
    return field / np.float32(0.54)  # linear interpolation leaves so much of the SD


def _means(rng: np.random.Generator) -> Floats:
    """Draw the mean of every tissue in every contrast, the brightest 1, (tissue, contrast)."""
    scanner, wide = random_scanner(rng), rng.uniform(0, _RANDOMISE)
    plain = tissue.patient(scanner.field, rng, randomise=wide)
    agent = tissue.concentration(rng, randomise=wide)
    states = (plain, plain.with_gadolinium(agent, field=scanner.field), plain, plain)
    columns = []
    for sequence, state in zip(scanner.sequences, states, strict=True):
        mean = sequence.signal(state)
        mean = mean / mean.max() + rng.normal(0, rng.uniform(0, _SHIFT), len(TISSUES))
        if rng.random() < _WILD:
            mean = rng.uniform(0, 1, len(TISSUES))
        mean = mean.clip(0.02)
        # Cerebrospinal fluid is the same wherever it is, and is what lies around a brain.
        mean[[Tissue.VENTRICLE, Tissue.BACKGROUND]] = mean[Tissue.CSF]
        columns.append(mean / mean.max())
    return np.stack(columns, axis=1).astype(np.float32)


def _blur_widths(rng: np.random.Generator) -> tuple[float, ...]:
    widths = np.full(3, rng.uniform(*_BLUR))
    if rng.random() < _THICK[0]:
        widths[rng.integers(3)] += rng.uniform(0, _THICK[1])
    return tuple(float(width) / _FWHM for width in widths)
