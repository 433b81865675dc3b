"""Plans and updates as Flower records, and back. Only Flower's public `flwr.app` is used.

The same records travel in memory (the local engine) and over the network (the real one). Tensors
travel as arrays of safetensors bytes, not one by one: over the network each array costs four signed
requests. Large ones are cut into several arrays, so that either side may work on one at a time. The
bytes are in no numpy file, as Flower's arrays are else: that would copy them twice on either side.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from medsynth_common.errors import BadMessage, Problem
from medsynth_common.identity.seal import Seal
from medsynth_common.plan import PlanHeader, RoundPlan, canonical_json, parse
from medsynth_common.tensors import packed_pieces, unpack
from medsynth_common.update import SiteUpdate, UpdateHeader
from medsynth_common.wire.parts import LARGEST_BYTES

_HEADER = "header"
_SEAL = "seal"
_SIGNATURE = "signature"
_PACKED: Final = "safetensors"
#: The longest array, bytes.
PIECE_BYTES: Final = 16 << 20
Bytes = bytes | memoryview
#: Makes tensors of the pieces of safetensors bytes.
Reading = Callable[[Iterator[Bytes]], Mapping[str, Tensor]]


def plan_to_records(plan: RoundPlan, *, weights: ArrayRecord | None = None) -> RecordDict:
    """Put a plan into records.

    `weights` are the plan's, `packed` before: several sites' plans may share them.
    """
    records = {
        "weights": packed(plan.weights) if weights is None else weights,
        "plan": _config(plan.header),
    }
    return RecordDict(records | _sealed(plan.seal))


def plan_from_records(records: RecordDict) -> RoundPlan:
    """Take a plan out of records. Raises `BadMessage` when they hold none."""
    header = parse(PlanHeader, _text(records, "plan"), name="plan")
    return RoundPlan(
        header=header,
        weights=_in_memory(_pieces(_arrays(records, "weights"))),
        seal=_seal(records),
    )


def update_to_records(update: SiteUpdate) -> RecordDict:
    """Put an update into records."""
    records = {"weights": packed(update.weights), "update": _config(update.header)}
    if update.own:
        records["own"] = packed(update.own)
    return RecordDict(records | _sealed(update.seal))


def _in_memory(pieces: Iterator[Bytes]) -> Mapping[str, Tensor]:
    return unpack(b"".join(pieces))


def update_from_records(
    records: RecordDict, *, read: Reading = _in_memory, most: int = LARGEST_BYTES
) -> SiteUpdate:
    """Take an update out of records.

    Args:
        records: a site's answer.
        read: may put the weights elsewhere than into memory.
        most: bytes of the weights, and of what is the site's own: arrays that share their
            content may come to more than was sent.

    Raises:
        BadMessage: the records hold no update, or a larger one.

    """
    return SiteUpdate(
        header=parse(UpdateHeader, _text(records, "update"), name="update"),
        weights=read(_at_most(most, _pieces(_arrays(records, "weights")))),
        own=_in_memory(_at_most(most, _pieces(_arrays(records, "own"))))
        if "own" in records
        else {},
        seal=_seal(records),
    )


def _array(content: bytes, stype: str) -> Array:
    return Array(dtype="uint8", shape=(len(content),), stype=stype, data=content)


def packed(
    weights: Mapping[str, Tensor], *, array: Callable[[bytes, str], Array] = _array
) -> ArrayRecord:
    """Put named tensors into a record of safetensors bytes, in pieces.

    `array` makes one of a piece and the name of its kind, and need not keep the piece.
    """
    record = ArrayRecord()
    for number, piece in enumerate(packed_pieces(weights, size=PIECE_BYTES)):
        record[f"{_PACKED}-{number}"] = array(piece, _PACKED)
    return record


class ArrayInParts(Array):  # type: ignore[misc] # flwr ships no types that mypy follows
    """An array whose bytes are elsewhere, and are taken in parts: never all of them at once."""

    def __init__(self, stype: str, parts: Callable[[], Iterator[memoryview]]) -> None:
        self.__dict__.update(dtype="uint8", shape=(), stype=stype, data=b"")
        self.__dict__["_parts"] = parts

    def parts(self) -> Iterator[memoryview]:
        """Give them in their order."""
        parts: Callable[[], Iterator[memoryview]] = self.__dict__["_parts"]
        return parts()


class _Numbers(Array):  # type: ignore[misc] # as above
    """Numbers where they lie: for who looks at them in this process, and no use on the wire."""

    def __init__(self, values: Any) -> None:
        self.__dict__.update(dtype=str(values.dtype), shape=values.shape, stype="", data=b"")
        self.__dict__["_values"] = values

    def numpy(self) -> Any:
        """Give them; whoever changes them changes the tensor."""
        return self.__dict__["_values"]


def arrays(weights: Mapping[str, Tensor]) -> ArrayRecord:
    """Put named tensors into an array record, for this process alone: nothing is copied.

    A strategy takes what it is given out of such a record, and it is no use on the wire.

    Raises:
        BadMessage: a tensor is of a type that numpy, and so Flower, has not: a peer sent it.

    """
    record = ArrayRecord()
    try:
        for name, tensor in weights.items():
            record[name] = _Numbers(tensor.detach().cpu().contiguous().numpy())
    except TypeError as error:
        types = sorted({str(tensor.dtype) for tensor in weights.values()})
        raise BadMessage(
            Problem(name="tensors", value=", ".join(types), wanted="types that numpy has")
        ) from error
    return record


def tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Take named tensors out of an array record."""
    return {name: _tensor(array).clone() for name, array in record.items()}


def _at_most(most: int, pieces: Iterator[Bytes]) -> Iterator[Bytes]:
    for piece in pieces:
        most -= len(piece)
        if most < 0:
            raise BadMessage(Problem(name="arrays", value="more bytes", wanted="the plan's form"))
        yield piece


def _pieces(record: ArrayRecord) -> Iterator[Bytes]:
    """The pieces in their order. Raises `BadMessage` where there is anything else."""
    wanted = [f"{_PACKED}-{number}" for number in range(max(1, len(record)))]
    if set(record) != set(wanted):
        value = ", ".join(list(record)[:5]) or "nothing"
        raise BadMessage(Problem(name="arrays", value=value[:80], wanted="bytes in pieces"))
    for name in wanted:
        if record[name].stype != _PACKED:
            value = str(record[name].stype)[:40]
            raise BadMessage(Problem(name=name, value=value, wanted=f"bytes of {_PACKED}"))
        if isinstance(record[name], ArrayInParts):
            yield from record[name].parts()
        else:
            yield record[name].data


def _tensor(array: Array) -> Tensor:
    try:
        return torch.from_numpy(array.numpy())
    except Exception as error:
        # An edge: on bytes that a peer made up, numpy's reader raises tokenizer, zip, memory,
        # attribute and syntax errors, and whatever its next version does.
        raise BadMessage(
            Problem(name="arrays", value=type(error).__name__, wanted="numeric arrays")
        ) from error


def _config(header: PlanHeader | UpdateHeader) -> ConfigRecord:
    return ConfigRecord({_HEADER: canonical_json(header)})


def _sealed(seal: Seal | None) -> dict[str, ConfigRecord]:
    if seal is None:
        return {}
    return {_SEAL: ConfigRecord({_HEADER: seal.header, _SIGNATURE: seal.signature})}


def _seal(records: RecordDict) -> Seal | None:
    record = records.config_records.get(_SEAL)
    if record is None:
        return None
    header, signature = record.get(_HEADER), record.get(_SIGNATURE)
    if not isinstance(header, bytes) or not isinstance(signature, bytes):
        raise BadMessage(Problem(name=_SEAL, value="a broken seal", wanted="header and signature"))
    return Seal(header=header, signature=signature)


def _text(records: RecordDict, name: str) -> bytes:
    record = records.config_records.get(name)
    value = record.get(_HEADER) if record is not None else None
    if not isinstance(value, bytes):
        raise BadMessage(Problem(name=name, value="no header", wanted="a header in its record"))
    return value


def _arrays(records: RecordDict, name: str) -> ArrayRecord:
    record = records.array_records.get(name)
    if record is None:
        raise BadMessage(Problem(name=name, value="no arrays", wanted="an array record"))
    return record
