"""The hospital's privacy ledger: what was charged for each patient, for life.

Reserve, release, confirm are separate rows of one append-only, hash-chained SQLite table. A
reservation is on disk before any noise is drawn, and counts as spent whether or not its release
is ever confirmed: a crash may over-count, never under-count. The file spans runs, projects and
restarts; several processes may use it at once.

    ledger = Ledger(folder / "ledger.db", cap=8.0, delta=1e-5, epsilon=epsilon_of)
    ledger.register_dataset(["patient-1", "patient-2"])
    receipt = ledger.reserve(project=..., stage=..., round=..., plan_digest=..., mechanism=...)
    ...train, pass the gate...
    ledger.confirm(receipt, release_sha256=...)
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from medsynth_client import hash_chain
from medsynth_client.ledger_record import (
    SCHEMA,
    Confirmation,
    DataSet,
    LedgerRecord,
    Opening,
    Reservation,
    Row,
    Sha256,
    make_row,
)
from medsynth_client.pseudonyms import Pseudonyms
from medsynth_client.spending import (
    EVERYONE,
    Charge,
    EpsilonOf,
    Mechanism,
    StatementLine,
    remembered,
)
from medsynth_common.errors import (
    BadConfig,
    BadMessage,
    BadRecord,
    BudgetExhausted,
    NotCharged,
    Problem,
    StorageFailed,
    TimedOut,
)

#: How far two accountants, or two versions of one, may differ about the same record.
_TOLERANCE: Final = 0.02
_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_STORAGE: Final = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_NOMEM,
}


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
        self._busy_timeout = busy_timeout
        self._mutex = threading.Lock()
        self._dataset = EVERYONE
        self._begin()
        self._record = LedgerRecord()
        with self._writing():
            pass  # the chain is checked and a head that a crash left behind is mended
        self._pseudonyms = Pseudonyms(self._key_path)
        self._check_key()

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
        """Charge a release; when this returns, the charge is on disk.

        What was spent, the check against the cap and the new row are one transaction. Raises
        BudgetExhausted past the cap, BadMessage for a mechanism or a digest that is none.
        """
        charge = _charge_of(mechanism)
        with self._writing() as connection:
            epsilon = self._worst(charge)
            if not epsilon <= self.cap:
                raise self._exhausted(charge, epsilon)
            reservation = _reservation(
                project=str(project),
                stage=str(stage),
                round=round,
                plan_digest=plan_digest,
                dataset=self._dataset,
                charge=charge,
                epsilon=_bounded(epsilon),
                cap=_bounded(self.cap),
                delta=self.delta,
            )
            entry, digest = self._append(connection, reservation)
        return Receipt(
            project=reservation.project,
            stage=reservation.stage,
            round=round,
            plan_digest=plan_digest,
            mechanism=charge.name,
            epsilon=reservation.epsilon,
            delta=self.delta,
            entry=entry,
            entry_digest=digest,
        )

    def confirm(self, receipt: Receipt, *, release_sha256: str) -> None:
        """Note that the reserved release went out.

        Raises NotCharged for a receipt of another ledger, or one confirmed before.
        """
        with self._writing() as connection:
            if not self._record.holds(receipt.entry, receipt.entry_digest):
                raise NotCharged(f"ledger row {receipt.entry} is not the receipt's reservation")
            if self._record.confirmed(receipt.entry):
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

    def cost_of(self, mechanism: Mechanism) -> float:
        """How much `spent` would grow by one reservation of `mechanism`."""
        charge = _charge_of(mechanism)
        with self._writing():
            spent = self._worst()
            return self._worst(charge) - spent if isfinite(spent) else 0.0

    def statement(self) -> list[StatementLine]:
        """List what was charged, per project and mechanism, over all data sets."""
        with self._writing():
            return self._record.spending.statement()

    def verify(self) -> list[Problem]:
        """Check the file from its first row: chain, order, guards, head, key and arithmetic."""
        record = LedgerRecord()
        try:
            with self._reading() as connection:
                problems = _guard_problems(connection)
                self._catch_up(connection, record)
        except BadRecord as error:
            return [*error.problems] or [
                Problem(name=self.path.name, value=str(error), wanted="a ledger")
            ]
        problems += self._pseudonyms.permission_problems()
        return problems + self._arithmetic_problems(record)

    @property
    def _key_path(self) -> Path:
        return self.path.with_name(self.path.name + ".key")

    def _begin(self) -> None:
        """Make the file, its table and its opening row, if they are not there."""
        with (
            hash_chain.exclusive(self.path, timeout=self._busy_timeout),
            self._answering(),
            closing(self._connect("rwc")) as connection,
        ):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                return
            head = hash_chain.read_head(self.path)
            if head != hash_chain.START:
                problem = Problem(name=self.path.name, value="no entries", wanted=str(head))
                raise BadRecord(problem)
            for statement in SCHEMA.values():
                connection.execute(statement)
            key = Pseudonyms.begin(self._key_path)
            opening = make_row(head, Opening(key=key.fingerprint), self._clock())
            connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", opening)
            connection.execute("COMMIT")

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the file against all others, caught up with it; commit durably at the end.

        What was committed is read back before the head file is brought up to it, under the
        lock again: heads of several processes cannot overtake each other.
        """
        with self._mutex, self._reading() as connection:
            self._catch_up(connection, self._record)
            yield connection
            connection.execute("COMMIT")
            if connection.total_changes:
                connection.execute("BEGIN IMMEDIATE")
                self._catch_up(connection, self._record)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Open the file and hold it against writers; what is not committed is rolled back."""
        with self._answering(), closing(self._connect("rw")) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def _catch_up(self, connection: sqlite3.Connection, record: LedgerRecord) -> None:
        rows = "SELECT number, kind, at, body, digest FROM entries"
        for row in connection.execute(
            f"{rows} WHERE number > ? ORDER BY number", (record.last.count,)
        ):
            record.take(row)
        end: Row | None = connection.execute(f"{rows} ORDER BY number DESC LIMIT 1").fetchone()
        if end is None or (end[0], end[4]) != (record.last.count, record.last.digest):
            value = f"{end[0] if end else 0} entries"
            raise BadRecord(Problem(name=self.path.name, value=value, wanted=str(record.last)))
        head = hash_chain.read_head(self.path)
        hash_chain.check_head(self.path, head, last=record.last, before_last=record.before_last)
        if head != record.last:
            hash_chain.write_head(self.path, record.last)

    def _append(
        self, connection: sqlite3.Connection, body: DataSet | Reservation | Confirmation
    ) -> tuple[int, str]:
        now = self._clock()
        if self._record.latest is not None:
            hash_chain.check_clock(now, self._record.latest)
        row = make_row(self._record.last, body, now)
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)
        return row[0], row[4]

    def _connect(self, mode: str) -> sqlite3.Connection:
        # One connection per transaction: no state is shared between threads or forks.
        connection = sqlite3.connect(
            f"{self.path.resolve().as_uri()}?mode={mode}",
            uri=True,
            timeout=self._busy_timeout,
            isolation_level=None,
        )
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn what SQLite says into our errors."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            if code in _BUSY:
                raise TimedOut(f"{self.path.name} is in use by another process") from error
            if code in _STORAGE:
                raise StorageFailed(f"{self.path.name}: {error}") from error
            problem = Problem(name=self.path.name, value=str(error), wanted="a whole ledger")
            raise BadRecord(problem) from error

    def _worst(self, extra: Charge | None = None) -> float:
        return self._record.spending.worst(self._epsilon_of, self.delta, self._dataset, extra)

    def _exhausted(self, charge: Charge, after: float) -> BudgetExhausted:
        spent = self._worst()
        return BudgetExhausted(
            f"mechanism {charge.name}: epsilon {spent:.3f} is spent, this would cost "
            f"{after - spent:.3f} more, the cap is {self.cap:g} "
            f"(delta {self.delta:g}, per patient, for the patient charged most)"
        )

    def _check_key(self) -> None:
        if self._pseudonyms.fingerprint != self._record.key:
            problem = Problem(
                name=self._key_path.name,
                value="another key",
                wanted="the key the ledger was begun with",
                mend="put it back from the backup",
            )
            raise BadRecord(problem)

    def _arithmetic_problems(self, record: LedgerRecord) -> list[Problem]:
        """Work out the last reservation's epsilon anew."""
        written = record.last_reservation
        if written is None:
            return []
        found = record.spending.worst(self._epsilon_of, written.delta, written.dataset)
        noted = float("inf") if written.epsilon is None else written.epsilon
        if found == noted or abs(found - noted) <= max(_TOLERANCE, _TOLERANCE * noted):
            return []
        wanted = f"epsilon {found:.3f}"
        name = "ledger: last reservation"
        return [Problem(name=name, value=f"epsilon {noted:.3f}", wanted=wanted)]


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


def _guard_problems(connection: sqlite3.Connection) -> list[Problem]:
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master"))
    return [
        Problem(name=f"ledger: {name}", value=str(found.get(name)), wanted=statement)
        for name, statement in SCHEMA.items()
        if found.get(name) != statement
    ]
