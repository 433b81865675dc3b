"""The ledger's SQLite file: how it is begun, held, read, and what SQLite's errors mean.

Reading changes nothing: whoever only asks gets the rows, checked, and leaves the file as it was.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from medsynth_client import hash_chain
from medsynth_client.ledger_record import SCHEMA, LedgerRecord, Opening, Row, make_row
from medsynth_client.pseudonyms import Pseudonyms
from medsynth_common.errors import BadRecord, Problem, StorageFailed, TimedOut

_BUSY: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_STORAGE: Final = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_NOMEM,
}


class LedgerFile:
    """One ledger's file, with its head, key and lock files beside it.

    Raises, from every method: BadRecord for a file that was cut, edited or damaged;
    StorageFailed when the disk does not take a row; TimedOut when another process holds the
    file for `busy_timeout` seconds.
    """

    def __init__(self, path: Path, *, busy_timeout: float = 30.0) -> None:
        self.path = path
        self._busy_timeout = busy_timeout

    @property
    def key_path(self) -> Path:
        """Where the pseudonym key stands."""
        return self.path.with_name(self.path.name + ".key")

    def begin(self, clock: Callable[[], datetime]) -> None:
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
            key = Pseudonyms.begin(self.key_path)
            opening = make_row(head, Opening(key=key.fingerprint), clock())
            insert(connection, [opening])
            connection.execute("COMMIT")

    @contextmanager
    def held(self) -> Iterator[sqlite3.Connection]:
        """Open the file and hold it against writers; what is not committed is rolled back."""
        self._check_there()
        with self._answering(), closing(self._connect("rw")) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    def catch_up(self, connection: sqlite3.Connection, record: LedgerRecord) -> hash_chain.Head:
        """Take what was added into `record`, checked against the head; give the head found."""
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
        return head

    def pseudonyms(self, record: LedgerRecord) -> Pseudonyms:
        """Give the key that the ledger was begun with. Raises BadRecord for another, or none."""
        pseudonyms = Pseudonyms(self.key_path)
        if pseudonyms.fingerprint != record.key:
            problem = Problem(
                name=self.key_path.name,
                value="another key",
                wanted="the key the ledger was begun with",
                mend="put it back from the backup",
            )
            raise BadRecord(problem)
        return pseudonyms

    def _check_there(self) -> None:
        if self.path.exists():
            return
        wanted, mend = str(hash_chain.read_head(self.path)), "put it back from the backup"
        raise BadRecord(Problem(name=self.path.name, value="no file", wanted=wanted, mend=mend))

    def _connect(self, mode: str) -> sqlite3.Connection:
        # One connection per transaction: no state is shared between threads or forks, and closing
        # it brings every row into `ledger.db` itself. A second one kept open would save 15 ms a
        # commit, and leave up to a thousand pages of rows in `ledger.db-wal` alone for as long as
        # a trainer lives, and after its kill: a backup without that file would be refused.
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


def insert(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Add rows to the transaction that the connection is in."""
    connection.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", rows)


def guard_problems(connection: sqlite3.Connection) -> list[Problem]:
    """Tell which of the triggers that keep rows from being changed are missing or other ones."""
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master"))
    return [
        Problem(name=f"ledger: {name}", value=str(found.get(name)), wanted=statement)
        for name, statement in SCHEMA.items()
        if found.get(name) != statement
    ]
