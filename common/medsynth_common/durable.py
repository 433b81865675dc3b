"""Files that are there whole or not at all, whatever dies while they are written."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

#: How the names of files begin that are not whole yet.
_PART: Final = ".part-"
_SECTOR: Final = 512
#: Without times of change, where the system can do without.
_sync_data: Final = getattr(os, "fdatasync", os.fsync)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well, move it there durably.

    The file's bytes are on disk before the name appears (fsync, rename, fsync of the folder).
    When the block raises, a full disk for instance, nothing is left and `path` is as it was.
    """
    _make_folder(path.parent)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_PART, suffix="".join(path.suffixes))
    os.close(handle)
    part = Path(name)
    try:
        with _named(path):
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(path)
            _sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, not there or empty; when the block ends well, move it.

    When the block raises, nothing is left.
    """
    _make_folder(path.parent)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=_PART))
    try:
        with _named(path):
            yield part
            part.replace(path)
            _sync_folder(path.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def is_part(path: Path) -> bool:
    """Say whether this is a file that a crash left half-written."""
    return path.name.startswith(_PART)


def sweep(folder: Path) -> None:
    """Remove what a crash left half-written anywhere below `folder`, which nobody else uses."""
    for part in folder.rglob(f"{_PART}*"):
        part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all."""
    write_pieces(path, [content])


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write `pieces` one after the other to `path`, whole or not at all."""
    with replacing(path) as part, part.open("wb") as stream:
        stream.writelines(pieces)


def write_sector(path: Path, content: bytes) -> None:
    """Write at most 512 bytes to `path`, old or new after any crash; over a file of this length.

    A disk writes a sector whole or not at all (PostgreSQL's control file rests on that, too). Where
    a file's name and length stay, its bytes are all that has to reach the disk, which takes a small
    part of what a new file takes. A file of another length, or none, is replaced.
    """
    if len(content) > _SECTOR:
        raise ValueError(f"a sector holds {_SECTOR} bytes, got {len(content)}")
    if not path.exists() or path.stat().st_size != len(content):
        write_bytes(path, content)
        return
    with _named(path), path.open("r+b", buffering=0) as stream:
        stream.write(content)
        _sync_data(stream.fileno())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON to `path`, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def append_line(path: Path, line: str) -> None:
    """Add one line to `path` and wait until it is on disk."""
    with _named(path), path.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let an error say which file it is about: a full disk's does not know."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def _make_folder(folder: Path) -> None:
    """Make a folder, and those above it, that a crash does not take away with what is in it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
