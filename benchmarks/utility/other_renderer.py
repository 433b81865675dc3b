"""Images of the bench's patients: another physics than that of the public phantoms.

Brightness comes from tables instead of signal equations; texture is fractal and differs from
tissue to tissue; lesion borders are soft; and there is what phantoms have not: ringing, ghosts,
bands between slices, vessels, noise that grows towards the middle. Public training never uses it.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import torch
from scipy import ndimage

from benchmarks.utility.other_head import Floats, Labels, draw_head, fractal
from medsynth_common.intensity import normalise
from medsynth_common.labels import CONTRASTS, TISSUES, TUMOUR, Tissue
from medsynth_common.learning.volumes import Volume

#: Brightness of each tissue in T1, T1Gd, T2 and FLAIR, as a reader would describe it.
_TABLE: Final = {
    Tissue.CSF: (0.22, 0.22, 0.95, 0.12),
    Tissue.VENTRICLE: (0.20, 0.20, 1.00, 0.10),
    Tissue.GREY: (0.52, 0.50, 0.56, 0.58),
    Tissue.WHITE: (0.74, 0.66, 0.40, 0.45),
    Tissue.DEEP_GREY: (0.60, 0.55, 0.44, 0.52),
    Tissue.CORE: (0.36, 0.38, 0.80, 0.55),
    Tissue.OEDEMA: (0.48, 0.46, 0.74, 0.82),
    Tissue.ENHANCING: (0.50, 0.92, 0.62, 0.70),
}
#: SD of a table's entry between scanners, between patients, and of lesions between patients.
_SCANNERS: Final = 0.05
_PATIENTS: Final = 0.02
_LESIONS: Final = 0.06


@dataclass(frozen=True, kw_only=True)
class OtherScanner:
    """One hospital's machine.

    Attributes:
        table: (tissue, contrast) brightness.
        gamma: (contrast,) exponent of its reconstruction.
        slope: of its texture's spectrum; `texture` (tissue,) is its size.
        noise, shading, ringing, ghost, bands: sizes of its artefacts.
        blur: SD of its point spread along x, y, z in voxels.

    """

    table: Floats
    gamma: Floats
    slope: float
    texture: Floats
    noise: float
    shading: float
    ringing: float
    ghost: float
    bands: float
    blur: tuple[float, float, float]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Draw a machine."""
        table = np.zeros((len(TISSUES), len(CONTRASTS)), dtype=np.float32)
        for tissue, row in _TABLE.items():
            table[tissue] = row
        inside = table.any(1, keepdims=True)
        table += inside * rng.normal(0, _SCANNERS, table.shape).astype(np.float32)
        blur = rng.uniform(0.25, 0.55, 3)
        blur[rng.integers(3)] += rng.uniform(0, 0.35)
        return cls(
            table=table.clip(0),
            gamma=rng.uniform(0.8, 1.25, len(CONTRASTS)).astype(np.float32),
            slope=rng.uniform(0.4, 1.3),
            texture=rng.uniform(0.01, 0.06, len(TISSUES)).astype(np.float32),
            noise=rng.uniform(0.01, 0.04),
            shading=rng.uniform(0.02, 0.15),
            ringing=rng.uniform(0, 0.5),
            ghost=rng.uniform(0, 0.04),
            bands=rng.uniform(0, 0.03),
            blur=(float(blur[0]), float(blur[1]), float(blur[2])),
        )


def draw_patient(seed: tuple[int, ...], scanner: OtherScanner, side: int) -> Volume:
    """Draw one patient on a grid of `side` cubed; the same arguments give the same patient."""
    rng = np.random.default_rng(seed)
    labels = draw_head(rng, side)
    image = _image(labels, scanner, rng)
    return Volume(image=torch.from_numpy(image), labels=torch.from_numpy(labels))


def _image(labels: Labels, scanner: OtherScanner, rng: np.random.Generator) -> Floats:
    brain = labels != Tissue.BACKGROUND
    table = scanner.table + rng.normal(0, _PATIENTS, scanner.table.shape)
    table[list(TUMOUR)] += rng.normal(0, _LESIONS, (len(TUMOUR), len(CONTRASTS)))
    table = table.clip(0).astype(np.float32)
    table[Tissue.BACKGROUND] = table[Tissue.CSF]
    soft = _soft(labels, rng)
    texture = fractal(labels.shape, scanner.slope, rng) * scanner.texture[labels]
    shading = _polynomial(labels.shape, rng) * scanner.shading
    vessels = np.clip(1 - np.abs(fractal(labels.shape, 1.8, rng)) / 0.05, 0, 1)
    middle = 1 + _towards_middle(labels.shape)
    contrasts = np.empty((len(CONTRASTS), *labels.shape), dtype=np.float32)
    for number in range(len(CONTRASTS)):
        signal = table[labels, number] * (1 - soft) + table[Tissue.OEDEMA, number] * soft
        own = texture + 0.5 * fractal(labels.shape, scanner.slope, rng) * scanner.texture[labels]
        signal = signal * (1 + own)
        if number == 1:  # contrast agent is in vessels too
            signal = signal + 0.25 * vessels * (labels == Tissue.GREY)
        signal = np.clip(signal, 0, None) ** scanner.gamma[number]
        signal = ndimage.gaussian_filter(signal, scanner.blur) * np.exp(shading)
        signal = _ring(signal, scanner.ringing)
        signal = signal + scanner.ghost * np.roll(signal, labels.shape[1] // 3, axis=1)
        signal = signal * (1 + scanner.bands * rng.standard_normal((1, 1, labels.shape[2])))
        noise = scanner.noise * middle * rng.standard_normal((2, *labels.shape))
        contrasts[number] = np.hypot(signal + noise[0], noise[1]) * brain
    return normalise(contrasts, brain)


def _soft(labels: Labels, rng: np.random.Generator) -> Floats:
    """How much of each voxel round a lesion looks like oedema whatever its label says."""
    spread = ndimage.gaussian_filter(np.isin(labels, TUMOUR).astype(np.float32), 1.0)
    outside = ~np.isin(labels, (*TUMOUR, Tissue.CSF, Tissue.VENTRICLE))
    result: Floats = np.float32(rng.uniform(0.2, 0.9)) * spread * outside
    return result


def _polynomial(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """A random quadratic of about SD 1 over the grid."""
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    terms = [*axes, *(a * b for i, a in enumerate(axes) for b in axes[i:])]
    total = sum(weight * term for weight, term in zip(rng.standard_normal(9), terms, strict=True))
    field: Floats = np.asarray(total, dtype=np.float32)
    field -= field.mean()
    field /= field.std()
    return field


def _towards_middle(shape: tuple[int, ...]) -> Floats:
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    return np.exp(-2 * sum(axis**2 for axis in axes)).astype(np.float32)


def _ring(signal: Floats, share: float) -> Floats:
    """Cut the highest fifth of the frequencies along y, as a short scan does."""
    waves = np.fft.fft(signal, axis=1)
    high = np.abs(np.fft.fftfreq(signal.shape[1])) > 0.4
    waves[:, high] *= 1 - share
    return np.real(np.fft.ifft(waves, axis=1)).clip(0).astype(np.float32)
