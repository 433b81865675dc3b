"""The rows of a ledger: their form, their order, and what they add up to."""

import math
from datetime import UTC, datetime
from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medsynth_client.charge import Charge
from medsynth_client.hash_chain import CLOCK_SLACK, START, Head, canonical, extend
from medsynth_client.spending import EpsilonOf, Spending
from medsynth_common.errors import BadRecord, Problem

Text = Annotated[str, Field(max_length=200)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

#: Rows are only ever added, in order. The insert guard also stops INSERT OR REPLACE, which
#: deletes without asking the delete trigger.
SCHEMA: Final = {
    "entries": """CREATE TABLE entries (
        number INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        at TEXT NOT NULL,
        body TEXT NOT NULL,
        digest TEXT NOT NULL
    )""",
    "no_update": """CREATE TRIGGER no_update BEFORE UPDATE ON entries
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END""",
    "no_delete": """CREATE TRIGGER no_delete BEFORE DELETE ON entries
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END""",
    "in_order": """CREATE TRIGGER in_order BEFORE INSERT ON entries
        WHEN NEW.number IS NOT (SELECT COALESCE(MAX(number), 0) + 1 FROM entries)
        BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END""",
}

#: How far two accountants, or two versions of one, may differ about the same record.
_TOLERANCE: Final = 0.02

Row = tuple[int, str, str, str, str]  # number, kind, at, body, digest


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Opening(_Body):
    """The first row: which pseudonym key the ledger was begun with."""

    key: Sha256


class DataSet(_Body):
    """A data set's patients, by pseudonym."""

    dataset: Text
    patients: tuple[str, ...] = Field(min_length=1)


class Reservation(_Body):
    """A release that may happen, and is counted as if it had.

    Attributes:
        epsilon: of the member charged most, this reservation included; None: unbounded.
        cap: the site's cap then; None: unbounded.
        preceding: how many rows just before this one were written in the same transaction.

    """

    project: Text
    stage: Text
    round: int = Field(ge=0)
    plan_digest: Sha256
    dataset: Text
    charge: Charge
    epsilon: float | None
    cap: float | None
    delta: float
    preceding: int = Field(default=0, ge=0)

    @property
    def plan(self) -> tuple[str, str, int, str]:
        """Whose answer it pays for: project, stage, round and the plan's digest."""
        return self.project, self.stage, self.round, self.plan_digest


class Confirmation(_Body):
    """That a reserved release went out, and what its bytes were."""

    reservation: int
    release_sha256: Sha256


_KINDS: Final[dict[str, type[_Body]]] = {
    "opening": Opening,
    "dataset": DataSet,
    "reservation": Reservation,
    "confirmation": Confirmation,
}
_KIND_OF: Final = {body: kind for kind, body in _KINDS.items()}
_AnyBody = TypeVar("_AnyBody", bound=_Body)


def make_row(head: Head, body: _Body, at: datetime) -> Row:
    """Write the row that follows `head`."""
    kind, text, stamp = _KIND_OF[type(body)], canonical(body.model_dump()), at.isoformat()
    return _sealed(head, kind, stamp, text)


def _sealed(head: Head, kind: str, at: str, text: str) -> Row:
    number = head.count + 1
    return number, kind, at, text, extend(head, f"{number}\n{kind}\n{at}\n{text}").digest


class LedgerRecord:
    """A ledger's rows, taken in one by one; each is checked before it counts.

    Attributes:
        last: where the chain ends.
        before_last: where it ended before the last transaction.
        latest: the latest time of a row; None before the first.
        key: fingerprint of the pseudonym key.
        spending: what the rows add up to.
        reservations: each reservation's digest and body, by row number.
        confirmations: SHA-256 of what went out, by its reservation's row number.

    """

    def __init__(self) -> None:
        self.last = START
        self.before_last = START
        self.latest: datetime | None = None
        self.key = ""
        self.spending = Spending()
        self.reservations: dict[int, tuple[str, Reservation]] = {}
        self.confirmations: dict[int, str] = {}
        self._answered: dict[tuple[str, str], int] = {}

    def take(self, row: Row) -> None:
        """Add one row. Raises BadRecord when it does not follow from those before it."""
        number, kind, at, text, digest = row
        if row != _sealed(self.last, kind, at, text):
            wanted = "the row written there: number and digest follow from the rows before"
            raise self._bad(number, f"{kind} {str(digest)[:12]}", wanted)
        body = self._parsed(number, kind, text)
        moment = self._moment(number, at)
        if (number == 1) != isinstance(body, Opening):
            raise self._bad(number, kind, "an opening, in the first row only")
        self._add(number, body, digest)
        if not (isinstance(body, Reservation) and body.preceding):
            self.before_last = self.last
        self.last = Head(count=number, digest=digest)
        self.latest = moment if self.latest is None else max(moment, self.latest)

    def holds(self, entry: int, digest: str) -> bool:
        """Say whether this very reservation was made."""
        return entry in self.reservations and self.reservations[entry][0] == digest

    @property
    def last_reservation(self) -> Reservation | None:
        """The newest reservation; None where there is none."""
        newest = next(reversed(self.reservations.values()), None)
        return None if newest is None else newest[1]

    def arithmetic_problems(self, epsilon_of: EpsilonOf) -> list[Problem]:
        """Work out the last reservation's epsilon anew, and tell when it was written otherwise."""
        written = self.last_reservation
        if written is None:
            return []
        found = self.spending.worst(epsilon_of, written.delta, written.dataset)
        noted = math.inf if written.epsilon is None else written.epsilon
        if found == noted or abs(found - noted) <= max(_TOLERANCE, _TOLERANCE * noted):
            return []
        return [
            Problem(
                name="ledger: last reservation",
                value=f"epsilon {noted:.3f}",
                wanted=f"epsilon {found:.3f}",
            )
        ]

    def answered(self, project: str, stage: str) -> int:
        """Give the last round of a run's stage whose release was confirmed; 0: none was."""
        return self._answered.get((project, stage), 0)

    def _add(self, number: int, body: _Body, digest: str) -> None:
        match body:
            case Opening():
                self.key = body.key
            case DataSet():
                self.spending.register(body.dataset, body.patients)
            case Reservation():
                self._reserve(number, body, digest)
            case Confirmation():
                self._confirm(number, body)

    def _reserve(self, number: int, body: Reservation, digest: str) -> None:
        if not self.spending.knows(body.dataset):
            raise self._bad(number, body.dataset, "a data set registered before")
        if body.cap is not None and (body.epsilon is None or body.epsilon > body.cap):
            raise self._bad(number, f"epsilon {body.epsilon}", f"at most the cap {body.cap}")
        if body.preceding:
            self._check_together(number, body)
        self.spending.charge(body.dataset, body.project, body.charge)
        self.reservations[number] = digest, body

    def _check_together(self, number: int, body: Reservation) -> None:
        """Rows of one transaction stand one after the other and are one plan's."""
        _, before = self.reservations.get(number - 1, (None, None))
        if before is None or (before.plan, before.preceding + 1) != (body.plan, body.preceding):
            wanted = f"{body.preceding} of the same plan's reservations just before it"
            raise self._bad(number, "a reservation by itself", wanted)

    def _confirm(self, number: int, body: Confirmation) -> None:
        if body.reservation not in self.reservations or body.reservation in self.confirmations:
            raise self._bad(number, f"row {body.reservation}", "a reservation not confirmed before")
        self.confirmations[body.reservation] = body.release_sha256
        made = self.reservations[body.reservation][1]
        before = self.answered(made.project, made.stage)
        self._answered[made.project, made.stage] = max(made.round, before)

    def _parsed(self, number: int, kind: str, text: str) -> _Body:
        if kind not in _KINDS:
            raise self._bad(number, kind, f"one of {', '.join(_KINDS)}")
        try:
            return _KINDS[kind].model_validate_json(text)
        except ValidationError as error:
            raise self._bad(number, f"a broken {kind}", f"a {kind} that checks") from error

    def _moment(self, number: int, at: str) -> datetime:
        try:
            moment = datetime.fromisoformat(at).astimezone(UTC)
            early = self.latest is not None and moment + CLOCK_SLACK < self.latest
        except (ValueError, TypeError) as error:
            raise self._bad(number, "no time", "a time with its zone") from error
        if early:
            raise self._bad(number, at, f"a time after {self.latest}")
        return moment

    @staticmethod
    def _bad(number: int, value: str, wanted: str) -> BadRecord:
        return BadRecord(Problem(name=f"ledger row {number}", value=value, wanted=wanted))
