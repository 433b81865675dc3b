"""Whatever dies wherever, the ledger holds at least what was released.

Two hundred random histories: data sets that patients join and leave, plans of one or two
mechanisms, up to three processes on one ledger, each killed now and then between any two durable
steps, and power cuts that leave the folder as the disk had it at that instant, a commit torn in
the middle included. What truly left is kept apart, patient by patient, and counted by an
independent accountant's lower bound: a ledger below even that has forgotten something.
"""

import math
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy.optimize import brentq
from scipy.stats import norm

from medsynth_client import hash_chain
from medsynth_client.audit import AuditEvent, AuditLog
from medsynth_client.ledger import Ledger, Receipt
from medsynth_client.ledger_file import LedgerFile
from medsynth_client.ledger_record import Confirmation, LedgerRecord, Reservation
from medsynth_client.spending import epsilon_of
from medsynth_common.durable import write_bytes
from medsynth_common.errors import BudgetExhausted

DELTA = 1e-3
CAP = 2.5
HISTORIES = 200
PATIENTS = ("anna", "bert", "carl", "dora", "emil")
#: What the ledger's accountant is not asked to be better than.
ROUNDING = 1e-6


class Gaussian(NamedTuple):
    noise_multiplier: float
    sampling_rate: float
    steps: int
    name: str
    clip: float = 1.0


UNSAMPLED = (
    Gaussian(8.0, 1.0, 1, "level"),
    Gaussian(12.0, 1.0, 3, "critic"),
    Gaussian(9.5, 1.0, 2, "paired"),
)
SAMPLED = (Gaussian(3.0, 0.1, 10, "segmenter"), Gaussian(6.0, 1.0, 1, "level"))

#: Where a crash may strike, between every two durable steps of one round.
STEPS = (
    "before the reservation is committed",
    "while the reservation is committed",
    "before its head is written",
    "before noise is drawn",
    "after noise is drawn",
    "after the release is audited",
    "after the answer is kept",
    "before the confirmation is committed",
    "while the confirmation is committed",
    "before the confirmation's head is written",
    "never",
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where that can be had: what a crash leaves is copied, not trusted to a disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


class Crash(BaseException):
    """The process died here."""


class Hospital:
    """Does rounds as a site does, dies now and then, and remembers what truly left."""

    def __init__(self, folder: Path, *, seed: int, processes: int) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(seed)
        self.released: defaultdict[str, Counter[tuple[float, float]]] = defaultdict(Counter)
        self.step = "never"
        self.power_cut = False
        self.phase = "reservation"
        self.crashes = 0
        self._cuts = 0
        self.members = [self.draw_members() for _ in range(processes)]
        self.ledgers = [self.open(process) for process in range(processes)]

    def draw_members(self) -> list[str]:
        members = [patient for patient in PATIENTS if self.rng.random() < 0.6]
        return members or [PATIENTS[0]]

    def open(self, process: int) -> Ledger:
        ledger = Ledger(
            self.folder / "ledger.db",
            cap=CAP,
            delta=DELTA,
            epsilon=epsilon_of,
            clock=self.clock,
        )
        ledger.register_dataset(self.members[process])
        return ledger

    def live(self, kinds: Sequence[Gaussian], rounds: int) -> None:
        for number in range(rounds):
            process = int(self.rng.integers(len(self.ledgers)))
            if self.rng.random() < 0.3:  # somebody joined or left
                self.members[process] = self.draw_members()
                self.ledgers[process].register_dataset(self.members[process])
            chosen = self.rng.permutation(len(kinds))[: int(self.rng.integers(1, 3))]
            step = STEPS[int(self.rng.integers(len(STEPS)))]
            self.round(
                number,
                [kinds[kind] for kind in chosen],
                step,
                process=process,
                power_cut=bool(self.rng.random() < 0.5),
            )

    def round(
        self,
        number: int,
        mechanisms: Sequence[Gaussian],
        step: str,
        *,
        process: int = 0,
        power_cut: bool = False,
    ) -> None:
        self.step, self.power_cut, self.phase = step, power_cut, "reservation"
        try:
            self.answer(number, mechanisms, process)
        except BudgetExhausted:
            pass
        except Crash:
            dead = range(len(self.ledgers)) if self.power_cut else [process]
            for one in dead:
                self.ledgers[one] = self.open(one)
        self.step = "never"

    def answer(self, number: int, mechanisms: Sequence[Gaussian], process: int) -> None:
        """The durable steps of `Site.carry`, in its order."""
        receipts = self.reserve(number, mechanisms, process)
        self.blow("before noise is drawn")
        self.draw_noise(mechanisms, process)
        self.blow("after noise is drawn")
        AuditLog(self.folder / "audit.jsonl").append(
            AuditEvent(
                project="run",
                stage="segment",
                round=number,
                outcome="released",
                bytes=1,
                sha256="d" * 64,
                plan_digest="c" * 64,
                receipts=tuple(receipt.entry_digest for receipt in receipts),
            )
        )
        self.blow("after the release is audited")
        write_bytes(self.folder / "state" / "run.safetensors", b"answer")
        self.blow("after the answer is kept")
        self.phase = "confirmation"
        for receipt in receipts:
            self.ledgers[process].confirm(receipt, release_sha256="d" * 64)

    def reserve(self, number: int, mechanisms: Sequence[Gaussian], process: int) -> list[Receipt]:
        return self.ledgers[process].reserve_all(
            project="run",
            stage="segment",
            round=number,
            plan_digest="c" * 64,
            mechanisms=mechanisms,
        )

    def draw_noise(self, mechanisms: Sequence[Gaussian], process: int) -> None:
        """From here on a release may be out, whatever happens next."""
        for patient in self.members[process]:
            for one in mechanisms:
                self.released[patient][one.noise_multiplier, one.sampling_rate] += one.steps

    # Where it dies.

    def blow(self, step: str, *, torn: bool = False) -> None:
        if self.step != step:
            return
        self.step = "never"
        self.crashes += 1
        self.power_cut = self.power_cut or torn
        if self.power_cut:
            self.cut_power(torn=torn)
        raise Crash

    def cut_power(self, *, torn: bool) -> None:
        """Go on in a copy of the folder as it is on disk now; what dies tidies up the old one."""
        self._cuts += 1
        cut = self.folder.with_name(f"cut-{self._cuts}")
        shutil.copytree(self.folder, cut)
        if torn:
            log = cut / "ledger.db-wal"
            size = log.stat().st_size
            assert size > 0  # else nothing is being committed
            log.write_bytes(log.read_bytes()[: int(self.rng.integers(size))])
        self.folder = cut

    def clock(self) -> datetime:  # asked within the transaction, before a row is written
        self.blow(f"before the {self.phase} is committed")
        return datetime.now(UTC)

    def head(self, record: Path, head: hash_chain.Head) -> None:
        if record.name == "ledger.db":
            self.blow(f"while the {self.phase} is committed", torn=True)
            its = "its" if self.phase == "reservation" else "the confirmation's"
            self.blow(f"before {its} head is written")
        WRITE_HEAD(record, head)


WRITE_HEAD = hash_chain.write_head


# What truly left, by accountants that owe the ledger's nothing.


def true_epsilon(released: Counter[tuple[float, float]]) -> float:
    """A lower bound; without sampling, the truth."""
    if all(rate == 1 for _, rate in released):
        return gaussian_epsilon(math.sqrt(sum(n / noise**2 for (noise, _), n in released.items())))
    return optimistic_epsilon(frozenset(released.items()))


def gaussian_epsilon(mu: float) -> float:
    """Balle and Wang, ICML 2018, theorem 8."""

    def excess(epsilon: float) -> float:
        above = norm.cdf(mu / 2 - epsilon / mu)
        return float(above - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) - DELTA)

    return float(brentq(excess, 0, 50)) if mu and excess(0.0) > 0 else 0.0


@cache
def optimistic_epsilon(released: frozenset[tuple[tuple[float, float], int]]) -> float:
    """Google's privacy loss distributions, rounded down."""
    total = privacy_loss_distribution.identity(pessimistic_estimate=False)
    for (noise_multiplier, sampling_rate), steps in released:
        one = privacy_loss_distribution.from_gaussian_mechanism(
            noise_multiplier,
            sampling_prob=sampling_rate,
            pessimistic_estimate=False,
            use_connect_dots=False,
        )
        total = total.compose(one.self_compose(steps))
    return float(total.get_epsilon_for_delta(DELTA))


def check_nothing_is_forgotten(hospital: Hospital) -> None:
    hospital.step = "never"
    path = hospital.folder / "ledger.db"
    opened = Ledger(path, cap=CAP, delta=DELTA, epsilon=epsilon_of)
    file, record = LedgerFile(path), LedgerRecord()
    with file.held() as connection:
        file.catch_up(connection, record)
    for patient in PATIENTS:
        truth = true_epsilon(hospital.released[patient])
        for ledgers in (ledgers_epsilon(file, record, patient), opened.spent()):
            assert truth <= ledgers + ROUNDING, f"under-counts {patient}: {ledgers}, not {truth}"
        assert truth <= CAP
    assert opened.verify() == []


def ledgers_epsilon(file: LedgerFile, record: LedgerRecord, patient: str) -> float:
    pseudonyms = file.pseudonyms(record).of([patient])
    record.spending.register(patient, pseudonyms)
    return record.spending.worst(epsilon_of, DELTA, patient)


@contextmanager
def wired(hospital: Callable[[], Hospital], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hospital]:
    """A hospital whose ledger's head is written through its hands."""
    made: list[Hospital] = []

    def write(record: Path, head: hash_chain.Head) -> None:
        if made:
            made[0].head(record, head)
        else:
            WRITE_HEAD(record, head)

    with monkeypatch.context() as patched:
        patched.setattr(hash_chain, "write_head", write)
        made.append(hospital())
        yield made[0]


def live_and_check(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int, kind: type[Hospital] = Hospital
) -> None:
    sampled = seed % 5 == 0
    with wired(
        lambda: kind(folder / "site", seed=seed, processes=1 + seed % 3), monkeypatch
    ) as hospital:
        hospital.live(SAMPLED if sampled else UNSAMPLED, rounds=4 if sampled else 6)
        check_nothing_is_forgotten(hospital)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(HISTORIES))
def test_random_histories_with_crashes_never_under_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    live_and_check(folder, monkeypatch, seed)


@pytest.mark.parametrize("power_cut", [False, True], ids=["killed", "power cut"])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_each_step_over_counts_at_most_that_round(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str, power_cut: bool
) -> None:
    with wired(lambda: Hospital(folder / "site", seed=1, processes=2), monkeypatch) as hospital:
        hospital.round(1, UNSAMPLED[:1], "never")
        hospital.round(2, UNSAMPLED[:2], step, power_cut=power_cut)
        assert hospital.crashes == (step != "never")
        hospital.round(3, UNSAMPLED[:1], "never")
        check_nothing_is_forgotten(hospital)
        charged = sum(line.releases for line in hospital.ledgers[0].statement())
    nothing_left = step.startswith(("before the reservation", "while the reservation"))
    assert charged == (2 if nothing_left else 4)


def test_what_leaves_stays_within_the_cap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with wired(lambda: Hospital(folder / "site", seed=1, processes=1), monkeypatch) as hospital:
        for number in range(40):
            hospital.round(number, UNSAMPLED, "never")
        check_nothing_is_forgotten(hospital)
        worst = max(true_epsilon(hospital.released[patient]) for patient in PATIENTS)
    assert 0.8 * CAP < worst <= CAP


# Planted bugs.


class Late(Hospital):
    """Charges when all is done, as an accountant does that counts steps taken."""

    def answer(self, number: int, mechanisms: Sequence[Gaussian], process: int) -> None:
        self.draw_noise(mechanisms, process)
        self.blow("after noise is drawn")
        self.reserve(number, mechanisms, process)


class Restarting(Hospital):
    """Begins anew at each start, as every platform does that keeps its accountant in memory."""

    def open(self, process: int) -> Ledger:
        for path in self.folder.glob("ledger.db*"):
            path.unlink()
        return super().open(process)


def forget_unconfirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count what was confirmed only: a reservation that a crash left open is forgotten."""
    confirm = LedgerRecord._confirm

    def note(self: LedgerRecord, number: int, body: Reservation, digest: str) -> None:
        self.reservations[number] = digest, body

    def charge(self: LedgerRecord, number: int, body: Confirmation) -> None:
        confirm(self, number, body)
        _, reservation = self.reservations[body.reservation]
        self.spending.charge(reservation.dataset, reservation.project, reservation.charge)

    monkeypatch.setattr(LedgerRecord, "_reserve", note)
    monkeypatch.setattr(LedgerRecord, "_confirm", charge)


@pytest.mark.parametrize("bug", ["late", "forgetful"])
def test_a_planted_bug_is_caught_by_the_random_histories(
    folder: Path, monkeypatch: pytest.MonkeyPatch, bug: str
) -> None:
    if bug == "forgetful":
        forget_unconfirmed(monkeypatch)
    caught = 0
    for seed in (1, 2, 3, 4, 6, 7, 8, 9):
        try:
            kind = Late if bug == "late" else Hospital
            live_and_check(folder / str(seed), monkeypatch, seed, kind)
        except AssertionError as error:
            caught += "under-counts" in str(error)
    assert caught >= 3


def test_a_ledger_that_begins_anew_at_a_restart_is_caught(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wired(lambda: Restarting(folder / "site", seed=1, processes=1), monkeypatch) as hospital:
        hospital.round(1, UNSAMPLED[:1], "after the answer is kept")
        hospital.round(2, UNSAMPLED[:1], "never")
        with pytest.raises(AssertionError, match="under-counts"):
            check_nothing_is_forgotten(hospital)
