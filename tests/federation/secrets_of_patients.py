"""What must not be found outside a site, and how it is looked for.

Voxels are looked for as runs of sixteen, in the orders and types in which a program would write
them, at every byte of what was recorded: each window's 64-bit hash is compared, and a hit by
chance has odds of less than one in a million even for a gigabyte.
"""

import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUN = 16
#: A run must change at so many places: a plateau of zeros is no patient's.
_CHANGES = 6
_CLASSES = 3  # of a label map's run, air not counted
_FACTORS = np.random.default_rng(0).integers(1, 2**63, RUN, dtype=np.uint64) | np.uint64(1)

Hashes = NDArray[np.uint64]
Row = NDArray[Any]
#: Says of each start in a row whether its run is worth looking for.
Chosen = Callable[[Row, NDArray[np.int64]], NDArray[np.bool_]]


class Runs:
    """Hashes of runs of one size, for many lookups: a table of their first bits comes first."""

    _SHIFT = np.uint64(64 - 26)

    def __init__(self, hashes: Hashes) -> None:
        self._hashes = np.unique(hashes)
        self._known = np.zeros(1 << 26, dtype=np.bool_)
        self._known[self._hashes >> self._SHIFT] = True

    def hits(self, hashes: Hashes) -> int:
        """How many of these are known."""
        near = hashes[self._known[hashes >> self._SHIFT]]
        places = np.searchsorted(self._hashes, near).clip(max=len(self._hashes) - 1)
        return int((self._hashes[places] == near).sum())


@dataclass(frozen=True, kw_only=True)
class Secrets:
    """What a site holds and nobody else may.

    Attributes:
        texts: names, paths, dates.
        runs: for each size in bytes, the runs of voxels.

    """

    texts: Sequence[str]
    runs: Mapping[int, Runs]

    def found_in(self, content: bytes) -> Iterator[str]:
        """Say what of it stands in these bytes."""
        for text in self.texts:
            for encoding in ("utf-8", "utf-16-le"):
                if text.encode(encoding) in content:
                    yield f"the text {text!r}"
        for size, runs in self.runs.items():
            hits = runs.hits(_hashes_of_bytes(content, size))
            if hits:
                yield f"{hits} runs of {RUN} voxels of {size // RUN} bytes"


def secrets_of(
    texts: Sequence[str],
    *,
    originals: Sequence[NDArray[np.float32]],
    prepared: Sequence[NDArray[np.float32]],
    labels: Sequence[NDArray[np.uint8]],
) -> Secrets:
    """Gather the runs of volumes (x, y, z) and label maps (x, y, z), along every axis.

    Of the originals, which are large, every eighth run is kept: 23 voxels in a row hold one.
    """
    runs: dict[int, list[Hashes]] = {}
    for volumes, step in ((originals, 8), (prepared, 1)):
        for volume in volumes:
            for row in _rows(volume):
                for kind in ("<f4", "<i2", "u1"):
                    with np.errstate(invalid="ignore"):
                        cast = row.astype(kind)
                    _gather(runs, cast, step, _lively)
    for label_map in labels:
        for row in _rows(label_map):
            for kind in ("u1", "<i8", "<f4"):
                _gather(runs, row.astype(kind), 1, _anatomical)
    return Secrets(
        texts=texts, runs={size: Runs(np.concatenate(found)) for size, found in runs.items()}
    )


def unpacked(path: Path) -> bytes:
    """A file's bytes, and what they hold when they are packed."""
    content = path.read_bytes()
    return content + gzip.decompress(content) if path.suffix == ".gz" else content


def _rows(volume: Row) -> Iterator[Row]:
    """The voxels in one long row, once with each axis the fastest."""
    for order in ((0, 1, 2), (2, 1, 0), (0, 2, 1)):
        yield np.ascontiguousarray(volume.transpose(order)).ravel()


def _gather(runs: dict[int, list[Hashes]], row: Row, step: int, chosen: Chosen) -> None:
    for shift in range(0, 8, step):
        whole = row[shift : shift + (len(row) - shift) // 8 * 8]  # a multiple of eight bytes
        starts = np.arange(0, len(whole) - RUN + 1, 8)
        keep = starts[chosen(whole, starts)]
        if len(keep):
            words = whole.view(np.uint64)
            size = whole.itemsize * RUN
            runs.setdefault(size, []).append(_hashed(words, keep * whole.itemsize // 8, size))


def _lively(row: Row, starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    changes = np.concatenate([[0], np.cumsum(row[1:] != row[:-1])])
    return np.asarray(changes[starts + RUN - 1] - changes[starts] >= _CHANGES)


def _anatomical(row: Row, starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    there = np.zeros(len(starts), dtype=np.int64)
    for tissue in range(1, 9):
        seen = np.concatenate([[0], np.cumsum(row == tissue)])
        there += seen[starts + RUN] > seen[starts]
    return there >= _CLASSES


def _hashed(words: Hashes, starts: NDArray[np.int64], size: int) -> Hashes:
    total = np.zeros(len(starts), dtype=np.uint64)
    for number in range(size // 8):
        total += words[starts + number] * _FACTORS[number]
    return total


def _hashes_of_bytes(content: bytes, size: int) -> Hashes:
    """The hash of every window of `size` bytes, at whatever byte it begins."""
    found = []
    for shift in range(8):
        words = np.frombuffer(content[shift : shift + (len(content) - shift) // 8 * 8], np.uint64)
        count = len(words) - size // 8 + 1
        if count > 0:
            found.append(_hashed(words, np.arange(count), size))
    return np.concatenate(found) if found else np.zeros(0, dtype=np.uint64)
