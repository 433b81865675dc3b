"""Lower bounds on epsilon from an attacker's scores, with their confidence.

The attacker gives each training a score, larger where it believes that the canary took part. An
(epsilon, delta) claim limits how well the scores of trainings with and without the canary can be
told apart; how well they are told apart therefore bounds epsilon from below.

Nothing here uses the project's accountant: it is what stands on trial.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import beta, nct

Floats = NDArray[np.float64]

#: Scores farther apart than this, in SDs, count as this far: an epsilon of 5000 refutes any claim.
_FARTHEST: Final = 100.0
#: Keeps the logarithm finite where a threshold certifies nothing.
_TINY: Final = 1e-300


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the attacker made of the trainings.

    Attributes:
        present: (runs,) scores of trainings in which the canary took part.
        absent: (runs,) scores of those in which it did not.

    """

    present: Floats
    absent: Floats

    def halves(self) -> tuple["Scores", "Scores"]:
        """Every other training of each kind, and the rest."""
        first, second = (
            Scores(present=self.present[k::2], absent=self.absent[k::2]) for k in (0, 1)
        )
        return first, second


def gaussian_bound(scores: Scores, *, delta: float, confidence: float) -> float:
    """Bound epsilon by the distance of two normal distributions fitted to the scores.

    The distance mu, in standard deviations, gets a one-sided confidence bound by the noncentral
    t distribution; a Gaussian mechanism of that mu would have this epsilon at `delta` (Nasr et
    al., IEEE S&P 2021 and USENIX Security 2023; Balle and Wang, ICML 2018). It holds as far as
    the scores are normal. Of two unlike SDs the larger counts.
    """
    gap = float(scores.present.mean() - scores.absent.mean())
    deviation = float(max(scores.present.std(ddof=1), scores.absent.std(ddof=1)))
    if gap <= 0:
        return 0.0
    distance = gap / deviation if gap < _FARTHEST * deviation else _FARTHEST
    many, few = len(scores.present), len(scores.absent)
    root = math.sqrt(many * few / (many + few))
    shift = _least_noncentrality(distance * root, many + few - 2, 1 - confidence)
    return _epsilon_of_distance(shift / root, delta)


def _least_noncentrality(t: float, freedom: int, error: float) -> float:
    """The noncentrality under which a t as large as this still has probability `error`."""

    def excess(noncentrality: float) -> float:
        return float(nct.sf(t, freedom, noncentrality)) - error

    return 0.0 if excess(0.0) >= 0 else float(brentq(excess, 0.0, t))


def _epsilon_of_distance(mu: float, delta: float) -> float:
    """Epsilon at `delta` between N(0, 1) and N(mu, 1), exactly."""

    def excess(epsilon: float) -> float:
        above = log_ndtr(mu / 2 - epsilon / mu)
        below = epsilon + log_ndtr(-mu / 2 - epsilon / mu)
        return float(np.exp(above) - np.exp(min(below, above))) - delta

    if mu <= 0 or excess(0.0) <= 0:
        return 0.0
    highest = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(excess, 0.0, highest))


def clopper_pearson_bound(scores: Scores, *, delta: float, confidence: float) -> float:
    """Bound epsilon by the error rates of one threshold; nothing is assumed of the scores.

    On half of the trainings the best threshold and direction are chosen; the other half, which
    the choice has not seen, gives the two error rates, each with a one-sided exact (Clopper and
    Pearson) bound at half the allowed error (Jagielski et al., NeurIPS 2020; Nasr et al. 2021).
    """
    choosing, certifying = scores.halves()
    error = (1 - confidence) / 2
    every = np.unique(np.concatenate([choosing.present, choosing.absent]))
    thresholds = np.append((every[1:] + every[:-1]) / 2, every[-1])
    promised = _certified_by_thresholds(choosing, thresholds, delta, error)
    direction, best = np.unravel_index(int(promised.argmax()), promised.shape)
    kept = _certified_by_thresholds(certifying, thresholds[[best]], delta, error)
    return max(0.0, float(kept[direction, 0]))


def clopper_pearson_ceiling(present: int, absent: int, *, delta: float, confidence: float) -> float:
    """Give the most that the bound could say of so many trainings: if no score misled."""
    perfect = Scores(present=np.ones(present), absent=np.zeros(absent))
    return clopper_pearson_bound(perfect, delta=delta, confidence=confidence)


def _certified_by_thresholds(
    scores: Scores, thresholds: Floats, delta: float, error: float
) -> Floats:
    """Epsilon by each threshold (2, thresholds): called present above it, absent below it."""
    present, absent = len(scores.present), len(scores.absent)
    present_below, absent_below = (
        np.searchsorted(np.sort(kind), thresholds, side="right")
        for kind in (scores.present, scores.absent)
    )
    right = np.stack(
        [
            _at_least(present - present_below, present, error),
            _at_least(absent_below, absent, error),
        ]
    )
    wrong = np.stack(
        [
            _at_most(absent - absent_below, absent, error),
            _at_most(present_below, present, error),
        ]
    )
    # P(right) <= e^epsilon P(wrong) + delta, whichever of the two worlds is called.
    certified: Floats = np.log(np.maximum(right - delta, _TINY) / wrong)
    return certified


def _at_least(hits: NDArray[np.intp], of: int, error: float) -> Floats:
    """Clopper and Pearson's lower bound on a probability met `hits` times `of` so many."""
    lower: Floats = beta.ppf(error, np.maximum(hits, 1), of - np.maximum(hits, 1) + 1)
    return np.where(hits > 0, lower, 0.0)


def _at_most(hits: NDArray[np.intp], of: int, error: float) -> Floats:
    """And the upper one: what did not happen, happened at least so often."""
    return 1 - _at_least(of - hits, of, error)
