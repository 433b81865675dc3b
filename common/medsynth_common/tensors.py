"""Named tensors: to bytes and back (safetensors, never pickle), and their fingerprint."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
from typing import Final, Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from medsynth_common.errors import BadMessage, Problem
from medsynth_common.safetensors_writer import bytes_of, pieces

#: What safetensors and torch say of bytes that are no tensors: the last three of shapes and types
#: that pass the file's own checks and are still none of torch's.
NOT_SAFETENSORS: Final = (
    SafetensorError,
    ValueError,
    KeyError,
    OverflowError,
    RuntimeError,
    TypeError,
    AssertionError,
)


@dataclass(frozen=True, kw_only=True)
class TensorParts:
    """A value whose fields are all tensors: it travels, and is kept, as named tensors."""

    def tensors(self) -> dict[str, Tensor]:
        """Name the parts."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Put together what `tensors` took apart; others' tensors are passed over."""
        return cls(**{field.name: tensors[field.name] for field in fields(cls)})


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Encode named tensors as safetensors bytes; the same tensors give the same bytes."""
    return b"".join(pieces(tensors))


def packs_to(tensors: Mapping[str, Tensor], content: bytes) -> bool:
    """Whether `content` is what `pack` gives, byte for byte; it is not made a second time."""
    end = 0
    for piece in pieces(tensors):
        if not content.startswith(piece, end):
            return False
        end += len(piece)
    return end == len(content)


def packed_pieces(tensors: Mapping[str, Tensor], *, size: int) -> Iterator[bytes]:
    """Encode as safetensors in pieces of `size` bytes, the last one shorter, one at a time.

    No more than a piece is held besides the tensors, however large they are. Raises `BadMessage`
    for a type that safetensors has no code for.
    """
    held: list[memoryview] = []
    room = size
    for part in pieces(tensors):
        start = 0
        while start < len(part):
            held.append(part[start : start + room])
            start += len(held[-1])
            room -= len(held[-1])
            if not room:
                yield b"".join(held)
                held, room = [], size
    if held:
        yield b"".join(held)


def unpack(content: bytes) -> dict[str, Tensor]:
    """Decode safetensors bytes. Raises `BadMessage` when they are not that."""
    try:
        return dict(safetensors.torch.load(content))
    except NOT_SAFETENSORS as error:
        raise BadMessage(
            Problem(name="tensors", value=f"{len(content)} bytes", wanted="safetensors")
        ) from error


def tensors_digest(tensors: Mapping[str, Tensor]) -> bytes:
    """SHA-256 over names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest = _with_tensor(digest, name, tensors[name])
    return digest.digest()


class HashedTensors:
    """The tensors hashed last, held: for those that begin with the same ones it goes on from there.

    They are the same for as long as no tensor is exchanged or changed by PyTorch. Hashing half a
    gigabyte takes half a second.
    """

    def __init__(self) -> None:
        self._last: Sequence[_Hashed] = ()

    def digest(self, tensors: Mapping[str, Tensor]) -> bytes:
        """Give what `tensors_digest` gives."""
        names = sorted(tensors)
        pairs = zip(self._last, names, strict=False)  # either may be the longer
        same = takewhile(lambda pair: pair[0].is_still(pair[1], tensors[pair[1]]), pairs)
        hashed = [before for before, _ in same]
        digest = hashed[-1].digest if hashed else hashlib.sha256()
        for name in names[len(hashed) :]:
            hashed.append(_Hashed(name, tensors[name], after=digest))
            digest = hashed[-1].digest
        self._last = hashed
        return digest.digest()


class _Hashed:
    """A tensor, and the hash of all up to it."""

    def __init__(self, name: str, tensor: Tensor, *, after: "hashlib._Hash") -> None:
        # The tensor itself: an address may be another's by the time it is looked at again.
        self._name, self._tensor, self._version = name, tensor, _version(tensor)
        self.digest = _with_tensor(after, name, tensor)

    def is_still(self, name: str, tensor: Tensor) -> bool:
        """Whether this is the same tensor, unchanged, under the same name."""
        known = self._version is not None and self._version == _version(tensor)
        return known and self._tensor is tensor and self._name == name


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _with_tensor(digest: "hashlib._Hash", name: str, tensor: Tensor) -> "hashlib._Hash":
    longer = digest.copy()
    head = f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode()
    # Its length first: else a clever name could hold what looks like another tensor.
    longer.update(len(head).to_bytes(8, "big") + head)
    longer.update(bytes_of(tensor))
    return longer


def all_finite(tensor: Tensor) -> bool:
    """Whether every number is finite: the least and the largest tell, and NaN is both."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    least, largest = torch.aminmax(tensor)
    return math.isfinite(least) and math.isfinite(largest)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name every tensor `prefix.name`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the tensors named `prefix.*`, with the prefix cut off."""
    start = f"{prefix}."
    return {
        name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)
    }


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Copy a module's parameters and buffers to the CPU."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
