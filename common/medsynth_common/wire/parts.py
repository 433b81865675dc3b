"""A plan or an update as a stream of bounded parts, and back: encode and decode in one file."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from medsynth_common.errors import BadMessage, Problem
from medsynth_common.identity.seal import Seal
from medsynth_common.plan import PlanHeader, RoundPlan, canonical_json, parse
from medsynth_common.tensors import packed_pieces, under, unpack, with_prefix
from medsynth_common.update import SiteUpdate, UpdateHeader
from medsynth_common.wire import site_pb2
from medsynth_common.wire.site_pb2 import Failure, PlanPart, UpdatePart

CHUNK_BYTES = 1 << 20
#: No plan or update of ours comes near this; a peer that sends more is cut off.
LARGEST_BYTES = 4 << 30


def plan_parts(plan: RoundPlan) -> Iterator[PlanPart]:
    """Cut a plan into parts."""
    yield PlanPart(header=canonical_json(plan.header))
    if plan.seal is not None:
        yield PlanPart(seal=_seal_message(plan.seal))
    for chunk in packed_pieces(plan.weights, size=CHUNK_BYTES):
        yield PlanPart(chunk=chunk)


def plan_from_parts(parts: Iterable[PlanPart]) -> RoundPlan:
    """Put a plan together. Raises `BadMessage` when the parts are not one whole plan."""
    header, seal, content = _join(parts, "plan")
    return RoundPlan(
        header=parse(PlanHeader, header, name="plan"), weights=unpack(content), seal=seal
    )


def update_tensors(update: SiteUpdate) -> dict[str, Tensor]:
    """Name all tensors of an update in one mapping: `weights.*` and `own.*`."""
    return {**with_prefix("weights", update.weights), **with_prefix("own", update.own)}


def update_from_tensors(header: UpdateHeader, tensors: Mapping[str, Tensor]) -> SiteUpdate:
    """Undo `update_tensors`."""
    return SiteUpdate(header=header, weights=under("weights", tensors), own=under("own", tensors))


def update_parts(update: SiteUpdate) -> Iterator[UpdatePart]:
    """Cut an update into parts."""
    yield UpdatePart(header=canonical_json(update.header))
    if update.seal is not None:
        yield UpdatePart(seal=_seal_message(update.seal))
    for chunk in packed_pieces(update_tensors(update), size=CHUNK_BYTES):
        yield UpdatePart(chunk=chunk)


def failure_part(error: BaseException) -> UpdatePart:
    """Say that there is no update: by the error's name, since its text may hold a patient's."""
    return UpdatePart(failure=Failure(name=type(error).__name__))


def update_from_parts(parts: Iterable[UpdatePart]) -> SiteUpdate | str:
    """Put an update together, or give the name of the error that came instead."""
    rest = iter(parts)
    first = next(rest, None)
    if first is not None and first.WhichOneof("part") == "failure":
        return str(first.failure.name)[:64]
    header, seal, content = _join([] if first is None else _chain(first, rest), "update")
    update = update_from_tensors(parse(UpdateHeader, header, name="update"), unpack(content))
    return replace(update, seal=seal)


def _seal_message(seal: Seal) -> site_pb2.Seal:
    return site_pb2.Seal(header=seal.header, signature=seal.signature)


def _chain(first: UpdatePart, rest: Iterator[UpdatePart]) -> Iterator[UpdatePart]:
    yield first
    yield from rest


def _join(
    parts: Iterable[PlanPart] | Iterable[UpdatePart], what: str
) -> tuple[bytes, Seal | None, bytes]:
    header: bytes | None = None
    seal: Seal | None = None
    chunks: list[bytes] = []
    size = 0
    for part in parts:
        kind = part.WhichOneof("part")
        if kind == "header" and header is None and not chunks:
            header = part.header
        elif kind == "seal" and header is not None and seal is None and not chunks:
            seal = Seal(header=part.seal.header, signature=part.seal.signature)
        elif kind == "chunk" and header is not None:
            if chunk := part.chunk:  # endless empty ones must not fill the list
                chunks.append(chunk)
                size += len(chunk)
        else:
            raise BadMessage(
                Problem(
                    name=what,
                    value=f"part {kind}",
                    wanted="one header, at most one seal, then chunks",
                )
            )
        if size > LARGEST_BYTES:
            raise BadMessage(
                Problem(name=what, value="more", wanted=f"at most {LARGEST_BYTES} bytes")
            )
    if header is None:
        raise BadMessage(Problem(name=what, value="no header", wanted="one header, then chunks"))
    return header, seal, b"".join(chunks)
