"""Confidence intervals of a share and of an area under the ROC curve."""

from typing import Final

import numpy as np
from scipy import stats

from medsynth_common.release_check.result import Interval
from medsynth_common.release_check.signature import Floats

_CONFIDENCE: Final = 0.95
_DRAWS: Final = 2000


def share_interval(count: int, total: int) -> Interval:
    """Exact 95 % interval of a share (Clopper & Pearson 1934); 0..1 where there is nothing."""
    if total == 0:
        return Interval(low=0.0, high=1.0)
    found = stats.binomtest(count, total).proportion_ci(_CONFIDENCE, method="exact")
    return Interval(low=float(found.low), high=float(found.high))


def auc(positives: Floats, negatives: Floats) -> float:
    """Probability that a positive (n,) scores higher than a negative (m,); ties count half."""
    return float(_wins(positives, negatives).mean())


def auc_interval(positives: Floats, negatives: Floats, draw: np.random.Generator) -> Interval:
    """95 % percentile bootstrap over positives and negatives, drawn anew together."""
    wins = _wins(positives, negatives)
    rows = draw.multinomial(len(positives), np.full(len(positives), 1 / len(positives)), _DRAWS)
    columns = draw.multinomial(len(negatives), np.full(len(negatives), 1 / len(negatives)), _DRAWS)
    areas = np.einsum("dn,nm,dm->d", rows, wins, columns, optimize=True) / wins.size
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(areas, [tail, 1 - tail])
    return Interval(low=float(low), high=float(high))


def auc_from_nothing(
    members: Floats, outside: int, quantile: float, draw: np.random.Generator
) -> float:
    """Quantile of the AUC when members (n,) are split at random and `outside` pretend not to be.

    At most half pretend, so that either part stays a sample.
    """
    pretend = min(outside, len(members) // 2)
    ranks = stats.rankdata(members)  # ties share a rank, and so count half
    stay = len(members) - pretend
    least = stay * (stay + 1) / 2  # the members' rank sum if they all came last
    sums = np.array([draw.permutation(ranks)[pretend:].sum() for _ in range(_DRAWS)])
    return float(np.quantile((sums - least) / (stay * pretend), quantile))


def _wins(positives: Floats, negatives: Floats) -> Floats:
    lead = positives[:, None] - negatives[None]
    wins: Floats = np.heaviside(lead, 0.5)
    return wins
