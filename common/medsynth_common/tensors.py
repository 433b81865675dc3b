"""Named tensors: to bytes and back (safetensors, never pickle), and their fingerprint."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
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
        tensor = tensors[name]
        head = f"{name}|{tensor.dtype}|{tuple(tensor.shape)}".encode()
        # Its length first: else a clever name could hold what looks like another tensor.
        digest.update(len(head).to_bytes(8, "big") + head)
        digest.update(bytes_of(tensor))
    return digest.digest()


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
