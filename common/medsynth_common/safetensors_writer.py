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

#: Types as the format names them, in the order in which it lays tensors out.
_TYPES: Final[Mapping[torch.dtype, str]] = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_PLACE: Final = {kind: place for place, kind in enumerate(_TYPES)}
_ALIGNED: Final = 8


def pieces(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> list[bytes | memoryview]:
    """Give the header and every tensor's own bytes, in order.

    The views are the tensors' own memory, where that is contiguous and on the CPU: use them
    before a tensor changes. Raises KeyError for a type that is not of the format's first ten.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    names = sorted(ready, key=lambda name: (_PLACE[ready[name].dtype], name.encode()))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    bodies: list[bytes | memoryview] = []
    end = 0
    for name in names:
        tensor = ready[name]
        body = tensor.reshape(-1).view(torch.uint8).numpy().data
        begin, end = end, end + len(body)
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        bodies.append(body)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return [len(text).to_bytes(8, "little"), text, *bodies]
