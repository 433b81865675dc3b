"""Distances between two clouds of features (n, feature): Fréchet, kernel, and their manifolds."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NEIGHBOURS: Final = 3


def frechet(one: Floats, other: Floats) -> float:
    """Squared Fréchet (2-Wasserstein) distance of the Gaussians fitted to two clouds.

    What the FID is of Inception's features (Heusel et al. 2017). Biased upwards where samples are
    few for the number of features: compare only with a control of the same size.
    """
    return gaussian_frechet(one.mean(0), _covariance(one), other.mean(0), _covariance(other))


def gaussian_frechet(
    mean: Floats, covariance: Floats, other_mean: Floats, other_covariance: Floats
) -> float:
    """The same of two Gaussians: |m - m'|^2 + tr(C + C' - 2 (C^1/2 C' C^1/2)^1/2)."""
    root = _root(covariance)
    cross = np.linalg.eigvalsh(root @ other_covariance @ root).clip(0)
    traces = np.trace(covariance) + np.trace(other_covariance) - 2 * np.sqrt(cross).sum()
    return float(((mean - other_mean) ** 2).sum() + max(traces, 0.0))


def kernel(one: Floats, other: Floats) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3: the KID (Binkowski et al. 2018).

    Its mean is right at any size, so around 0 for two samples of one source: it may be negative.
    """
    n, m, width = len(one), len(other), one.shape[1]

    def values(x: Floats, y: Floats) -> Floats:
        powers: Floats = (x @ y.T / width + 1) ** 3
        return powers

    own, others = values(one, one), values(other, other)
    return float(
        (own.sum() - np.trace(own)) / (n * (n - 1))
        + (others.sum() - np.trace(others)) / (m * (m - 1))
        - 2 * values(one, other).mean()
    )


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """How two clouds cover each other, by balls that reach to the k-th neighbour, k = 3.

    Attributes:
        precision: share of synthetic ones inside a ball of a real one (Kynkäänniemi et al. 2019).
        recall: share of real ones inside a ball of a synthetic one.
        density: how many real balls hold a synthetic one, over k (Naeem et al. 2020).
        coverage: share of real balls that hold a synthetic one.

    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real: Floats, made: Floats) -> Manifold:
    """Compare clouds of more than three points each."""
    real_reach, made_reach = _reach(real), _reach(made)
    apart = _apart(real, made)
    in_real = apart <= real_reach[:, None]  # (real, made)
    return Manifold(
        precision=float(in_real.any(0).mean()),
        recall=float((apart <= made_reach[None]).any(1).mean()),
        density=float(in_real.sum(0).mean() / _NEIGHBOURS),
        coverage=float(in_real.any(1).mean()),
    )


def _reach(points: Floats) -> Floats:
    """Distance of each point to its k-th neighbour, itself not counted."""
    reach: Floats = np.sort(_apart(points, points), axis=1)[:, _NEIGHBOURS]
    return reach


def _apart(one: Floats, other: Floats) -> Floats:
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * one @ other.T
    distances: Floats = np.sqrt(squares.clip(0))
    return distances


def _covariance(points: Floats) -> Floats:
    return np.atleast_2d(np.cov(points, rowvar=False))


def _root(matrix: Floats) -> Floats:
    values, vectors = np.linalg.eigh(matrix)
    root: Floats = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    return root
