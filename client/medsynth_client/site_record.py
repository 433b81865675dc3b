"""What a site's folder says of itself at one moment: its file, its ledger, its audit log.

For commands that only ask. The ledger is held while both records are read, so that they tell of
the same moment, and is left as it was found.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medsynth_client import hash_chain
from medsynth_client.audit import AuditEvent, read_log
from medsynth_client.holding_out import patients_of
from medsynth_client.ledger_file import LedgerFile, guard_problems
from medsynth_client.ledger_record import LedgerRecord
from medsynth_client.site_file import SiteFile
from medsynth_client.spending import EVERYONE
from medsynth_common.errors import Problem


@dataclass(frozen=True, kw_only=True)
class SiteRecord:
    """A site's records, each checked from its first entry.

    Attributes:
        file: the site's own file.
        ledger: the ledger's rows; empty where nothing was ever reserved.
        rows: the same rows as they are stored: kind and body.
        dataset: the data set of the patients that the site's file names now.
        datasets: how many data sets the ledger knows.
        patients: how many patients ever belonged to one.
        events: the audit log's lines.
        torn: whether a crash left a last audit line half written.
        problems: guards that are missing, a key that others may read.

    """

    file: SiteFile
    ledger: LedgerRecord
    rows: Sequence[tuple[str, str]]
    dataset: str
    datasets: int
    patients: int
    events: Sequence[AuditEvent]
    torn: bool
    problems: Sequence[Problem]


def read_site(folder: Path) -> SiteRecord:
    """Read a site's records.

    Raises BadConfig where there is no site, BadRecord for a record that was cut, edited or
    damaged, StorageFailed, and TimedOut when another process holds one of them.
    """
    file = SiteFile.load(folder / "site.toml")
    ledger = LedgerFile(folder / "ledger.db")
    if not ledger.path.exists() and hash_chain.read_head(ledger.path) == hash_chain.START:
        return _unspent(file, folder)
    record = LedgerRecord()
    with ledger.held() as connection:
        ledger.catch_up(connection, record)
        problems = guard_problems(connection)
        rows = _stored(connection)
        events, torn = _audited(folder)
    datasets, patients = record.spending.datasets, record.spending.patients
    pseudonyms = ledger.pseudonyms(record)
    members = pseudonyms.of(patients_of(file, folder).people)
    dataset = pseudonyms.dataset(members)
    if not record.spending.knows(dataset):  # named in the file since the last round
        record.spending.register(dataset, members)
    return SiteRecord(
        file=file,
        ledger=record,
        rows=rows,
        dataset=dataset,
        datasets=datasets,
        patients=patients,
        events=events,
        torn=torn,
        problems=[*problems, *pseudonyms.permission_problems()],
    )


def _unspent(file: SiteFile, folder: Path) -> SiteRecord:
    events, torn = _audited(folder)
    return SiteRecord(
        file=file,
        ledger=LedgerRecord(),
        rows=(),
        dataset=EVERYONE,
        datasets=0,
        patients=0,
        events=events,
        torn=torn,
        problems=(),
    )


def _stored(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    return list(connection.execute("SELECT kind, body FROM entries ORDER BY number"))


def _audited(folder: Path) -> tuple[list[AuditEvent], bool]:
    path = folder / "audit.jsonl"
    if not path.exists() and hash_chain.read_head(path) == hash_chain.START:
        return [], False
    return read_log(path)
