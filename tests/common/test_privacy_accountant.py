import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants.analysis.prv import (
    PoissonSubsampledGaussianPRV,
    TruncatedPrivacyRandomVariable,
)
from scipy.stats import norm

from medsynth_common.privacy import bounds
from medsynth_common.privacy.accountant import epsilon, guarantee
from medsynth_common.privacy.mechanism import Gaussian, Release, Unprotected

History = list[tuple[float, float, int]]


def releases(history: History) -> list[Release]:
    return [
        Release(noise_multiplier=noise, sampling_rate=rate, steps=steps)
        for noise, rate, steps in history
    ]


def pld_epsilon(history: History, delta: float) -> float:
    """The same by Google's accountant, another method and another code."""
    ledger = PLDAccountant()
    for noise, rate, steps in history:
        step = dp_event.GaussianDpEvent(noise)
        ledger.compose(step if rate == 1 else dp_event.PoissonSampledDpEvent(rate, step), steps)
    return float(ledger.get_epsilon(delta))


@pytest.mark.parametrize(
    ("history", "delta"),
    [
        ([(4.18, 0.25, 1000)], 2.5e-3),
        ([(1.0, 0.1, 200)], 1e-3),
        ([(20.0, 0.25, 1000)], 1e-9),
        ([(50.0, 0.1, 10)], 1e-5),
        ([(0.8, 0.05, 1)], 1e-5),
        ([(6.0, 0.25, 300), (3.0, 0.1, 200), (8.0, 1.0, 1), (9.0, 1.0, 2)], 1e-3),
    ],
)
def test_epsilon_agrees_with_an_independent_accountant(history: History, delta: float) -> None:
    ours, theirs = epsilon(releases(history), delta), pld_epsilon(history, delta)
    assert theirs - 1e-3 <= ours <= theirs + 0.02


@pytest.mark.parametrize(
    ("history", "delta", "truth"),
    [
        ([(0.3, 0.1, 200)], 1e-3, 129.4325),  # epsilon above 100
        ([(20.0, 0.25, 1000)], 1e-11, 2.5691),  # delta too small for a transform
    ],
)
def test_where_prv_does_not_serve_epsilon_stays_a_close_upper_bound(
    history: History, delta: float, truth: float
) -> None:
    # The truth is dp-accounting's PLD, which takes many seconds here.
    assert truth <= epsilon(releases(history), delta) <= 1.25 * truth


def test_many_kinds_are_counted_each_by_itself() -> None:
    """A site that answered a few calibrated runs has twenty kinds soon."""
    kinds = [(3 + 0.3 * i, 0.05 + 0.01 * i, 40) for i in range(20)]
    ours, theirs = epsilon(releases(kinds), 1e-5), pld_epsilon(kinds, 1e-5)
    assert theirs - 1e-3 <= ours <= theirs + 0.02


def test_more_kinds_than_that_are_charged_alike_and_never_less() -> None:
    rng = np.random.default_rng(3)
    kinds = [(rng.uniform(2, 8), rng.uniform(0.02, 0.2), 20) for _ in range(44)]
    history = {(noise, rate): steps for noise, rate, steps in kinds}
    few = bounds._few_kinds(history)
    assert len(few) == 32
    assert sum(few.values()) == sum(history.values())
    # Each kind stands for others with at least as much noise and at most as much sampling.
    assert all(any(noise >= less and rate <= more for less, more in few) for noise, rate in history)
    ours, theirs = epsilon(releases(kinds), 1e-5), pld_epsilon(kinds, 1e-5)
    assert theirs - 1e-3 <= ours <= 1.05 * theirs


@given(
    st.lists(st.tuples(st.floats(0.3, 50.0), st.integers(1, 1000)), min_size=1, max_size=5),
    st.floats(1e-9, 0.1),
)
def test_without_sampling_epsilon_is_the_gaussian_mechanisms(
    history: list[tuple[float, int]], delta: float
) -> None:
    found = epsilon(releases([(noise, 1.0, steps) for noise, steps in history]), delta)
    mu = math.sqrt(sum(steps / noise**2 for noise, steps in history))
    # Balle and Wang 2018, theorem 8, written with survival functions and logarithms.
    second = math.exp(min(found + float(norm.logsf(mu / 2 + found / mu)), 0.0))
    true_delta = float(norm.sf(found / mu - mu / 2)) - second
    assert true_delta <= delta * (1 + 1e-6)
    assert found == 0 or true_delta >= delta * (1 - 1e-3)


def test_equal_releases_are_charged_together_however_they_come() -> None:
    together = epsilon(releases([(5.0, 0.25, 100), (7.0, 0.25, 60)]), 1e-3)
    apart = releases([(5.0, 0.25, 5), (7.0, 0.25, 3)] * 20)
    assert epsilon(apart, 1e-3) == together


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    off = Unprotected(name="critic", sampling_rate=0.1, steps=1)
    assert epsilon([], 1e-5) == 0
    assert epsilon([*releases([(5.0, 0.25, 1)]), *off.releases], 1e-5) == math.inf


@pytest.mark.parametrize("noise", [1e-200, 1e-9, 0.01])
def test_hardly_any_noise_costs_hugely_and_breaks_nothing(noise: float) -> None:
    assert epsilon(releases([(noise, 0.5, 10)]), 1e-5) > 1e4


def test_enormous_noise_costs_hardly_anything() -> None:
    assert 0 <= epsilon(releases([(1e9, 0.5, 10)]), 1e-5) < 1e-3


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_that_is_no_probability_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon([], delta)


def test_more_steps_never_cost_less() -> None:
    costs = [epsilon(releases([(3.0, 0.2, steps)]), 1e-3) for steps in (1, 10, 30, 100)]
    assert costs == sorted(costs)


@pytest.mark.parametrize(
    "failure", [ValueError("domain"), RuntimeError("mean"), FloatingPointError("overflow")]
)
def test_when_prv_fails_renyi_answers(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    history = [(4.18, 0.25, 100)]
    good = epsilon(releases(history), 1e-3)

    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(bounds._FastPRVAccountant, "_get_dprv", fail)
    assert good < epsilon(releases(history), 1e-3) < 1.2 * good


def test_a_distribution_that_lost_probability_is_not_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    history = [(4.18, 0.25, 100)]
    good = epsilon(releases(history), 1e-3)
    whole = bounds._FastPRVAccountant._get_dprv

    def lossy(self: bounds._FastPRVAccountant, **what: float) -> object:
        found = whole(self, **what)
        found.pmf = np.where(found.domain.ts > 0.9 * good, 0.0, found.pmf)
        return found

    monkeypatch.setattr(bounds._FastPRVAccountant, "_get_dprv", lossy)
    assert epsilon(releases(history), 1e-3) > good


@pytest.mark.parametrize("steps", [1, 500])
@pytest.mark.parametrize(
    ("noise", "rate"),
    [(0.5, 0.001), (1.0, 0.05), (6.0, 0.05), (6.0, 0.999), (6.0, 1.0), (150.0, 0.3)],
)
def test_the_part_of_the_grid_left_out_holds_nothing(steps: int, noise: float, rate: float) -> None:
    accountant = bounds._FastPRVAccountant()
    accountant.history = [(noise, rate, steps)]
    with bounds._quiet_numerics():
        domain = accountant._get_domain([], [steps], bounds.ERROR, 1e-8)
        step = PoissonSubsampledGaussianPRV(rate, noise)
        prv = TruncatedPrivacyRandomVariable(step, domain.t_min, domain.t_max)
        part, shift = bounds._discrete(prv, domain, bounds._support(noise, rate))
        everywhere, its_shift = bounds._discrete(prv, domain, (-math.inf, math.inf))
    np.testing.assert_array_equal(part, everywhere)
    assert shift == pytest.approx(its_shift, abs=1e-12)


def test_a_guarantee_names_all_that_it_means() -> None:
    used = Gaussian(name="critic", clip=1.0, noise_multiplier=4.0, sampling_rate=0.25, steps=100)
    off = Unprotected(name="segmenter", sampling_rate=0.25, steps=10)
    stated = guarantee([used], delta=1e-3)
    assert stated.epsilon == epsilon(used.releases, 1e-3)
    for part in (f"{stated.epsilon:.3g}", "0.001", "patient", "critic", "100 steps"):
        assert part in str(stated)
    assert "inf" in str(guarantee([used, off], delta=1e-3))
    assert "no noise" in str(guarantee([used, off], delta=1e-3))
