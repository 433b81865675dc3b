"""A site whose records, disk or clock fail: a typed error, written down, and nothing released."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from medsynth_client import hash_chain
from medsynth_client.audit import AuditEvent, AuditLog
from medsynth_client.ledger_file import LedgerFile
from medsynth_client.site import Site
from medsynth_client.site_record import read_site
from medsynth_client.stages import WORK
from medsynth_client.verification import verify_site
from medsynth_common.errors import (
    BadRecord,
    ClockWentBack,
    StorageFailed,
    TimedOut,
)
from medsynth_common.plan import Stage
from tiny import NewSite, gaussian, plan

CPU = torch.device("cpu")


@pytest.fixture
def folder(new_site: NewSite) -> Path:
    """A site that answered two plans."""
    made = new_site()
    site = Site(made, device=CPU)
    site.carry(plan(run="run-0"))
    site.carry(plan())
    return made


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stays empty as long as nothing is trained; that patients can be read is seen before."""
    touched: list[str] = []
    monkeypatch.setitem(WORK, Stage.SEGMENT, lambda _: touched.append("trained"))
    monkeypatch.setattr(Site, "patients", lambda *_: ())
    return touched


def events(folder: Path) -> list[AuditEvent]:
    return AuditLog(folder / "audit.jsonl").read()


def limit_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let SQLite find the disk full at the next page: SQLITE_FULL, as a true disk gives it."""
    connect = LedgerFile._connect

    def limited(self: LedgerFile, mode: str) -> sqlite3.Connection:
        connection = connect(self, mode)
        [[pages]] = connection.execute("PRAGMA page_count")
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(LedgerFile, "_connect", limited)


def fill(site: Site) -> None:
    """The last page has room for some rows."""
    for round in range(1, 50):
        site._ledger.reserve_all(
            project="run-1",
            stage="segment",
            round=round,
            plan_digest="c" * 64,
            mechanisms=(gaussian("segmenter", noise_multiplier=500.0),),
        )


def test_a_full_disk_at_reserve_releases_nothing_and_is_written_down(
    folder: Path, monkeypatch: pytest.MonkeyPatch, untouched: list[str]
) -> None:
    site = Site(folder, device=CPU)
    with monkeypatch.context() as patched:
        limit_pages(patched)
        with pytest.raises(StorageFailed, match=r"ledger\.db: database or disk is full"):
            fill(site)
        with pytest.raises(StorageFailed):
            site.carry(plan(Stage.SEGMENT))
    assert untouched == []
    last = events(folder)[-1]
    assert (last.outcome, last.error, last.stage) == ("refused", "StorageFailed", "segment")
    assert verify_site(folder).sound
    assert [event.outcome for event in events(folder)] == ["released", "released", "refused"]


def test_a_clock_that_went_back_releases_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, untouched: list[str]
) -> None:
    site = Site(folder, device=CPU)
    lines = len(events(folder))
    past = datetime.now(UTC) - timedelta(days=1)
    monkeypatch.setattr(site._ledger, "_clock", lambda: past)
    with pytest.raises(ClockWentBack):
        site.carry(plan(Stage.SEGMENT))
    assert untouched == []
    assert [event.error for event in events(folder)[lines:]] == ["ClockWentBack"]
    assert read_site(folder).ledger.last.count == 6  # opening, data set, two reserved and confirmed


def test_when_even_the_audit_log_fails_the_first_error_is_told(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    untouched: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    site = Site(folder, device=CPU)
    before = (folder / "audit.jsonl").read_bytes()
    monkeypatch.setattr(hash_chain, "write_sector", full)
    monkeypatch.setattr("medsynth_client.audit.append_line", full)
    with pytest.raises(StorageFailed, match=r"ledger\.db\.head"):
        site.carry(plan(Stage.SEGMENT))
    assert untouched == []
    assert (folder / "audit.jsonl").read_bytes() == before
    assert "not in the audit log: StorageFailed, for StorageFailed" in caplog.text


def test_a_ledger_that_another_holds_is_written_down(
    folder: Path, untouched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(folder, device=CPU)
    monkeypatch.setattr(site._ledger._file, "_busy_timeout", 0.05)
    holder = sqlite3.connect(folder / "ledger.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(TimedOut):
        site.carry(plan(Stage.SEGMENT))
    holder.close()
    assert untouched == []
    assert events(folder)[-1].error == "TimedOut"


def cut(name: str, size: int) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:size])

    return harm


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


HARMS = {
    "ledger cut": cut("ledger.db", 5000),
    "ledger emptied": cut("ledger.db", 0),
    "ledger removed": remove("ledger.db"),
    "ledger's head removed": remove("ledger.db.head"),
    "ledger's key removed": remove("ledger.db.key"),
    "ledger's key cut": cut("ledger.db.key", 7),
    "audit log emptied": cut("audit.jsonl", 0),
    "audit log removed": remove("audit.jsonl"),
    "audit log's head removed": remove("audit.jsonl.head"),
    "audit log's head cut": cut("audit.jsonl.head", 9),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_site_whose_record_was_harmed_does_not_open(folder: Path, harm: str) -> None:
    HARMS[harm](folder)
    with pytest.raises(BadRecord) as caught:
        Site(folder, device=CPU)
    assert caught.value.exit_code == 4
    assert not verify_site(folder).sound


def test_a_copy_without_the_rows_that_a_sudden_end_left_beside_it_is_no_ledger(
    folder: Path, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(folder / "ledger.db")) as unclosed:  # as a kill leaves it
        unclosed.execute("SELECT COUNT(*) FROM entries").fetchone()
        Site(folder, device=CPU).carry(plan(run="run-2"))
        whole, part = tmp_path / "whole", tmp_path / "part"
        shutil.copytree(folder, whole)
        shutil.copytree(folder, part, ignore=shutil.ignore_patterns("ledger.db-*"))
    assert verify_site(whole).sound
    assert not verify_site(part).sound
    with pytest.raises(BadRecord, match="cut off or replaced"):
        Site(part, device=CPU)


# The key is read when a site opens; nothing more is asked of its file.
@pytest.mark.parametrize("harm", [harm for harm in HARMS if "key" not in harm])
def test_a_site_whose_record_is_harmed_while_it_runs_releases_nothing(
    folder: Path, harm: str, untouched: list[str]
) -> None:
    site = Site(folder, device=CPU)
    HARMS[harm](folder)
    if harm.startswith("ledger"):
        with pytest.raises(BadRecord):
            site.carry(plan(Stage.SEGMENT))
        assert events(folder)[-1].error == "BadRecord"
    else:  # the gate writes there before anything may leave
        event = AuditEvent(
            project="run-1",
            stage="segment",
            round=1,
            outcome="released",
            bytes=1,
            sha256="d" * 64,
            plan_digest="c" * 64,
        )
        with pytest.raises(BadRecord):
            site._gate._audit.append(event)
    assert untouched == []
