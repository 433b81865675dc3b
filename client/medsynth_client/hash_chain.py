"""What the ledger and the audit log share: the arithmetic of a hash chain, and its head file.

Each entry's digest covers its content and the digest before it, so that an edited, removed or
reordered entry breaks every digest after it. Entries cut off the end break none; therefore a
small head file beside the record says how many there are and what the last digest is. It is
written after each entry, so a crash may leave it one entry behind, never ahead.

Whoever can write the folder can make a new chain and a new head, or put back an old copy of
both. Only a digest kept elsewhere (each receipt carries one) tells that.
"""

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from medsynth_common.durable import write_sector
from medsynth_common.errors import BadRecord, ClockWentBack, Problem, StorageFailed, TimedOut

#: Clocks that are set by the network step back a little.
CLOCK_SLACK: Final = timedelta(minutes=5)
_POLL_SECONDS: Final = 0.02
#: Every head file is as long, however many its entries.
_HEAD_LENGTH: Final = 127
_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a chain ends.

    Attributes:
        count: number of entries.
        digest: the last entry's digest, 64 hexadecimal digits.

    """

    count: int
    digest: str

    def __str__(self) -> str:
        return f"{self.count} entries ending in {self.digest[:12]}"


START: Final = Head(count=0, digest="0" * 64)


def canonical(value: Mapping[str, Any]) -> str:
    """Write `value` as the one JSON line that is hashed: sorted keys, ASCII, finite numbers."""
    return _CANONICAL.encode(value)


def extend(head: Head, content: str) -> Head:
    """Give the head after an entry of this content."""
    digest = hashlib.sha256(f"{head.digest}\n{content}".encode()).hexdigest()
    return Head(count=head.count + 1, digest=digest)


def head_path(record: Path) -> Path:
    """Name the head file of a record."""
    return record.with_name(record.name + ".head")


def read_head(record: Path) -> Head:
    """Read the head of `record`; `START` where there is none. Raises BadRecord if damaged."""
    path = head_path(record)
    try:
        fields = json.loads(path.read_bytes())
        return Head(count=int(fields["count"]), digest=str(fields["digest"]))
    except FileNotFoundError:
        return START
    except OSError as error:
        raise StorageFailed(f"{path.name}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadRecord(
            Problem(name=path.name, value="unreadable text", wanted="a count and a digest")
        ) from error


def write_head(record: Path, head: Head) -> None:
    """Bring the head file up to `head`, durably. Raises StorageFailed."""
    try:
        write_sector(head_path(record), f"{canonical(asdict(head)):<{_HEAD_LENGTH}}\n".encode())
    except OSError as error:
        raise StorageFailed(f"{head_path(record).name}: {error.strerror}") from error


def check_head(record: Path, head: Head, *, last: Head, before_last: Head) -> None:
    """Raise BadRecord unless the head is that of the record, or one entry behind (a crash)."""
    if head in (last, before_last):
        return
    mend = "entries were cut off or replaced" if head.count >= last.count else "head put back"
    raise BadRecord(Problem(name=record.name, value=str(last), wanted=str(head), mend=mend))


def utc_now() -> datetime:
    """Tell the time."""
    return datetime.now(UTC)


def check_clock(now: datetime, latest: datetime) -> None:
    """Raise ClockWentBack when `now` lies clearly before the `latest` entry."""
    if now + CLOCK_SLACK < latest:
        raise ClockWentBack(
            f"the clock says {now.isoformat()}, but the last entry was made at "
            f"{latest.isoformat()}: set the clock, then try again"
        )


@contextmanager
def exclusive(record: Path, *, timeout: float) -> Iterator[None]:
    """Hold the lock beside `record` against other processes and threads.

    Raises TimedOut when another holds it for `timeout` seconds.
    """
    path = record.with_name(record.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as lock:
        _wait_for(lock.fileno(), path, timeout)
        yield  # closing the file gives the lock back


def _wait_for(descriptor: int, path: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimedOut(f"{path.name} is held by another process") from None
            time.sleep(_POLL_SECONDS)
        else:
            return
