import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from medsynth_client import hash_chain
from medsynth_client.audit import AuditEvent, AuditLog, TornLine, verify
from medsynth_common.errors import BadRecord, ClockWentBack, StorageFailed

START = datetime(2026, 1, 1, tzinfo=UTC)


def event(number: int = 1, **changes: object) -> AuditEvent:
    fields: dict[str, object] = {
        "when": START + timedelta(minutes=number),
        "project": "run-1",
        "stage": "segment",
        "round": number,
        "outcome": "released",
        "bytes": 100,
        "sha256": "a" * 64,
        "plan_digest": "b" * 64,
        "epsilon": 0.5 * number,
        "receipts": (f"{number:064x}",),
    }
    return AuditEvent.model_validate(fields | changes)


@pytest.fixture(scope="module")
def five_events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    log = AuditLog(folder / "audit.jsonl")
    for number in range(1, 6):
        log.append(event(number))
    return folder


@pytest.fixture
def path(five_events: Path, tmp_path: Path) -> Path:
    return shutil.copytree(five_events, tmp_path / "site") / "audit.jsonl"


def test_what_was_written_is_read_back_and_verifies(path: Path) -> None:
    assert verify(path) == []
    assert AuditLog(path).read() == [event(number) for number in range(1, 6)]
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]


def test_it_goes_on_where_it_stopped(path: Path) -> None:
    AuditLog(path).append(event(6))
    assert len(AuditLog(path).read()) == 6
    assert verify(path) == []


def test_two_openings_of_one_log_write_one_chain(path: Path) -> None:
    first, second = AuditLog(path), AuditLog(path)
    for number in range(6, 10, 2):
        first.append(event(number))
        second.append(event(number + 1))
    assert verify(path) == []
    assert len(first.read()) == 9


def test_a_receipt_that_let_something_out_is_known_after_a_restart(path: Path) -> None:
    log = AuditLog(path)
    log.append(event(6, outcome="refused", error="UnsafeRelease"))
    assert log.has_released(f"{5:064x}")
    assert not log.has_released(f"{6:064x}")  # it was refused, nothing left


def test_a_decision_against_a_check_is_noted_and_other_lines_stay_as_they_were(path: Path) -> None:
    """Logs from before there were notes keep their digests: no line names an empty note."""
    before = path.read_bytes()
    assert b"note" not in before
    AuditLog(path).append(event(6, outcome="overridden", receipts=(), note="ann: a phantom"))
    assert path.read_bytes().startswith(before)
    assert AuditLog(path).read()[-1].note == "ann: a phantom"
    assert not AuditLog(path).has_released(f"{6:064x}")
    assert verify(path) == []
    path.write_text(path.read_text().replace("ann: a phantom", "bob: a phantom"))
    [problem] = verify(path)
    assert "overridden" in problem.value


TAMPERINGS: dict[str, Callable[[list[str]], list[str]]] = {
    "edited": lambda lines: [lines[0], lines[1].replace("segment", "moments"), *lines[2:]],
    "edited last": lambda lines: [*lines[:-1], lines[-1].replace('"bytes":100', '"bytes":101')],
    "deleted": lambda lines: [*lines[:2], *lines[3:]],
    "first deleted": lambda lines: lines[1:],
    "reordered": lambda lines: [lines[1], lines[0], *lines[2:]],
    "truncated": lambda lines: lines[:-1],
    "emptied": lambda lines: [],
    "twice": lambda lines: [*lines, lines[-1]],
    "forged": lambda lines: [*lines, lines[-1].replace('"number":5', '"number":6')],
    "cut within the last": lambda lines: [*lines[:-1], lines[-1][:40]],
    "no JSON": lambda lines: [*lines[:-1], "x\n"],
    "no text": lambda lines: [*lines[:-1], "\udcff\n"],
    "spaces": lambda lines: [*lines[:-1], lines[-1].replace(":", ": ")],
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_is_found_and_nothing_more_is_written(path: Path, tampering: str) -> None:
    open_log = AuditLog(path)
    lines = path.read_text().splitlines(keepends=True)
    changed = "".join(TAMPERINGS[tampering](lines))
    path.write_bytes(changed.encode(errors="surrogateescape"))

    problems = verify(path)
    assert problems
    assert not any(isinstance(problem, TornLine) for problem in problems)
    with pytest.raises(BadRecord):
        AuditLog(path)
    if tampering in ("truncated", "emptied", "twice", "forged", "cut within the last"):
        with pytest.raises(BadRecord):  # noticed even by who had read it before
            open_log.append(event(6))


def test_two_well_formed_lines_by_other_hands_are_found(path: Path) -> None:
    head = hash_chain.read_head(path)
    with path.open("a") as stream:
        for number in (6, 7):
            fields = event(number).model_dump(mode="json")
            head = hash_chain.extend(head, hash_chain.canonical(fields))
            line = {"number": head.count, "event": fields, "digest": head.digest}
            stream.write(hash_chain.canonical(line) + "\n")
    assert verify(path)


def test_a_removed_log_or_head_is_found(path: Path) -> None:
    head = hash_chain.head_path(path)
    kept = head.read_bytes()
    head.unlink()
    assert verify(path)
    head.write_text("{}")
    assert verify(path)
    head.write_bytes(kept)
    assert verify(path) == []
    path.unlink()
    assert verify(path)
    with pytest.raises(BadRecord):
        AuditLog(path)


def test_a_line_torn_by_a_crash_is_no_tampering_and_is_replaced(path: Path) -> None:
    with path.open("a") as stream:
        stream.write('{"digest":"12')
    problems = verify(path)
    assert [type(problem) for problem in problems] == [TornLine]
    log = AuditLog(path)
    log.append(event(6))
    assert verify(path) == []
    assert len(log.read()) == 6


def test_a_crash_before_the_head_is_written_is_no_tampering(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(hash_chain, "write_head", crash)
        with pytest.raises(KeyboardInterrupt):
            AuditLog(path).append(event(6))
    assert verify(path) == []
    AuditLog(path).append(event(7))
    assert hash_chain.read_head(path).count == 7


def test_a_clock_that_went_back_is_refused(path: Path) -> None:
    log = AuditLog(path)
    with pytest.raises(ClockWentBack):
        log.append(event(1, when=START - timedelta(hours=1)))
    log.append(event(4))  # a step back of a minute is the network setting the clock
    assert verify(path) == []


FULL_DISK = """
import resource, sys
from pathlib import Path
from medsynth_client.audit import AuditEvent, AuditLog
from medsynth_common.errors import StorageFailed
path = Path(sys.argv[1])
log = AuditLog(path)
event = AuditEvent.model_validate_json(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 50, -1))
try:
    log.append(event)
except StorageFailed as error:
    print("told:", error)
"""


def test_a_full_disk_is_told_and_the_next_line_replaces_what_was_begun(path: Path) -> None:
    arguments = [str(path), event(6).model_dump_json()]
    told = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert told.stdout.startswith("told: audit.jsonl")
    assert [type(problem) for problem in verify(path)] == [TornLine]
    AuditLog(path).append(event(7))
    assert verify(path) == []


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(StorageFailed):
        AuditLog(tmp_path / "audit.jsonl")
