import hashlib
import os
import time
from pathlib import Path

import pytest

from medsynth_common.dataset.digests import digests


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files that have long been as they are."""
    paths = [tmp_path / "anna_t1.nii", tmp_path / "anna_t2.nii"]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def settle(monkeypatch: pytest.MonkeyPatch, seconds: int = 3600) -> None:
    """Let an hour pass."""
    later = time.time_ns() + seconds * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: later)


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(hashlib, "file_digest", reading)


def test_files_that_did_not_change_are_not_read_again(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    wanted = [sha(path.name.encode()) for path in files]
    assert digests(files, tmp_path / "memory") == wanted
    assert not [path for path in (tmp_path / "memory").rglob("*") if "anna" in path.name]
    assert "anna" not in next((tmp_path / "memory").iterdir()).read_text()
    forbid_reading(monkeypatch)
    assert digests(files, tmp_path / "memory") == wanted


def test_a_file_that_was_just_written_is_read_again(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests(files, tmp_path / "memory")
    forbid_reading(monkeypatch)
    with pytest.raises(AssertionError, match="read again"):
        digests(files, tmp_path / "memory")


def test_a_change_that_keeps_size_and_time_is_seen(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(monkeypatch)
    digests(files, tmp_path / "memory")
    before = files[0].stat()
    changed = bytes(reversed(files[0].read_bytes()))
    while files[0].stat().st_ctime_ns == before.st_ctime_ns:  # clocks tick every few milliseconds
        files[0].write_bytes(changed)
        os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    first, second = digests(files, tmp_path / "memory")
    assert first == sha(changed)
    assert second == sha(files[1].name.encode())


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"x": 3}'])
def test_a_damaged_memory_is_made_anew(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    settle(monkeypatch)
    wanted = digests(files, tmp_path / "memory")
    (entry,) = (tmp_path / "memory").iterdir()
    entry.write_bytes(content)
    assert digests(files, tmp_path / "memory") == wanted
    forbid_reading(monkeypatch)
    assert digests(files, tmp_path / "memory") == wanted
