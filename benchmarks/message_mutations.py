"""Spoilt messages: good plans and updates with a few faults, at every level of their encoding.

`fuzz_messages` sends them. The levels, from the inside out: a field of the header, a tensor, the
safetensors bytes, the order of the parts, the bytes on the wire.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import safetensors.torch
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

#: Values that no field is made for, written as JSON; some are no JSON at all.
ODD_VALUES: Final = (
    *("0", "-1", "1", "0.0", "-0.0", "1e-9", "1e400", "-1e400", "NaN", "Infinity", "-Infinity"),
    *("1000000", "1000000000", "9" * 400, "5.0", "true", "null", '""', "[]", "{}", "[[[[0]]]]"),
    *('"adversarial"', '"moments"', '"pretrain"', '"exfiltrate"', '"../../etc/passwd"'),
    *('"site-b"', '"\\u0000"', '"\\ud800"', f'"{"x" * 5000}"', "[512, 512, 512]", "[8, 8, 8]"),
    *("[" * 3000, '{"a":' * 3000, "[1e9, 1e9, 1e9]", '{"kind": "unprotected"}', '"unprotected"'),
)
_PLACE: Final = '"@here@"'
_DTYPES: Final = (
    *(torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool),
    *(torch.complex64,),
)
_NUMBERS: Final = (float("nan"), float("inf"), float("-inf"), 1e30, -1e5, 1e-45)
_NAMES: Final = ("", "segmenter", "weights.", "../x", "a" * 3000, "style.code\n\x1b[2J", "__x__")

Draw = random.Random
Tensors = dict[str, Tensor]


def odd_header(header: bytes, draw: Draw) -> bytes:
    """Change, drop, add or double one field, at any depth."""
    fields = json.loads(header)
    place, key = draw.choice(list(_places(fields)))
    match draw.randrange(5):
        case 0:
            del place[key]
        case 1 if isinstance(place, dict):
            place[draw.choice(("seed", "loss", "patients", "code"))] = "@here@"
        case 2:
            text = json.dumps(fields)
            return f"{text[:-1]}, {text[1:]}".encode()  # every field twice
        case _:
            place[key] = "@here@"
    return json.dumps(fields).replace(_PLACE, draw.choice(ODD_VALUES)).encode()


def _places(value: Any) -> Sequence[tuple[Any, Any]]:
    if not isinstance(value, dict | list) or not value:
        return []
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [
        (holder, inner) for key in keys for holder, inner in [(value, key), *_places(value[key])]
    ]


def odd_tensors(tensors: Mapping[str, Tensor], draw: Draw) -> Tensors:
    """Spoil, rename, drop or add one tensor."""
    changed = dict(tensors)
    name = draw.choice(sorted(changed))
    tensor = changed[name]
    match draw.randrange(7):
        case 0:
            changed[name] = torch.real(tensor).to(draw.choice(_DTYPES))
        case 1:
            changed[name] = torch.zeros(draw.choice(((), (0,), (3,), (1, *tensor.shape), (9, 9))))
        case 2 if tensor.is_floating_point() and tensor.numel():
            flat = tensor.clone().flatten()
            flat[draw.randrange(len(flat))] = draw.choice(_NUMBERS)
            changed[name] = flat.reshape(tensor.shape)
        case 3:
            del changed[name]
        case 4:
            changed[draw.choice(_NAMES)] = changed.pop(name)
        case 5:
            changed |= {f"extra-{k}": torch.zeros(1) for k in range(draw.choice((1, 300)))}
        case _:
            changed[draw.choice(_NAMES)] = tensor
    return changed


def odd_bytes(content: bytes, draw: Draw) -> bytes:
    """Flip bits, cut, double, empty, or put a huge length in front."""
    where = draw.randrange(len(content) + 1)
    match draw.randrange(7):
        case 0:
            flipped = bytearray(content)
            for _ in range(min(draw.choice((1, 1, 2, 50)), len(content))):
                flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
            return bytes(flipped)
        case 1:
            return content[:where]
        case 2:
            return content[where:]
        case 3:
            return content + content
        case 4:
            lengths = (0, 1, 1 << 31, 1 << 62, (1 << 64) - 1)
            return draw.choice(lengths).to_bytes(8, "little") + content[8:]
        case 5:
            return content[:where] + draw.randbytes(draw.choice((1, 8, 64))) + content[where:]
        case _:
            return draw.choice((b"", draw.randbytes(100), b"\x00" * 1000, b"\xff" * 1000))


def odd_order(parts: Sequence[Any], empty: Callable[[], Any], draw: Draw) -> list[Any]:
    """Drop, double, move, add or split parts."""
    parts = list(parts)
    where = draw.randrange(len(parts))
    match draw.randrange(7):
        case 0:
            del parts[where]
        case 1:
            parts.insert(draw.randrange(len(parts) + 1), parts[where])
        case 2:
            draw.shuffle(parts)
        case 3:
            parts.insert(where, empty())
        case 4:
            parts = []
        case 5:
            parts *= draw.choice((2, 20))
        case _:
            part = parts[-1]
            bites = [part.chunk[k : k + 4096] for k in range(0, len(part.chunk), 4096)]
            parts[-1:] = [type(part)(chunk=bite) for bite in bites]  # a good one, in small bites
    return parts


def odd_wire(parts: Sequence[Any], draw: Draw) -> list[Any] | None:
    """Spoil one part's own bytes; None where gRPC would end the call, since it is no message."""
    parts = list(parts)
    where = draw.randrange(len(parts))
    spoilt = odd_bytes(parts[where].SerializeToString(), draw)
    try:
        parts[where] = type(parts[where]).FromString(spoilt)
    except DecodeError:
        return None
    return parts


def spoil(
    header: bytes, tensors: Mapping[str, Tensor], part: Any, draw: Draw
) -> tuple[str, list[Any] | None]:
    """Give a message's parts with some faults, and the level they are at.

    Args:
        header: canonical JSON of the good message.
        tensors: its tensors.
        part: the class of its parts.
        draw: makes the choices.

    Returns:
        the level, and the parts; None where what was sent is no message at all.

    """
    level = draw.choice(("field", "field", "tensor", "bytes", "order", "wire"))
    content = None
    for _ in range(draw.choice((1, 1, 2, 3))):
        if level == "field":
            header = _again(odd_header, header, draw)
        elif level == "tensor":
            tensors = odd_tensors(tensors, draw) if tensors else tensors
        elif level == "bytes":
            content = odd_bytes(_packed(tensors) if content is None else content, draw)
    packed = _packed(tensors) if content is None else content
    parts: list[Any] | None = [part(header=header), part(chunk=packed)]
    if level == "order":
        parts = odd_order(parts or [], part, draw)
    elif level == "wire":
        parts = odd_wire(parts or [], draw)
    return level, parts


def _again(change: Callable[[bytes, Draw], bytes], header: bytes, draw: Draw) -> bytes:
    """Change a header that may already be past changing."""
    try:
        return change(header, draw)
    except (ValueError, RecursionError, IndexError):
        return header


def _packed(tensors: Mapping[str, Tensor]) -> bytes:
    """Pack as a peer may, types among them that ours never sends."""
    alone = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    packed: bytes = safetensors.torch.save(alone)
    return packed
