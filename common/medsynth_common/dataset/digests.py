"""What files hold, by SHA-256, without reading again what has not changed.

A name and a time stamp do not say what a file holds: data is moved, mounted elsewhere and copied
back with its old times. Its content does, and costs a read: 6 ms for a patient of 10 MB, but hours
for a cohort on a network drive. So the digest decides, and (size, mtime, ctime) only says whether
it has to be taken again. ctime is there because a program can set mtime, and not ctime.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from medsynth_common.durable import write_bytes

#: A file changed so short a time ago may change once more within one tick of its time stamp.
_SETTLED_NS: Final = 2_000_000_000


def digests(paths: Sequence[Path], memory: Path) -> list[str]:
    """Return the SHA-256 of each file, in hexadecimal.

    Args:
        paths: the files.
        memory: a folder of what was found before; it holds no file's name, only their hashes.

    Raises:
        OSError: a file cannot be read.

    """
    entry = memory / f"{_hash(sorted(str(path.absolute()) for path in paths))}.json"
    known = _remembered(entry)
    found = {path: _digest(path, known) for path in paths}
    fresh = {
        _hash([str(path.absolute())]): [*stamp, digest]
        for path, (stamp, digest) in found.items()
        if time.time_ns() - max(stamp[1:]) > _SETTLED_NS
    }
    if fresh != known:
        write_bytes(entry, json.dumps(fresh).encode())
    return [digest for _, digest in found.values()]


def _digest(path: Path, known: Mapping[str, list[object]]) -> tuple[tuple[int, int, int], str]:
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        *before, digest = known.get(_hash([str(path.absolute())]), [""])
        if tuple(before) != stamp:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return stamp, str(digest)


def _remembered(entry: Path) -> dict[str, list[object]]:
    try:
        known = json.loads(entry.read_bytes())
    except (FileNotFoundError, ValueError):  # not there yet, or damaged
        return {}
    whole = isinstance(known, dict) and all(isinstance(row, list) for row in known.values())
    return known if whole else {}


def _hash(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:32]
