"""A disk that fills up under a run: one line, nothing half-written; with room it goes on."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.crash_matrix import WEIGHTS, Undisturbed, uncharged

from federation.test_finished_run import command

#: Room for the settings and the record, but not for the public weights; then for these, but not
#: for the sites' prepared patients.
SIZES = ("64k", "1m")


def _mount(*arguments: str) -> bool:
    return not subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode


@pytest.fixture
def small_disk() -> Iterator[Path]:
    # Not among pytest's own folders: one left mounted by a killed run would end the next in error.
    disk = Path(tempfile.mkdtemp(prefix="medsynth-disk-"))
    if os.geteuid() or not _mount("-t", "tmpfs", "-o", f"size={SIZES[0]}", "tmpfs", str(disk)):
        disk.rmdir()
        pytest.skip("a small disk can be mounted by root only")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
    disk.rmdir()


@pytest.mark.slow
def test_a_full_disk_is_told_in_one_line_and_with_room_the_run_goes_on(
    small_disk: Path,
    settings: Path,
    undisturbed: Undisturbed,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = small_disk / "run"
    for size in SIZES:
        assert _mount("-o", f"remount,size={size}", str(small_disk))
        assert command(monkeypatch, "simulate", settings, "--out", run) == 4
        told = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(told) == 1, told
        assert told[0].startswith("error: ")
        assert "No space left on device" in told[0] or "a disk that takes no more" in told[0]
        assert not list(run.rglob(".part-*"))
    assert _mount("-o", "remount,size=64m", str(small_disk))
    assert command(monkeypatch, "simulate", settings, "--out", run) == 0
    for name in WEIGHTS:
        theirs = undisturbed.folder / "weights" / name
        assert (run / "weights" / name).read_bytes() == theirs.read_bytes()
    for site in ("site-1", "site-2"):
        assert uncharged(run / "sites" / site) == []
