"""Radiomic-style features: brightness, texture and shape of regions, after the IBSI's definitions.

Small enough to be read: first-order statistics, a co-occurrence matrix of neighbours along the
three axes, and moments of the region's form. Not a substitute for a certified package.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medsynth_common.labels import REGION_TISSUES, TISSUES, Region, Tissue

_REGIONS: Final = {
    "brain": tuple(tissue for tissue in TISSUES if tissue is not Tissue.BACKGROUND),
    "white matter": (Tissue.WHITE,),
    "tumour": REGION_TISSUES[Region.WHOLE],
}
_LEVELS: Final = 16
_BRIGHTEST: Final = 1.25  # of a prepared image
_SMALLEST: Final = 27  # voxels; of less there is no texture to speak of

Floats = NDArray[np.float64]


def radiomics(image: NDArray[np.float32], labels: NDArray[np.uint8]) -> Floats:
    """All features of one volume (feature,); NaN for a region it has not.

    Args:
        image: (4, x, y, z).
        labels: (x, y, z) of `Tissue`.

    """
    return np.concatenate(list(_features(image, labels)))


def _features(image: NDArray[np.float32], labels: NDArray[np.uint8]) -> Iterator[Floats]:
    for tissues in _REGIONS.values():
        mask = np.isin(labels, tissues)
        here = mask.sum() >= _SMALLEST
        yield shape(mask) if here else np.full(4, np.nan)
        for channel in image:
            first = first_order(channel[mask]) if here else np.full(8, np.nan)
            yield np.concatenate([first, texture(channel, mask) if here else np.full(4, np.nan)])


def first_order(values: NDArray[np.float32]) -> Floats:
    """Mean, SD, skewness, kurtosis, 10th, 50th and 90th percentile, entropy (bits)."""
    wide = values.astype(np.float64)
    mean, sd = wide.mean(), max(wide.std(), 1e-6)
    normal = (wide - mean) / sd
    share = np.bincount(_quantised(values), minlength=_LEVELS) / len(values)
    return np.array(
        [
            mean,
            sd,
            (normal**3).mean(),
            (normal**4).mean(),
            *np.percentile(wide, [10, 50, 90]),
            _entropy(share),
        ]
    )


def texture(channel: NDArray[np.float32], mask: NDArray[np.bool_]) -> Floats:
    """Contrast, homogeneity, energy and correlation of the co-occurrence matrix (Haralick)."""
    joint = cooccurrence(_quantised(channel), mask)
    first, second = np.indices(joint.shape)
    marginal = joint.sum(1)
    mean = (np.arange(_LEVELS) * marginal).sum()
    variance = ((np.arange(_LEVELS) - mean) ** 2 * marginal).sum()
    product = ((first - mean) * (second - mean) * joint).sum()
    return np.array(
        [
            ((first - second) ** 2 * joint).sum(),
            (joint / (1 + (first - second) ** 2)).sum(),
            (joint**2).sum(),
            product / variance if variance > 0 else 1.0,
        ]
    )


def cooccurrence(levels: NDArray[np.int64], mask: NDArray[np.bool_]) -> Floats:
    """How often two levels are neighbours in the mask, along any axis: (level, level), sum 1."""
    joint = np.zeros(_LEVELS * _LEVELS)
    for axis in range(3):
        one, other = [slice(None)] * 3, [slice(None)] * 3
        one[axis], other[axis] = slice(None, -1), slice(1, None)
        inside = mask[tuple(one)] & mask[tuple(other)]
        pairs = levels[tuple(one)][inside] * _LEVELS + levels[tuple(other)][inside]
        joint += np.bincount(pairs, minlength=_LEVELS * _LEVELS)
    square: Floats = joint.reshape(_LEVELS, _LEVELS)
    both_ways: Floats = square + square.T
    return both_ways / max(float(both_ways.sum()), 1.0)


def shape(mask: NDArray[np.bool_]) -> Floats:
    """Log volume, surface over volume, elongation and flatness (ratios of axes), in voxels."""
    volume = float(mask.sum())
    faces = sum(
        np.diff(np.pad(mask, 1).astype(np.int8), axis=axis).astype(bool).sum() for axis in range(3)
    )
    spread = np.cov(np.argwhere(mask), rowvar=False)
    shortest, middle, longest = np.sqrt(np.linalg.eigvalsh(spread).clip(1e-6))
    return np.array([np.log(volume), float(faces) / volume, middle / longest, shortest / longest])


def _quantised(values: NDArray[np.float32]) -> NDArray[np.int64]:
    levels = (values.astype(np.float64) * (_LEVELS / _BRIGHTEST)).astype(np.int64)
    return levels.clip(0, _LEVELS - 1)


def _entropy(share: Floats) -> float:
    present = share[share > 0]
    return float(-(present * np.log2(present)).sum())
