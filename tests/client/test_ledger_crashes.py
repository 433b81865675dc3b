"""Whatever dies wherever, the ledger holds at least what was released."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from medsynth_client import hash_chain
from medsynth_client.ledger import Ledger
from medsynth_client.spending import Spent

DELTA = 1e-3


class Gaussian(NamedTuple):
    noise_multiplier: float
    sampling_rate: float
    steps: int
    name: str = "critic"
    clip: float = 1.0


UNSAMPLED = (Gaussian(8.0, 1.0, 1), Gaussian(12.0, 1.0, 3))
SAMPLED = (Gaussian(3.0, 0.1, 10), Gaussian(6.0, 1.0, 1))

#: Where a crash may strike, between every two durable steps of one round.
STEPS = (
    "before the reservation is committed",
    "before its head is written",
    "before the release",
    "after the release",
    "before the confirmation is committed",
    "before the confirmation's head is written",
    "never",
)


class Crash(BaseException):
    """The process died here."""


@dataclass
class Fuse:
    """Blows at one durable step."""

    step: str = "never"
    reserving: bool = True

    def clock(self) -> datetime:  # asked within the transaction, before the row is written
        what = "reservation" if self.reserving else "confirmation"
        self.blow(f"before the {what} is committed")
        return datetime.now(UTC)

    def head(self, write: Callable[..., None], record: Path, head: hash_chain.Head) -> None:
        what = "its" if self.reserving else "the confirmation's"
        self.blow(f"before {what} head is written")
        write(record, head)

    def blow(self, step: str) -> None:
        if self.step == step:
            self.step = "never"
            raise Crash


@dataclass
class Hospital:
    """Does rounds with a ledger, dies now and then, and remembers what truly left."""

    open_ledger: Callable[[Fuse], Ledger]
    fuse: Fuse = field(default_factory=Fuse)
    released: Counter[tuple[float, float]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.ledger = self.open_ledger(self.fuse)

    def round(self, mechanism: Gaussian, crash: str) -> None:
        self.fuse.step = crash
        try:
            self._round(mechanism)
        except Crash:
            self.fuse.reserving = True
            self.ledger = self.open_ledger(self.fuse)

    def _round(self, mechanism: Gaussian) -> None:
        self.fuse.reserving = True
        receipt = self.ledger.reserve(
            project="run", stage="segment", round=1, plan_digest="c" * 64, mechanism=mechanism
        )
        self.fuse.blow("before the release")
        self.released[mechanism.noise_multiplier, mechanism.sampling_rate] += mechanism.steps
        self.fuse.blow("after the release")
        self.fuse.reserving = False
        self.ledger.confirm(receipt, release_sha256="d" * 64)


def check_nothing_is_forgotten(hospital: Hospital) -> None:
    charged: Counter[tuple[float, float]] = Counter()
    for line in hospital.ledger.statement():
        charged[line.noise_multiplier, line.sampling_rate] += line.steps
    assert all(charged[kind] >= steps for kind, steps in hospital.released.items())
    assert hospital.ledger.spent() >= independent_epsilon(hospital.released) - 1e-6


def ledger_epsilon(spent: Sequence[Spent], delta: float) -> float:
    """Opacus' PRV accountant; without sampling, the exact Gaussian mechanism."""
    if all(one.sampling_rate == 1 for one in spent):
        return gaussian_epsilon(math.sqrt(sum(s.steps / s.noise_multiplier**2 for s in spent)))
    accountant = PRVAccountant()
    accountant.history = [(s.noise_multiplier, s.sampling_rate, s.steps) for s in spent]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta))


def gaussian_epsilon(mu: float) -> float:
    """Balle and Wang, ICML 2018, theorem 8."""

    def excess(epsilon: float) -> float:
        above = norm.cdf(mu / 2 - epsilon / mu)
        return float(above - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - DELTA)

    return float(brentq(excess, 0, 50))


def independent_epsilon(released: Counter[tuple[float, float]]) -> float:
    """Google's accountant (privacy loss distributions)."""
    accountant = PLDAccountant()
    for (noise_multiplier, sampling_rate), steps in released.items():
        gaussian = dp_event.GaussianDpEvent(noise_multiplier)
        accountant.compose(dp_event.PoissonSampledDpEvent(sampling_rate, gaussian), steps)
    return float(accountant.get_epsilon(DELTA))


def live(hospital: Hospital, kinds: Sequence[Gaussian], *, rounds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        hospital.round(kinds[int(rng.integers(len(kinds)))], STEPS[int(rng.integers(len(STEPS)))])


WRITE_HEAD = hash_chain.write_head


def honest(path: Path, monkeypatch: pytest.MonkeyPatch, fuse: Fuse) -> Ledger:
    """Open the ledger, its durable steps wired to the fuse."""
    monkeypatch.setattr(hash_chain, "write_head", partial(fuse.head, WRITE_HEAD))
    ledger = Ledger(path, cap=100.0, delta=DELTA, epsilon=ledger_epsilon, clock=fuse.clock)
    ledger.register_dataset(["anna", "bert"])
    return ledger


@pytest.mark.parametrize("seed", range(20))
def test_random_histories_with_crashes_never_under_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    hospital = Hospital(partial(honest, tmp_path / "ledger.db", monkeypatch))
    sampled = seed % 7 == 0  # PRV takes a while
    live(hospital, SAMPLED if sampled else UNSAMPLED, rounds=3 if sampled else 6, seed=seed)
    check_nothing_is_forgotten(hospital)
    assert hospital.ledger.verify() == []


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_each_step_over_counts_at_most_that_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    hospital = Hospital(partial(honest, tmp_path / "ledger.db", monkeypatch))
    hospital.round(UNSAMPLED[0], "never")
    hospital.round(UNSAMPLED[0], step)
    hospital.round(UNSAMPLED[0], "never")
    check_nothing_is_forgotten(hospital)
    charged = sum(line.releases for line in hospital.ledger.statement())
    assert charged == (2 if step == "before the reservation is committed" else 3)
    assert hospital.ledger.verify() == []


def test_a_ledger_that_forgets_at_a_restart_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every platform does that starts its accountant anew with each run."""
    paths = (tmp_path / f"ledger-{number}.db" for number in range(100))
    hospital = Hospital(lambda fuse: honest(next(paths), monkeypatch, fuse))
    hospital.round(UNSAMPLED[0], "after the release")
    hospital.round(UNSAMPLED[0], "never")
    with pytest.raises(AssertionError):
        check_nothing_is_forgotten(hospital)


def test_a_ledger_that_charges_after_the_release_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Hospital):
        def _round(self, mechanism: Gaussian) -> None:
            self.released[mechanism.noise_multiplier, mechanism.sampling_rate] += mechanism.steps
            self.fuse.blow("after the release")
            self.ledger.reserve(
                project="run", stage="segment", round=1, plan_digest="c" * 64, mechanism=mechanism
            )

    hospital = Late(partial(honest, tmp_path / "ledger.db", monkeypatch))
    hospital.round(UNSAMPLED[0], "after the release")
    with pytest.raises(AssertionError):
        check_nothing_is_forgotten(hospital)
