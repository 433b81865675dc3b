"""Comparing sets of volumes: synthetic against real, and real against real as the control.

The real patients are split into two halves, alike in sites. Each generator's volumes and the second
half are compared with the first, all sets of one size: at few samples every distance but the kernel
one is biased upwards, and the control shows by how much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medsynth_common.labels import CONTRASTS, TISSUES
from medsynth_server.fidelity.distances import frechet, kernel, manifold
from medsynth_server.fidelity.features import Features, Plane
from medsynth_server.fidelity.results import (
    Comparison,
    Distances,
    SiteFidelity,
    TissueDistance,
)

Floats = NDArray[np.float64]

_LEAST = 4  # volumes of a site on each side


@dataclass(frozen=True, kw_only=True)
class Set:
    """Volumes of one origin: features of each, whose scanner it is of, and how alike pairs are."""

    features: Sequence[Features]
    sites: Sequence[str]
    likeness: float


@dataclass(frozen=True)
class Standard:
    """Centre and scale of features (feature,) on real volumes; what one lacks is the centre."""

    centre: Floats
    scale: Floats

    @classmethod
    def fit(cls, rows: Floats) -> "Standard":
        """Measure them on (n, feature); constant features, or ones that none has, count nothing."""
        known = np.where(np.isfinite(rows), rows, 0.0)
        count = np.isfinite(rows).sum(0).clip(1)
        centre = known.sum(0) / count
        spread = np.sqrt((np.where(np.isfinite(rows), rows - centre, 0.0) ** 2).sum(0) / count)
        return cls(centre, np.where(spread > 1e-9, spread, np.inf))

    def __call__(self, rows: Floats) -> Floats:
        """Standardise (n, feature)."""
        return np.nan_to_num((rows - self.centre) / self.scale, nan=0.0)


def compare(real: Set, other: Set, *, all_real: Sequence[Features]) -> Comparison:
    """Compare a set with real volumes; features are standardised on `all_real`."""
    planes = {}
    for plane in Plane:
        standard = Standard.fit(_slices(all_real, plane))
        one, two = (standard(_slices(s.features, plane)) for s in (real, other))
        planes[plane] = Distances(frechet=frechet(one, two), kernel=kernel(one, two))
    volume = Standard.fit(_volumes(all_real))
    reach = manifold(volume(_volumes(real.features)), volume(_volumes(other.features)))
    critic = Standard.fit(np.stack([f.critic for f in all_real]))
    ours, theirs = (critic(np.stack([f.critic for f in s.features])) for s in (real, other))
    radiomic = Standard.fit(np.stack([f.radiomic for f in all_real]))
    tissues = _tissues(real.features, other.features)
    return Comparison(
        planes=planes,
        critic=Distances(frechet=frechet(ours, theirs), kernel=kernel(ours, theirs)),
        radiomic=frechet(
            *(radiomic(np.stack([f.radiomic for f in s.features])) for s in (real, other))
        ),
        precision=reach.precision,
        recall=reach.recall,
        density=reach.density,
        coverage=reach.coverage,
        likeness=other.likeness,
        tissues=tissues,
        intensity=_mean(tissues),
        sites=_sites(real, other, volume),
    )


def halves(sites: Sequence[str], seed: int) -> list[tuple[int, int]]:
    """Pair indices by chance, of one site where that goes, sites in turn; halves are the columns.

    However many pairs are kept from the beginning, both halves hold as many of each site.
    """
    rng = np.random.default_rng(seed)
    pairs: list[list[tuple[int, int]]] = []
    alone: list[int] = []
    for site in dict.fromkeys(sites):
        mine = rng.permutation([n for n, name in enumerate(sites) if name == site]).tolist()
        alone += [mine.pop()] if len(mine) % 2 else []
        pairs.append(list(zip(mine[::2], mine[1::2], strict=True)))
    in_turn = [pair for turn in zip_longest(*pairs) for pair in turn if pair is not None]
    return in_turn + list(zip(alone[::2], alone[1::2], strict=False))


def _sites(real: Set, other: Set, standard: Standard) -> Mapping[str, SiteFidelity]:
    found = {}
    for site in dict.fromkeys(real.sites):
        ours, theirs = (
            [f for f, name in zip(s.features, s.sites, strict=True) if name == site]
            for s in (real, other)
        )
        if min(len(ours), len(theirs)) >= _LEAST:
            found[site] = SiteFidelity(
                kernel=kernel(standard(_volumes(ours)), standard(_volumes(theirs))),
                intensity=_mean(_tissues(ours, theirs)),
            )
    return found


def _tissues(one: Sequence[Features], other: Sequence[Features]) -> tuple[TissueDistance, ...]:
    found = []
    for contrast in CONTRASTS:
        for tissue in TISSUES[1:]:
            ours, theirs = (
                np.concatenate([f.voxels[contrast, tissue] for f in features])
                for features in (one, other)
            )
            if ours.size and theirs.size:
                distance = float(stats.wasserstein_distance(ours, theirs))
                found.append(TissueDistance(contrast=contrast, tissue=tissue, distance=distance))
    return tuple(found)


def _mean(tissues: Sequence[TissueDistance]) -> float:
    return float(np.mean([one.distance for one in tissues])) if tissues else 0.0


def _slices(features: Sequence[Features], plane: Plane) -> Floats:
    return np.concatenate([one.planes[plane] for one in features])


def _volumes(features: Sequence[Features]) -> Floats:
    return np.stack([one.volume for one in features])
