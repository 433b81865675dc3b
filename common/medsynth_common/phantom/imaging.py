"""From a label map to four contrasts, as a given scanner would have taken them of one patient."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsynth_common.errors import BadInput, Problem
from medsynth_common.intensity import normalise
from medsynth_common.labels import TISSUES, TUMOUR, Tissue
from medsynth_common.phantom import tissue
from medsynth_common.phantom.anatomy import Labels
from medsynth_common.phantom.fields import Axes, Field, Floats
from medsynth_common.phantom.scanner import Scanner

#: SD of free water from place to place within one tissue, relative; tumours are more motley.
_HEALTHY_MOTLEY: Final = 0.025
_TUMOUR_MOTLEY: Final = 0.12
#: Full width at half maximum of a Gaussian, in SDs.
_FWHM: Final = 2.355


def image(
    labels: Labels, scanner: Scanner, rng: np.random.Generator, *, randomise: float = 0.0
) -> Floats:
    """Take the four contrasts of `labels` on `scanner`.

    Every voxel's magnetisation follows the sequence's signal equation; then come blur (partial
    volume), coil shading, grain and Rician noise, the removal of all outside the brain, and
    `normalise`.

    Args:
        labels: `Tissue` values, (*grid).
        scanner: protocol and imperfections.
        rng: draws this patient's tissue values, shading, grain and noise.
        randomise: 0 gives published tissue values with natural variation between patients; up to
            1 widens PD, T1 and T2 beyond nature, which makes networks trained on it robust.

    Returns:
        (4, *grid) float32 in the order of `CONTRASTS`, in [0, 1.25], exactly 0 outside the brain.

    Raises:
        BadInput: `randomise` is outside 0..1, or the map holds no brain.

    """
    if not 0 <= randomise <= 1:
        raise BadInput(
            Problem(name="randomise", value=f"{randomise:g}", wanted="a number from 0 to 1")
        )
    brain = labels != Tissue.BACKGROUND
    if not brain.any():
        raise BadInput(Problem(name="label map", value="background alone", wanted="a brain"))
    relaxation = tissue.patient(scanner.field, rng, randomise=randomise)
    agent = tissue.concentration(rng, randomise=randomise)
    enhanced = relaxation.with_gadolinium(agent, field=scanner.field)
    water = _water(labels, rng)
    shading = _shading(labels.shape, scanner.bias, rng)
    states = (relaxation, enhanced, relaxation, relaxation)
    contrasts = np.empty((len(states), *labels.shape), dtype=np.float32)
    for number, (sequence, state) in enumerate(zip(scanner.sequences, states, strict=True)):
        mean = sequence.signal(state)
        slope = (sequence.signal(state.with_water(0.1)) - mean) / 0.1
        signal = _paint(labels, mean, slope, water)
        signal = _blur(signal, scanner.resolution)
        signal *= shading * _grain(labels.shape, scanner, rng)
        contrasts[number] = _rician(signal, scanner.noise * signal[brain].mean(), rng)
    contrasts *= brain
    return normalise(contrasts, brain)


def _paint(labels: Labels, mean: tissue.Table, slope: tissue.Table, water: Floats) -> Floats:
    """Give every voxel the signal of its tissue with that much more or less free water.

    What lies outside the brain is painted as fluid: the brain is scanned in its fluid, and only
    later taken out, so that blur must not darken its surface.
    """
    mean, slope = mean.astype(np.float32), slope.astype(np.float32)
    mean[Tissue.BACKGROUND], slope[Tissue.BACKGROUND] = mean[Tissue.CSF], slope[Tissue.CSF]
    signal: Floats = np.maximum(mean[labels] + slope[labels] * water, 0)
    return signal


def _water(labels: Labels, rng: np.random.Generator) -> Floats:
    """Draw how much more free water than its tissue's mean each voxel has, relative, (*grid)."""
    amount = np.zeros(len(TISSUES), dtype=np.float32)
    amount[[Tissue.GREY, Tissue.WHITE, Tissue.DEEP_GREY]] = _HEALTHY_MOTLEY
    amount[list(TUMOUR)] = _TUMOUR_MOTLEY
    edge = min(labels.shape)
    # Regions a fifth of the head wide, and patches within them.
    wide = _field(labels.shape, edge / 12, rng)
    patches = _field(labels.shape, max(edge / 40, 1.2), rng)
    motley: Floats = amount[labels] * np.clip(0.7 * wide + 0.7 * patches, -2.5, 2.5)
    return motley


def _shading(shape: tuple[int, ...], bias: float, rng: np.random.Generator) -> Floats:
    """Draw the sensitivity of the coil, a smooth factor about 1."""
    smooth = _field(shape, max(shape) / 2, rng)
    shading: Floats = np.exp(np.float32(bias) * np.clip(smooth, -2, 2))
    return shading


def _grain(shape: tuple[int, ...], scanner: Scanner, rng: np.random.Generator) -> Floats:
    factor: Floats = 1 + np.float32(scanner.texture) * _field(shape, scanner.grain, rng)
    return factor


def _field(shape: tuple[int, ...], spacing: float, rng: np.random.Generator) -> Floats:
    axes: Axes = tuple(np.arange(edge, dtype=np.float32) for edge in shape)  # type: ignore[assignment]  # three edges
    x, y, z = (float(edge) for edge in shape)
    return Field.draw(rng, low=(0, 0, 0), high=(x, y, z), spacing=spacing).on(axes)


def _blur(signal: Floats, resolution: tuple[float, float, float]) -> Floats:
    sigmas = [width / _FWHM for width in resolution]
    blurred: Floats = ndimage.gaussian_filter(signal, sigmas, mode="nearest", truncate=3)
    return blurred


def _rician(signal: Floats, sigma: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Take the magnitude of `signal` with Gaussian noise in both quadrature channels."""
    noise = np.float32(sigma) * rng.standard_normal((2, *signal.shape), dtype=np.float32)
    magnitude: Floats = np.hypot(signal + noise[0], noise[1])
    return magnitude
