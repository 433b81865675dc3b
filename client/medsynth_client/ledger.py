"""The hospital's privacy ledger: what was charged for each patient, for life.

Reserve, release, confirm are separate rows of one append-only, hash-chained SQLite table. A
reservation is on disk before any noise is drawn, and counts as spent whether or not its release
is ever confirmed: a crash may over-count, never under-count. The file spans runs, projects and
restarts; several processes may use it at once.

    ledger = Ledger(folder / "ledger.db", cap=8.0, delta=1e-5, epsilon=epsilon_of)
    ledger.register_dataset(["patient-1", "patient-2"])
    receipts = ledger.reserve_all(project=..., stage=..., round=..., plan_digest=...,
                                  mechanisms=[...])
    ...train, pass the gate...
    ledger.confirm(receipts[0], release_sha256=...)
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from math import isfinite
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from medsynth_client import hash_chain
from medsynth_client.charge import Charge, Mechanism
from medsynth_client.hash_chain import Head
from medsynth_client.ledger_file import LedgerFile, guard_problems, insert
from medsynth_client.ledger_record import (
    Confirmation,
    DataSet,
    LedgerRecord,
    Reservation,
    Sha256,
    make_row,
)
from medsynth_client.spending import EVERYONE, EpsilonOf, StatementLine, fits, remembered
from medsynth_common.errors import (
    BadConfig,
    BadMessage,
    BadRecord,
    BudgetExhausted,
    NotCharged,
    Problem,
)


class Receipt(BaseModel):
    """Proof that a release was charged before it was made.

    Attributes:
        project: the run it was made for.
        stage: the run's stage.
        round: the stage's round.
        plan_digest: SHA-256 of the plan.
        mechanism: what was charged, by name.
        epsilon: spent by the patient charged most, this included; None when unbounded.
        delta: the failure probability that epsilon is stated with.
        entry: the ledger row.
        entry_digest: the chain's digest there; kept elsewhere, it is a witness of the ledger.

    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    project: str
    stage: str
    round: int
    plan_digest: Sha256
    mechanism: str
    epsilon: float | None
    delta: float
    entry: int
    entry_digest: Sha256


class Ledger:
    """One site's ledger file, with its head, key and lock files beside it.

    Opening checks the whole chain. Before a data set is registered through this object,
    reservations are charged to every patient, present and to come, and sums are those of the
    patient charged most of all; after it, both speak of the data set's members.

    Raises, from every method: BadRecord for a file that was cut, edited or damaged;
    StorageFailed when the disk does not take a row; TimedOut when another process holds the
    file for `busy_timeout` seconds; ClockWentBack. Nothing may be released after any of them.
    """

    def __init__(
        self,
        path: Path,
        *,
        cap: float,
        delta: float,
        epsilon: EpsilonOf,
        clock: Callable[[], datetime] = hash_chain.utc_now,
        busy_timeout: float = 30.0,
    ) -> None:
        _check_budget(cap, delta)
        self.path = path
        self.cap = cap
        self.delta = delta
        self._epsilon_of = remembered(epsilon)
        self._clock = clock
        self._file = LedgerFile(path, busy_timeout=busy_timeout)
        self._mutex = threading.Lock()
        self._dataset = EVERYONE
        self._file.begin(clock)
        self._record = LedgerRecord()
        with self._writing():
            pass  # the chain is checked and a head that a crash left behind is mended
        self._pseudonyms = self._file.pseudonyms(self._record)

    def register_dataset(self, patients: Sequence[str]) -> str:
        """Name the patients that the coming reservations are about; give the data set's id.

        Only keyed pseudonyms are written. The same patients, in any order, are the same data
        set and are written once. Raises BadData for no patients, or one named twice.
        """
        pseudonyms = self._pseudonyms.of(patients)
        dataset = self._pseudonyms.dataset(pseudonyms)
        with self._writing() as connection:
            if not self._record.spending.knows(dataset):
                self._append(connection, DataSet(dataset=dataset, patients=tuple(pseudonyms)))
        self._dataset = dataset
        return dataset

    def reserve(
        self, *, project: str, stage: str, round: int, plan_digest: str, mechanism: Mechanism
    ) -> Receipt:
        """Charge a release of one mechanism, as `reserve_all` does."""
        [receipt] = self.reserve_all(
            project=project,
            stage=stage,
            round=round,
            plan_digest=plan_digest,
            mechanisms=[mechanism],
        )
        return receipt

    def reserve_all(
        self,
        *,
        project: str,
        stage: str,
        round: int,
        plan_digest: str,
        mechanisms: Sequence[Mechanism],
    ) -> list[Receipt]:
        """Charge all mechanisms of a plan, or none; when this returns, the charges are on disk.

        What was spent, the check against the cap and the new rows are one transaction. Raises
        BudgetExhausted past the cap, BadMessage for a mechanism or a digest that is none.
        """
        charges = [_charge_of(mechanism) for mechanism in mechanisms]
        with self._writing() as connection:
            reservations = [
                _reservation(
                    project=str(project),
                    stage=str(stage),
                    round=round,
                    plan_digest=plan_digest,
                    dataset=self._dataset,
                    charge=charge,
                    epsilon=_bounded(self._within_cap(charges[: preceding + 1])),
                    cap=_bounded(self.cap),
                    delta=self.delta,
                    preceding=preceding,
                )
                for preceding, charge in enumerate(charges)
            ]
            heads = self._append(connection, *reservations)
        return list(map(_receipt, reservations, heads))

    def require_room(self, mechanisms: Sequence[Mechanism]) -> None:
        """Raise BudgetExhausted where `reserve_all` would; nothing is charged."""
        with self._writing():
            self._within_cap([_charge_of(mechanism) for mechanism in mechanisms])

    def confirm(self, receipt: Receipt, *, release_sha256: str) -> None:
        """Note that the reserved release went out.

        Raises NotCharged for a receipt of another ledger, or one confirmed before.
        """
        with self._writing() as connection:
            if not self._record.holds(receipt.entry, receipt.entry_digest):
                raise NotCharged(f"ledger row {receipt.entry} is not the receipt's reservation")
            if receipt.entry in self._record.confirmations:
                raise NotCharged(f"ledger row {receipt.entry} was confirmed before")
            confirmation = Confirmation(reservation=receipt.entry, release_sha256=release_sha256)
            self._append(connection, confirmation)

    def holds(self, receipt: Receipt) -> bool:
        """Say whether the receipt's reservation is in this ledger."""
        with self._writing():
            return self._record.holds(receipt.entry, receipt.entry_digest)

    def answered(self, *, project: str, stage: str) -> int:
        """Give the last round of a run's stage whose release was confirmed; 0: none was."""
        with self._writing():
            return self._record.answered(project, str(stage))

    def spent(self) -> float:
        """Epsilon at the ledger's delta of the patient charged most; infinite if unprotected."""
        with self._writing():
            return self._worst()

    def spent_on(self, project: str) -> float:
        """Epsilon of all that was charged for a run, to a patient who took part in all of it.

        It depends on the run's plans and not on who the patients are, so it may be told to anyone;
        `spent` may not: who joins or leaves can change it.
        """
        with self._writing():
            return self._epsilon_of(self._record.spending.all_of(project), self.delta)

    def statement(self) -> list[StatementLine]:
        """List what was charged, per project and mechanism, over all data sets."""
        with self._writing():
            return self._record.spending.statement()

    def verify(self) -> list[Problem]:
        """Check the file from its first row: chain, order, guards, head, key and arithmetic."""
        record = LedgerRecord()
        try:
            with self._file.held() as connection:
                problems = guard_problems(connection)
                self._file.catch_up(connection, record)
        except BadRecord as error:
            return [*error.problems] or [
                Problem(name=self.path.name, value=str(error), wanted="a ledger")
            ]
        problems += self._pseudonyms.permission_problems()
        return problems + record.arithmetic_problems(self._epsilon_of)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the file against all others, caught up with it; commit durably at the end.

        What was committed is read back before the head file is brought up to it, under the
        lock again: heads of several processes cannot overtake each other.
        """
        with self._mutex, self._file.held() as connection:
            self._catch_up(connection)
            yield connection
            connection.execute("COMMIT")
            if connection.total_changes:
                connection.execute("BEGIN IMMEDIATE")
                self._catch_up(connection)

    def _catch_up(self, connection: sqlite3.Connection) -> None:
        """Take in what was added, and mend a head that a crash left behind."""
        if self._file.catch_up(connection, self._record) != self._record.last:
            hash_chain.write_head(self.path, self._record.last)

    def _append(
        self, connection: sqlite3.Connection, *bodies: DataSet | Reservation | Confirmation
    ) -> list[Head]:
        """Write rows at the end of the chain; give the chain's head after each."""
        now = self._clock()
        if self._record.latest is not None:
            hash_chain.check_clock(now, self._record.latest)
        heads = [self._record.last]
        for body in bodies:
            row = make_row(heads[-1], body, now)
            insert(connection, [row])
            heads.append(Head(count=row[0], digest=row[4]))
        return heads[1:]

    def _worst(self, extra: Sequence[Charge] = ()) -> float:
        return self._record.spending.worst(self._epsilon_of, self.delta, self._dataset, extra)

    def _within_cap(self, charges: Sequence[Charge]) -> float:
        """Epsilon with these charges. Raises BudgetExhausted past the cap.

        At the cap nothing is charged any more, however little it would cost.
        """
        epsilon = self._worst(charges)
        if not fits(self.cap, before=self._worst(), after=epsilon):
            raise self._exhausted(charges, epsilon)
        return epsilon

    def _exhausted(self, charges: Sequence[Charge], after: float) -> BudgetExhausted:
        spent = self._worst()
        names = ", ".join(charge.name for charge in charges)
        return BudgetExhausted(
            f"mechanism {names}: epsilon {spent:.3f} is spent, this would cost "
            f"{after - spent:.3f} more, the cap is {self.cap:g} "
            f"(delta {self.delta:g}, per patient, for the patient charged most)"
        )


def _check_budget(cap: float, delta: float) -> None:
    problems = []
    if not cap > 0:
        problems.append(Problem(name="epsilon_cap", value=str(cap), wanted="more than 0"))
    if not 0 < delta < 1:
        problems.append(Problem(name="delta", value=str(delta), wanted="between 0 and 1"))
    if problems:
        raise BadConfig(problems)


def _charge_of(mechanism: Mechanism) -> Charge:
    try:
        return Charge.of(mechanism)
    except ValidationError as error:
        raise BadMessage(_problems_of("mechanism", error)) from error


def _reservation(**fields: object) -> Reservation:
    try:
        return Reservation.model_validate(fields)
    except ValidationError as error:
        raise BadMessage(_problems_of("reservation", error)) from error


def _receipt(reservation: Reservation, head: Head) -> Receipt:
    return Receipt(
        project=reservation.project,
        stage=reservation.stage,
        round=reservation.round,
        plan_digest=reservation.plan_digest,
        mechanism=reservation.charge.name,
        epsilon=reservation.epsilon,
        delta=reservation.delta,
        entry=head.count,
        entry_digest=head.digest,
    )


def _problems_of(name: str, error: ValidationError) -> list[Problem]:
    return [
        Problem(
            name=f"{name}: {'.'.join(map(str, fault['loc']))}",
            value=repr(fault["input"])[:80],
            wanted=fault["msg"],
        )
        for fault in error.errors()
    ]


def _bounded(epsilon: float) -> float | None:
    return epsilon if isfinite(epsilon) else None
