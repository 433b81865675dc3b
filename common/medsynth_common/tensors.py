"""Named tensors: to bytes and back (safetensors, never pickle), and their fingerprint."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from medsynth_common.errors import BadMessage, Problem

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

#: The types that safetensors has a code for and ours may be of.
TYPE_OF: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODE_OF: Final = {dtype: code for code, dtype in TYPE_OF.items()}


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Encode named tensors as safetensors bytes; the same tensors give the same bytes."""
    # Clones: safetensors refuses tensors that share memory, as a style may with its prior.
    ready = {
        name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format)
        for name in sorted(tensors)
    }
    return bytes(safetensors.torch.save(ready))


def packed_pieces(tensors: Mapping[str, Tensor], *, size: int) -> Iterator[bytes]:
    """Encode as safetensors in pieces of `size` bytes, the last one shorter, one at a time.

    No more than a piece is held besides the tensors, however large they are. Raises `BadMessage`
    for a type that safetensors has no code for.
    """
    piece = bytearray()
    for part in _safetensors(tensors):
        for start in range(0, len(part), size):
            piece += part[start : start + size]
            if len(piece) >= size:
                yield bytes(piece[:size])
                del piece[:size]
    if piece:
        yield bytes(piece)


def _safetensors(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The format's parts: the length of the header, the header, each tensor's bytes."""
    # The widest types first, so that each tensor lies at a multiple of its type's size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, dict[str, object]] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _CODE_OF:
            wanted = f"one of {', '.join(TYPE_OF)}"
            raise BadMessage(Problem(name=name, value=str(tensor.dtype), wanted=wanted))
        start, end = end, end + tensor.numel() * tensor.element_size()
        code, shape = _CODE_OF[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little"))
    yield memoryview(text)
    for name in order:
        yield memoryview(_bytes_of(tensors[name]))


def _bytes_of(tensor: Tensor) -> Any:
    """A tensor's bytes, as they lie there where they lie together."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


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
        digest.update(_bytes_of(tensor))
    return digest.digest()


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
