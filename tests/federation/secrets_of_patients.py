"""What must not be found outside a site, and how it is looked for.

Voxels are looked for as runs of sixteen, labels of 48, in the orders and types in which a program
would write them, at every byte of what was recorded: each window's 64-bit hash is compared. Ten
megabytes against twenty million runs hit by chance once in a hundred thousand times.
"""

import gzip
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUN = 16
#: Sixteen labels in a row are alike in many brains, and so in synthetic ones.
LABEL_RUN = 48
#: A run must change at so many places: a plateau of zeros is no patient's.
_CHANGES = 6
_CLASSES = 3  # of a label map's run, air not counted
#: As C has it, as a NIfTI file has it, and slice by slice.
_ORDERS = ((0, 1, 2), (2, 1, 0), (2, 0, 1))
_FACTORS = np.random.default_rng(0).integers(1, 2**63, LABEL_RUN, dtype=np.uint64) | np.uint64(1)

Hashes = NDArray[np.uint64]
Row = NDArray[Any]
#: Says of each start in a row whether its run is worth looking for.
Chosen = Callable[[Row, NDArray[np.int64], int], NDArray[np.bool_]]


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
        runs: by what they are runs of; with their size in bytes.

    """

    texts: Sequence[str]
    runs: Mapping[str, tuple[int, Runs]]

    def found_in(self, content: bytes) -> Iterator[str]:
        """Say what of it stands in these bytes."""
        for text in self.texts:
            for encoding in ("utf-8", "utf-16-le"):
                if text.encode(encoding) in content:
                    yield f"the text {text!r}"
        hashes = {size: _hashes_of_bytes(content, size) for size, _ in self.runs.values()}
        for what, (size, runs) in self.runs.items():
            if hits := runs.hits(hashes[size]):
                yield f"{hits} runs of {what}"


def secrets_of(
    texts: Sequence[str],
    *,
    originals: Sequence[NDArray[np.float32]],
    prepared: Sequence[NDArray[np.float32]],
    labels: Sequence[NDArray[np.uint8]],
) -> Secrets:
    """Gather the runs of volumes (x, y, z) and label maps (x, y, z).

    Of the originals, which are large, every eighth run is kept: 23 voxels in a row hold one.
    """
    found: dict[tuple[str, int], list[Hashes]] = defaultdict(list)
    for volume in originals:
        for row in _rows(_brain(volume), _ORDERS[:2]):
            for kind in ("<f4", "<i2", "u1"):
                with np.errstate(invalid="ignore"):
                    cast = row.astype(kind)
                found[f"voxels as {kind}", RUN * cast.itemsize] += _runs(cast, 8, RUN, _lively)
    for volume in prepared:
        for row in _rows(volume):
            for cast in (row.astype("<f4"), (row * 255).astype("u1"), (row * 1000).astype("<i2")):
                what = f"prepared voxels as {cast.dtype.str}"
                found[what, RUN * cast.itemsize] += _runs(cast, 1, RUN, _lively)
    for label_map in labels:
        for row in _rows(label_map):
            for kind in ("u1", "<i8", "<f4"):
                cast = row.astype(kind)
                size = LABEL_RUN * cast.itemsize
                found[f"labels as {kind}", size] += _runs(cast, 1, LABEL_RUN, _anatomical)
    runs = {
        what: (size, Runs(np.concatenate(all_))) for (what, size), all_ in found.items() if all_
    }
    return Secrets(texts=texts, runs=runs)


def unpacked(path: Path) -> bytes:
    """A file's bytes, and what they hold when they are packed."""
    content = path.read_bytes()
    return content + gzip.decompress(content) if path.suffix == ".gz" else content


def _rows(volume: Row, orders: Sequence[tuple[int, int, int]] = _ORDERS) -> Iterator[Row]:
    """The voxels in one long row, in each of these orders of axes."""
    for order in orders:
        yield np.ascontiguousarray(volume.transpose(order)).ravel()


def _brain(volume: Row) -> Row:
    """The box around what is not 0."""
    box = tuple(
        slice(found[0], found[-1] + 1)
        for axis in range(3)
        for found in [np.flatnonzero(volume.any(tuple(a for a in range(3) if a != axis)))]
    )
    return volume[box]


def _runs(row: Row, step: int, length: int, chosen: Chosen) -> Iterator[Hashes]:
    for shift in range(0, 8, step):
        whole = row[shift : shift + (len(row) - shift) // 8 * 8]  # a multiple of eight bytes
        starts = np.arange(0, len(whole) - length + 1, 8)
        keep = starts[chosen(whole, starts, length)]
        if len(keep):
            words, size = whole.view(np.uint64), whole.itemsize * length
            yield _hashed(words, keep * whole.itemsize // 8, size)


def _lively(row: Row, starts: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
    changes = np.concatenate([[0], np.cumsum(row[1:] != row[:-1])])
    return np.asarray(changes[starts + length - 1] - changes[starts] >= _CHANGES)


def _anatomical(row: Row, starts: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
    there = np.zeros(len(starts), dtype=np.int64)
    for tissue in range(1, 9):
        seen = np.concatenate([[0], np.cumsum(row == tissue)])
        there += seen[starts + length] > seen[starts]
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
