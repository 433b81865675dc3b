"""Named tensors as safetensors bytes, without a copy: the pieces of a file, ready to be written.

`safetensors.torch.save` copies every tensor three times on its way into one `bytes`. Fifty
megabytes of weights pass here several times a round. What comes out is the same to the last byte:
the tests compare with that function.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from medsynth_common.errors import BadMessage, Problem

#: The types that the format has a code for and ours may be of, in the order in which it lays
#: tensors out.
TYPE_OF: Final[Mapping[str, torch.dtype]] = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODE_OF: Final = {kind: code for code, kind in TYPE_OF.items()}
_PLACE: Final = {kind: place for place, kind in enumerate(_CODE_OF)}
_ALIGNED: Final = 8


def pieces(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> list[memoryview]:
    """Give the header and every tensor's own bytes, in order.

    The views are the tensors' own memory, where that is contiguous and on the CPU: use them
    before a tensor changes. Raises `BadMessage` for a type that is none of `TYPE_OF`.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODE_OF:
            wanted = f"one of {', '.join(TYPE_OF)}"
            raise BadMessage(Problem(name=name, value=str(tensor.dtype), wanted=wanted))
    names = sorted(tensors, key=lambda name: (_PLACE[tensors[name].dtype], name.encode()))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    bodies: list[memoryview] = []
    end = 0
    for name in names:
        tensor = tensors[name]
        body = bytes_of(tensor)
        begin, end = end, end + len(body)
        header[name] = {
            "dtype": _CODE_OF[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        bodies.append(body)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return [memoryview(len(text).to_bytes(8, "little")), memoryview(text), *bodies]


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes: its own memory, where that is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
