"""The hospital's audit log: a line for each thing that left, was refused, checked or kept.

Hash-chained JSON lines that any text viewer shows. Each line is on disk before what it tells of
may leave. A line that was edited, removed, reordered, added by other hands or cut off is found
by `verify`; a last line left half written by a crash is told apart from all of these, for it
was never counted in the head file, and what it was to tell of never left.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from medsynth_client import hash_chain
from medsynth_client.hash_chain import CLOCK_SLACK, START, Head, canonical, extend
from medsynth_common.durable import append_line
from medsynth_common.errors import BadRecord, Problem, StorageFailed

_LOCK_SECONDS: Final = 30.0
#: What stands before the event in a line; its digits differ.
_BEFORE_EVENT: Final = f'{{"digest":"{START.digest}","event":'

Text = Annotated[str, Field(max_length=200)]


class AuditEvent(BaseModel):
    """What left the hospital, or was kept from leaving. Holds nothing of a patient's.

    Attributes:
        when: the moment, with its zone.
        project: the run.
        stage: the run's stage.
        round: the stage's round.
        outcome: `released` or `refused`; of a synthetic set `checked`, and `overridden` when a
            person lets it out against the check; `kept` of what was measured and stays here.
        error: the refusal's name, or what a check found; empty when all is well.
        bytes: size of what left, or was to leave.
        sha256: of those bytes; empty when there were none yet.
        plan_digest: SHA-256 of the plan, or of a check's or measurement's result.
        epsilon: spent by the patient charged most, after this; None when unbounded, or
            when nothing was charged for it.
        receipts: digests of the ledger rows that paid for it.
        note: of an override, who did it and why. A line without one does not name it, so that
            lines from before there were notes keep their digests.

    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    when: AwareDatetime = Field(default_factory=hash_chain.utc_now)
    project: Text
    stage: Text
    round: int
    outcome: Literal["released", "refused", "checked", "overridden", "kept"]
    error: Text = ""
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^([0-9a-f]{64})?$")
    plan_digest: Text
    epsilon: float | None = Field(default=None, ge=0)
    receipts: tuple[str, ...] = ()
    note: Annotated[str, Field(max_length=310)] = ""

    @model_serializer(mode="wrap")
    def _without_empty_note(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        if not self.note:
            del fields["note"]
        return fields


class _Line(BaseModel):
    """A line as it is stored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    number: int
    event: AuditEvent
    digest: str


@dataclass(frozen=True, kw_only=True)
class TornLine(Problem):
    """A last line that a crash left half written; the next event takes its place."""


class AuditLog:
    """One site's audit log, with its head and lock files beside it.

    Opening checks every line. Raises, from every method: BadRecord for a log that was tampered
    with, StorageFailed when a line cannot be made durable, ClockWentBack, and TimedOut when
    another process holds the log. Nothing may leave after any of them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mutex = threading.Lock()
        self._lines = _Lines(path)
        with self._held():
            pass  # every line is checked, and a head that a crash left behind is mended

    def append(self, event: AuditEvent) -> None:
        """Add an event; when this returns, it is on disk."""
        with self._held() as lines:
            if lines.latest is not None:
                hash_chain.check_clock(event.when, lines.latest)
            line = _line(lines.last, event)
            with _storage(self.path):
                if lines.torn is not None:
                    os.truncate(self.path, lines.end)
                append_line(self.path, line)
            lines.catch_up()
            hash_chain.write_head(self.path, lines.last)

    def read(self) -> list[AuditEvent]:
        """Give all events, oldest first; they are read anew, since a log grows without end."""
        with self._held():
            return _read(self.path)[0]

    @property
    def torn(self) -> bool:
        """Whether a crash left a last line half written; the next event takes its place."""
        with self._held() as lines:
            return lines.torn is not None

    def has_released(self, receipt: str) -> bool:
        """Say whether something was let out on this receipt before."""
        with self._held() as lines:
            return receipt in lines.used_receipts

    @contextmanager
    def _held(self) -> Iterator["_Lines"]:
        """Hold the log against all others, caught up with what they wrote."""
        with self._mutex, hash_chain.exclusive(self.path, timeout=_LOCK_SECONDS):
            head = self._lines.catch_up()
            if head != self._lines.last:
                hash_chain.write_head(self.path, self._lines.last)
            yield self._lines


def read_log(path: Path) -> tuple[list[AuditEvent], bool]:
    """Give a log's events, oldest first, and whether a crash left a last line half written.

    Every line is read and checked once, and nothing is written. Raises as `AuditLog` does.
    """
    with hash_chain.exclusive(path, timeout=_LOCK_SECONDS):
        return _read(path)


def _read(path: Path) -> tuple[list[AuditEvent], bool]:
    events: list[AuditEvent] = []
    lines = _Lines(path, events.append)
    lines.catch_up()
    return events, lines.torn is not None


def verify(path: Path) -> list[Problem]:
    """Check a log from its first line; empty when all is well.

    A `TornLine` among the problems is a crash's, not tampering.
    """
    if not path.exists():
        return [Problem(name=path.name, value="no file", wanted="an audit log")]
    lines = _Lines(path)
    try:
        lines.catch_up()
    except BadRecord as error:
        return list(error.problems)
    return [] if lines.torn is None else [lines.torn]


class _Lines:
    """The lines of a log, taken in one by one; each is checked, then handed to `told`."""

    def __init__(
        self, path: Path, told: Callable[[AuditEvent], None] = lambda _event: None
    ) -> None:
        self.path = path
        self.last = START
        self.before_last = START
        self.latest: datetime | None = None
        self._told = told
        self.used_receipts: set[str] = set()
        self.end = 0  # bytes of whole lines
        self.torn: TornLine | None = None

    def catch_up(self) -> Head:
        """Take in what was added; give the head file's head. Raises BadRecord."""
        *whole, rest = self._added().split(b"\n")
        for line in whole:
            self._take(line)
            self.end += len(line) + 1
        self.torn = self._torn(rest) if rest else None
        head = hash_chain.read_head(self.path)
        hash_chain.check_head(self.path, head, last=self.last, before_last=self.before_last)
        return head

    def _take(self, line: bytes) -> None:
        number = self.last.count + 1
        try:
            written = _Line.model_validate_json(line)
        except ValidationError as error:
            raise self._bad(number, "a line that does not read", "an event") from error
        event, text = written.event, line.decode()
        # The event is hashed as it stands, rather than as it would be written anew.
        if text != _sealed(self.last, text[len(_BEFORE_EVENT) : -len(_after_event(number))]):
            wanted = "the line written there: number and digest follow from the lines before"
            raise self._bad(number, f"an edited, removed, moved or added {event.outcome}", wanted)
        if self.latest is not None and event.when + CLOCK_SLACK < self.latest:
            raise self._bad(number, event.when.isoformat(), f"a time after {self.latest}")
        self.before_last, self.last = self.last, Head(count=number, digest=written.digest)
        self.latest = event.when if self.latest is None else max(event.when, self.latest)
        self._told(event)
        if event.outcome == "released":
            self.used_receipts.update(event.receipts)

    def _added(self) -> bytes:
        """Read what stands after the lines that were taken in."""
        with _storage(self.path):
            size = self.path.stat().st_size if self.path.exists() else 0
            if size < self.end:
                wanted = f"at least {self.end} bytes"
                raise BadRecord(Problem(name=self.path.name, value=f"{size} bytes", wanted=wanted))
            if size == self.end:
                return b""
            with self.path.open("rb") as stream:
                stream.seek(self.end)
                return stream.read()

    def _torn(self, rest: bytes) -> TornLine:
        return TornLine(
            name=f"{self.path.name} line {self.last.count + 1}",
            value=f"{len(rest)} bytes without an end",
            wanted="a whole line",
            mend="a crash while writing; nothing left then, and the next event replaces it",
        )

    def _bad(self, number: int, value: str, wanted: str) -> BadRecord:
        name = f"{self.path.name} line {number}"
        return BadRecord(Problem(name=name, value=value, wanted=wanted))


def _line(head: Head, event: AuditEvent) -> str:
    """Write the line that follows `head`."""
    return _sealed(head, canonical(event.model_dump(mode="json")))


def _sealed(head: Head, content: str) -> str:
    """Close an event's canonical text into the line that follows `head`, canonical as well."""
    after = extend(head, content)
    return f'{{"digest":"{after.digest}","event":{content}{_after_event(after.count)}'


def _after_event(number: int) -> str:
    return f',"number":{number}}}'


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"{path.name}: {error.strerror}") from error
