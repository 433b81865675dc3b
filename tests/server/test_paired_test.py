from itertools import product

import numpy as np
import pytest
from scipy import stats

from medsynth_server.paired_test import signed_rank


def exact_signed_rank(differences: list[float]) -> float:
    """Two-sided p by all signs there are."""
    ranks = stats.rankdata(np.abs(differences))
    observed = ranks[np.array(differences) > 0].sum()
    sums = [
        sum(r for r, s in zip(ranks, signs, strict=True) if s)
        for signs in product((0, 1), repeat=len(ranks))
    ]
    low = np.mean([s <= observed for s in sums])
    high = np.mean([s >= observed for s in sums])
    return float(min(1.0, 2 * min(low, high)))


def test_the_test_is_wilcoxons() -> None:
    differences = [0.1, 0.25, -0.02, 0.3, 0.07, 0.11, -0.04]
    assert signed_rank(np.array(differences)) == pytest.approx(exact_signed_rank(differences))
    assert signed_rank(np.zeros(5)) == 1.0
