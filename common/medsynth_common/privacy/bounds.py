"""Upper bounds on the epsilon of composed, Poisson-subsampled Gaussian releases.

Neighbouring data sets differ by one patient added or removed. Every number is an upper bound:
the least of up to three, each valid by itself. Opacus' PRV accountant (Gopi et al., NeurIPS
2021) is within about 0.01 of the truth; where its grid would be too large or its arithmetic
cannot be trusted, Renyi accounting (mostly 10 to 17 % above) and the Gaussian mechanism without
sampling stay. The GDP accountant underestimates and is not used.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.prv import (
    Domain,
    PoissonSubsampledGaussianPRV,
    TruncatedPrivacyRandomVariable,
)
from opacus.accountants.analysis.prv.prvs import DiscretePRV
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
from scipy.fft import irfft, next_fast_len, rfft
from scipy.optimize import brentq
from scipy.special import log_ndtr

#: (noise multiplier, sampling rate) -> number of steps.
History = dict[tuple[float, float], int]

_ORDERS: Final = (1.02, 1.05, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.5, *range(3, 33))
_HIGH_ORDERS: Final = (40, 48, 64, 80, 96, 128, 192, 256, 512, 1024)
#: Fractional orders matter for noise as little as this; with more they take seconds.
_LITTLE_NOISE: Final = 1.0
#: PRV's error in epsilon: absolute, and relative to epsilon where that is less.
ERROR: Final = 0.01
#: A PRV grid of this many points takes about a second.
_MAX_POINTS: Final = 2**21
#: Each kind of release needs its own transform; beyond this many, near ones are charged alike.
_MAX_KINDS: Final = 32
#: Below this delta PRV's floating-point error counts; above 100 or below .001 a tighter epsilon
#: tells nobody more.
_LEAST_PRV_DELTA: Final = 1e-10
_PRV_EPSILONS: Final = (1e-3, 100.0)
_ARITHMETIC: Final = (ValueError, ArithmeticError, RuntimeError)


def composed_epsilon(history: History, delta: float, error: float = ERROR) -> float:
    """Give the least of the bounds on a history that is not empty and has noise everywhere."""
    least, largest = _PRV_EPSILONS
    unsampled = _gaussian_epsilon(_gaussian_mu(history), delta)
    exact = all(rate == 1 for _, rate in history)
    if exact or math.isinf(unsampled) or unsampled < least:
        return unsampled
    kinds = _few_kinds(_joined_unsampled(history))
    with _quiet_numerics():
        renyi = min(unsampled, _rdp_epsilon(kinds, delta))
        if delta < _LEAST_PRV_DELTA or not least < renyi < largest:
            return renyi
        return min(renyi, _prv_epsilon(kinds, delta, min(error, error * renyi)))


def _gaussian_mu(history: History) -> float:
    """Sensitivity over noise of one Gaussian release worth the history without sampling."""
    return math.sqrt(
        sum(steps * (1 / noise) * (1 / noise) for (noise, _), steps in history.items())
    )


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Solve the Gaussian mechanism's delta(epsilon) exactly (Balle and Wang, ICML 2018)."""
    highest = mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    if not highest < 1e12:
        return math.inf

    def excess(candidate: float) -> float:
        first = log_ndtr(mu / 2 - candidate / mu)
        second = candidate + log_ndtr(-mu / 2 - candidate / mu)
        return float(-np.exp(first) * np.expm1(min(second - first, 0.0)) - delta)

    if excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, highest, xtol=1e-12)) * (1 + 1e-9)


def _joined_unsampled(history: History) -> History:
    """Put all releases without sampling into one: Gaussians compose exactly, 1/sigma^2 adds."""
    whole = {kind: steps for kind, steps in history.items() if kind[1] == 1}
    sampled = {kind: steps for kind, steps in history.items() if kind[1] < 1}
    return {**sampled, (1 / _gaussian_mu(whole), 1.0): 1} if whole else sampled


def _few_kinds(history: History) -> History:
    """Charge near kinds alike, with less noise and more sampling than they had: never less.

    Of all pairs, the one that it makes least dearer is joined first.
    """
    noise, rate = np.array(list(history), dtype=np.float64).T
    steps = np.array(list(history.values()), dtype=np.float64)
    there = np.full(len(history), True)

    def dearer(kind: int) -> NDArray[np.float64]:
        """What it adds to join `kind` with each other; never with itself."""
        joined = _weight(np.minimum(noise, noise[kind]), np.maximum(rate, rate[kind]))
        apart = steps * _weight(noise, rate)
        added: NDArray[np.float64] = (steps + steps[kind]) * joined - apart - apart[kind]
        added[~there] = added[kind] = np.inf
        return added

    if excess := max(0, len(history) - _MAX_KINDS):
        added = np.array([dearer(kind) for kind in range(len(history))])
    for _ in range(excess):
        one, other = divmod(int(np.argmin(added)), len(history))
        noise[one] = min(noise[one], noise[other])
        rate[one] = max(rate[one], rate[other])
        steps[one] += steps[other]
        there[other] = False
        added[other] = added[:, other] = np.inf
        added[one] = added[:, one] = dearer(one)
    few: History = defaultdict(int)
    for kind in np.flatnonzero(there):
        few[float(noise[kind]), float(rate[kind])] += int(steps[kind])
    return few


def _weight(noise: NDArray[np.float64], rate: NDArray[np.float64]) -> NDArray[np.float64]:
    """About how much a step counts: the divergence of many small steps (Dong et al., 2022)."""
    weight: NDArray[np.float64] = rate**2 * np.expm1(np.minimum((1 / noise) ** 2, 300.0))
    return weight


def _rdp_epsilon(history: History, delta: float) -> float:
    orders = (*_ORDERS, *_HIGH_ORDERS)
    try:
        divergence = sum(
            _rdp(kind, steps, [o if kind[0] <= _LITTLE_NOISE else math.ceil(o) for o in orders])
            for kind, steps in history.items()
        )
        bound, _ = get_privacy_spent(orders=orders, rdp=divergence, delta=delta)
    except _ARITHMETIC:
        return math.inf
    return math.inf if math.isnan(bound) else max(float(bound), 0.0)


def _rdp(kind: tuple[float, float], steps: int, orders: list[float]) -> NDArray[np.float64]:
    """Renyi divergence of each order; it grows with the order, so a higher one is a bound."""
    return steps * np.array([_rdp_of_step(*kind, order) for order in orders], dtype=np.float64)


@lru_cache(maxsize=4096)  # every round asks again about the same steps, only more of them
def _rdp_of_step(noise: float, rate: float, order: float) -> float:
    return float(compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=[order])[0])


def _prv_epsilon(history: History, delta: float, error: float) -> float:
    """Give PRV's upper bound, or infinity where it must not be trusted."""
    accountant = _FastPRVAccountant()
    accountant.history = [(*kind, steps) for kind, steps in history.items()]
    delta_error = delta / 1000
    try:
        composed = accountant._get_dprv(eps_error=error, delta_error=delta_error)
        # Probability that rounding lost or made in the transforms is taken from delta.
        lost = abs(1 - composed.pmf.sum()) + np.abs(composed.pmf).sum() - composed.pmf.sum()
        if not lost < delta / 5:
            return math.inf
        low, middle, high = composed.compute_epsilon(delta - lost, delta_error, error)
    except _ARITHMETIC:
        return math.inf
    sound = math.isfinite(high) and 0 <= middle <= high and low <= middle
    return float(high) if sound else math.inf


class _FastPRVAccountant(PRVAccountant):  # type: ignore[misc]  # opacus ships no types
    """PRV on a grid of a length that transforms fast, with one transform a kind.

    The length that the error asks for may hold a large prime, and then takes five times as
    long; and Opacus asks its slow Renyi orders for the width, transforms kinds back before it
    convolves them pair by pair, and asks for each cell's bounds twice.
    """

    def _get_dprv(self, eps_error: float, delta_error: float) -> DiscretePRV:
        """Convolve all steps on the circle (Gopi et al., algorithm 1): spectra multiply."""
        domain = self._get_domain([], [steps for *_, steps in self.history], eps_error, delta_error)
        spectrum: Any = 1.0
        total, shift = 0, 0.0
        for noise, rate, steps in self.history:
            prv = TruncatedPrivacyRandomVariable(
                PoissonSubsampledGaussianPRV(rate, noise), domain.t_min, domain.t_max
            )
            pmf, its_shift = _discrete(prv, domain, _support(noise, rate))
            spectrum = spectrum * _power(rfft(pmf), steps)
            total, shift = total + steps, shift + steps * its_shift
        # Index i stands for t_min + i dt, and t_min was added once too often for each step more.
        pmf = np.roll(irfft(spectrum, domain.size), (total - 1) * (1 - domain.size // 2))
        return DiscretePRV(pmf=pmf, domain=domain.shift_right(shift))

    def _get_domain(
        self,
        prvs: list[Any],
        num_self_compositions: list[int],
        eps_error: float,
        delta_error: float,
    ) -> Domain:
        # Gopi et al., remark 5.6, as Opacus has it: losses beyond the width are rarer than
        # delta_error, for all steps together and for each alone.
        steps = sum(num_self_compositions)
        together = {(noise, rate): count for noise, rate, count in self.history}
        widths = [_rdp_epsilon(together, delta_error / 4)]
        widths += [_rdp_epsilon({kind: 1}, delta_error / (8 * steps)) for kind in together]
        mesh = eps_error / math.sqrt(steps * math.log(12 / delta_error) / 2)
        points = (max(*widths, eps_error) + 3) / mesh
        if not points < _MAX_POINTS / 2:
            raise ValueError("the grid is too large")
        half = next_fast_len(math.ceil(points) + 1, real=True)
        # The composition expects 0 at index half - 1.
        return Domain(t_min=-(half - 1) * mesh, t_max=half * mesh, size=2 * half)


def _power(values: NDArray[np.complex128], exponent: int) -> NDArray[np.complex128]:
    """Square and multiply: numpy takes a complex logarithm and exponential of each value."""
    power = np.ones_like(values)
    while exponent:
        if exponent & 1:
            power *= values
        exponent >>= 1
        if exponent:
            values = values * values
    return power


def _support(noise: float, rate: float) -> tuple[float, float]:
    """Losses of one step below which the distribution is 0, and above which it rounds to 1.

    Of many small steps' grid it is a small part. Above, both of its complementary error
    functions are those of 6 and more, together less than half of the last bit of 1.
    """
    ratio = (12 * math.sqrt(2) * noise + 1) / (2 * noise**2)
    highest = math.log1p(rate * math.expm1(ratio)) if ratio < 700 else math.inf
    return (math.log1p(-rate) if rate < 1 else -math.inf), highest


def _discrete(
    prv: TruncatedPrivacyRandomVariable, domain: Domain, support: tuple[float, float]
) -> tuple[NDArray[np.float64], float]:
    """Give the probability of each cell of the grid, and the shift that keeps the mean."""
    points = domain.ts
    edges = np.append(points - domain.dt / 2, points[-1] + domain.dt / 2)
    start, end = np.searchsorted(edges, support)
    below = np.zeros_like(edges)
    below[start:end] = prv.cdf(edges[start:end])
    below[end:] = 1.0
    pmf = np.diff(below)
    there = slice(max(start - 1, 0), end)  # every cell that is not 0
    shift = float(prv.mean() - np.dot(points[there], pmf[there]))
    if not abs(shift) < domain.dt / 2:
        raise RuntimeError("the grid's mean differs from the continuous one by half a cell")
    return pmf, shift


@contextmanager
def _quiet_numerics() -> Iterator[None]:
    """Silence what Opacus' formulas say at their edges; their results are checked instead."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
