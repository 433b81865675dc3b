import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medsynth_common import durable
from medsynth_common.durable import (
    append_line,
    is_part,
    replacing,
    sweep,
    write_bytes,
    write_json,
    write_sector,
)

COMMON = Path(durable.__file__).parents[1]


def test_a_file_is_written_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [one.name for one in path.parent.iterdir()] == ["file.bin"]


def test_a_new_folder_outlives_a_crash_with_the_file_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(durable, "_sync_folder", synced.append)
    write_bytes(tmp_path / "new" / "folder" / "file.bin", b"all")
    assert synced == [tmp_path, tmp_path / "new", tmp_path / "new" / "folder"]


def test_json_is_readable_by_people(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, 2]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"a": [1, 2]}
    assert text.endswith("}\n")
    assert "\n  " in text


def test_the_temporary_file_keeps_the_ending(tmp_path: Path) -> None:
    with replacing(tmp_path / "t1.nii.gz") as part:  # a writer that goes by the ending
        assert part.name.endswith(".nii.gz")
        assert part.parent == tmp_path
        part.write_bytes(b"x")


KILLED = """
import os, signal, sys
from pathlib import Path
from medsynth_common.durable import replacing
with replacing(Path(sys.argv[1])) as part:
    part.write_bytes(b"half of the n")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_in_the_middle_the_old_file_stands(tmp_path: Path) -> None:
    path = tmp_path / "state.bin"
    write_bytes(path, b"old")
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)],
        env={**os.environ, "PYTHONPATH": str(COMMON)},
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    [part] = [one for one in tmp_path.iterdir() if one != path]
    assert is_part(part)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert not is_part(path)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("when", ["while writing", "while syncing"])
def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = tmp_path / "state.bin"
    write_bytes(path, b"old")
    with monkeypatch.context() as patched:
        if when == "while syncing":
            patched.setattr(os, "fsync", full)
        else:
            patched.setattr(Path, "open", full)
        with pytest.raises(OSError, match="No space left") as caught:
            write_bytes(path, b"new")
        assert caught.value.filename == str(path)  # the system does not know
        with pytest.raises(OSError, match="No space left"):
            write_bytes(tmp_path / "other.bin", b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["state.bin"]


def test_a_real_full_device_is_told(tmp_path: Path) -> None:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left"):
        append_line(device, "a line")


def test_bytes_are_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    replace, fsync = Path.replace, os.fsync

    def spy_replace(self: Path, target: Path) -> Path:
        told.append("rename")
        return replace(self, target)

    def spy_fsync(handle: int) -> None:
        told.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "bytes")
        fsync(handle)

    monkeypatch.setattr(Path, "replace", spy_replace)
    monkeypatch.setattr(os, "fsync", spy_fsync)
    write_bytes(tmp_path / "a", b"x")
    assert told == ["bytes", "rename", "folder"]


def test_a_sector_is_written_over_the_one_before_and_is_on_disk_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "head"
    write_sector(path, b"12\n")
    first = path.stat().st_ino
    synced: list[bytes] = []
    monkeypatch.setattr(
        durable,
        "_sync_data",
        lambda handle: synced.append(Path(f"/proc/self/fd/{handle}").read_bytes()),
    )
    write_sector(path, b"13\n")
    assert (synced, path.read_bytes(), path.stat().st_ino) == ([b"13\n"], b"13\n", first)


def test_a_sector_of_another_length_is_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "head"
    write_bytes(path, b"of another version")
    before = path.stat().st_ino
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_sector(path, b"1\n")
    assert path.read_bytes() == b"of another version"
    write_sector(path, b"1\n")
    assert path.read_bytes() == b"1\n"
    assert path.stat().st_ino != before


def test_no_more_than_a_sector_is_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="512 bytes, got 513"):
        write_sector(tmp_path / "head", bytes(513))
    assert not (tmp_path / "head").exists()


def test_lines_are_added_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    append_line(path, "first")
    append_line(path, "zweite: ü")
    assert path.read_text(encoding="utf-8") == "first\nzweite: ü\n"
