"""Tensors that lie in a file and not in memory: a large answer, or many small ones, until they are
combined; and what is made of them until it is looked at.
"""

import json
import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from torch import Tensor

from medsynth_common.errors import BadMessage, Problem
from medsynth_common.safetensors_writer import TYPE_OF, bytes_of
from medsynth_common.tensors import NOT_SAFETENSORS

#: Where a tensor may begin in a file, bytes.
_ALIGNED: Final = 64


@dataclass(frozen=True, kw_only=True)
class _Place:
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def width(self) -> int:
        return torch.empty(0, dtype=self.dtype).element_size()


class _File:
    """A descriptor of a file without a name, closed with the last tensor that lies there."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class Shelf(Mapping[str, Tensor]):
    """Named tensors in a file without a name.

    Each look reads the tensor anew: what is not kept is not held.
    """

    def __init__(self, places: Mapping[str, _Place], file: _File, *, folder: Path) -> None:
        self._places, self._file, self.folder = places, file, folder

    @classmethod
    def arriving(cls, pieces: Iterator[bytes | memoryview], *, folder: Path) -> "Shelf":
        """Write safetensors bytes, as they come, into a file of their own on the disk of `folder`.

        Raises:
            BadMessage: they are no safetensors.

        """
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".part-") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            places = _places(Path(file.name))
            return cls(places, _File(os.dup(file.fileno())), folder=folder)

    def __getitem__(self, name: str) -> Tensor:
        """Read a tensor."""
        place = self._places[name]
        return self.piece(name, 0, _count(place.shape)).view(place.shape)

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """Read some elements of a tensor, counted as they lie."""
        place = self._places[name]
        stop = min(stop, _count(place.shape))
        if stop <= start:
            return torch.empty(0, dtype=place.dtype)
        content = bytearray((stop - start) * place.width)
        os.preadv(self._file.descriptor, [content], place.start + start * place.width)
        return torch.frombuffer(content, dtype=place.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Shelves:
    """Many answers in one file without a name: a file each would be a descriptor for each site."""

    def __init__(self, folder: Path) -> None:
        """Say on which disk; the file is made when there is something to put there."""
        self._folder, self._end = folder, 0
        self._file: _File | None = None

    def put(self, tensors: Mapping[str, Tensor]) -> Shelf:
        """Write tensors behind those that are there."""
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder) as file:
                self._file = _File(os.dup(file.fileno()))
        places, self._end = _laid_out(tensors, self._end)
        for name, place in places.items():
            _write(self._file.descriptor, bytes_of(tensors[name]), place.start)
        return Shelf(places, self._file, folder=self._folder)


class Draft:
    """Tensors of a given form that are being made, in a file without a name.

    What is written is not in memory. `tensors` are ordinary ones over a map of the file: a page of
    it comes into memory when it is looked at, and by then what they replace may be gone.
    """

    def __init__(self, forms: Mapping[str, Tensor], *, folder: Path) -> None:
        """Begin with zeros, in a file on the disk of `folder`."""
        self._places, self._size = _laid_out(forms, 0)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - as long as it
        self._file.truncate(max(1, self._size))

    def put(self, name: str, start: int, values: Tensor) -> None:
        """Write some elements of a tensor, counted as they lie, in its type."""
        place = self._places[name]
        at = place.start + start * place.width
        _write(self._file.fileno(), bytes_of(values.to(place.dtype)), at)

    def tensors(self) -> dict[str, Tensor]:
        """Give them; the file is gone with the last one."""
        held = mmap.mmap(self._file.fileno(), max(1, self._size), access=mmap.ACCESS_COPY)
        self._file.close()  # the map outlives it
        return {
            name: torch.frombuffer(
                held, dtype=place.dtype, count=_count(place.shape), offset=place.start
            ).view(place.shape)
            if _count(place.shape)
            else torch.empty(place.shape, dtype=place.dtype)
            for name, place in self._places.items()
        }


def _laid_out(forms: Mapping[str, Tensor], end: int) -> tuple[dict[str, _Place], int]:
    """Where tensors of these forms lie behind byte `end` of a file, and where they end."""
    places = {}
    for name, form in forms.items():
        places[name] = _Place(start=end, dtype=form.dtype, shape=tuple(form.shape))
        end += -(-form.numel() * places[name].width // _ALIGNED) * _ALIGNED
    return places, end


def _write(descriptor: int, content: memoryview, at: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, at)
        content, at = content[written:], at + written


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _places(path: Path) -> dict[str, _Place]:
    """Where each tensor lies, once safetensors itself has found the file to be sound."""
    try:
        with safe_open(path, framework="pt") as sound:
            sound.keys()
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        return {
            name: _Place(
                start=8 + size + found["data_offsets"][0],
                dtype=TYPE_OF[found["dtype"]],
                shape=tuple(found["shape"]),
            )
            for name, found in header.items()
        }
    except NOT_SAFETENSORS as error:
        value = f"{path.stat().st_size} bytes"
        raise BadMessage(Problem(name="tensors", value=value, wanted="safetensors")) from error
