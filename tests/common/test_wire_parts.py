"""Plans and updates survive the wire; whatever else comes over it is a BadMessage, never more."""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth_common.errors import BadMessage
from medsynth_common.plan import (
    LARGEST_HEADER,
    MOST_PROBLEMS,
    PlanHeader,
    RoundPlan,
    Stage,
    canonical_json,
    parse,
)
from medsynth_common.tensors import pack, tensors_digest, unpack
from medsynth_common.update import SiteUpdate, UpdateHeader
from medsynth_common.wire import parts as parts_file
from medsynth_common.wire.parts import (
    failure_part,
    plan_from_parts,
    plan_parts,
    update_from_parts,
    update_parts,
    update_tensors,
)
from medsynth_common.wire.site_pb2 import PlanPart, UpdatePart
from tiny import header, plan

UPDATE = SiteUpdate(
    header=UpdateHeader(
        run="run-1",
        site="site-a",
        stage=Stage.SEGMENT,
        round=1,
        plan_digest="a" * 64,
        declared_patients=20,
        epsilon=1.25,
        cap=8.0,
        delta=1e-5,
    ),
    weights={"segmenter.weight": torch.arange(6.0).reshape(2, 3)},
    own={"style.code": torch.ones(4)},
)
WEIGHTS = {"head.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}
PLAN = RoundPlan(header=header(), weights=WEIGHTS)


def sent(update: SiteUpdate) -> list[UpdatePart]:
    return list(update_parts(update))


def test_a_plan_survives_the_wire() -> None:
    first = plan(Stage.ADVERSARIAL)
    again = plan_from_parts(plan_parts(first))
    assert again.header == first.header
    assert again.digest() == first.digest()


def test_an_update_survives_the_wire() -> None:
    again = update_from_parts(sent(UPDATE))
    assert isinstance(again, SiteUpdate)
    assert again.header == UPDATE.header
    for name, tensor in update_tensors(UPDATE).items():
        assert torch.equal(update_tensors(again)[name], tensor)
    assert again.own.keys() == {"style.code"}


def test_a_large_plan_travels_in_bounded_chunks() -> None:
    large = RoundPlan(header=header(), weights={"large": torch.arange(600_000.0)})
    cut = list(plan_parts(large))
    assert [len(part.chunk) for part in cut[1:]][:2] == [parts_file.CHUNK_BYTES] * 2
    assert all(part.ByteSize() < 4 << 20 for part in cut)  # what a gRPC message may hold here
    assert torch.equal(plan_from_parts(cut).weights["large"], large.weights["large"])


def test_a_large_update_travels_in_bounded_chunks_of_the_bytes_it_packs_to() -> None:
    large = replace(UPDATE, weights={"segmenter.weight": torch.arange(600_000.0)})
    chunks = [part.chunk for part in sent(large)[1:]]
    assert [len(chunk) for chunk in chunks[:-1]] == [parts_file.CHUNK_BYTES] * 2
    assert b"".join(chunks) == pack(update_tensors(large))


def test_an_error_travels_as_its_name_alone() -> None:
    part = failure_part(ValueError("patient anna, born 1970"))
    assert part.SerializeToString() == UpdatePart(failure=part.failure).SerializeToString()
    assert b"anna" not in part.SerializeToString()
    assert update_from_parts([part]) == "ValueError"
    long = UpdatePart(failure={"name": "E" * 1000})
    assert update_from_parts([long]) == "E" * 64


HEADER, CHUNK = PlanPart(header=canonical_json(PLAN.header)), PlanPart(chunk=pack(WEIGHTS))


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [CHUNK],
        [HEADER],
        [PlanPart()],
        [CHUNK, HEADER],
        [HEADER, HEADER, CHUNK],
        [HEADER, CHUNK, HEADER],
        [HEADER, CHUNK, PlanPart()],
        [HEADER, CHUNK, CHUNK],
        [PlanPart(header=b"{}"), CHUNK],
        [HEADER, PlanPart(chunk=b"weights")],
    ],
)
def test_parts_that_are_no_plan_are_told(parts: list[PlanPart]) -> None:
    with pytest.raises(BadMessage):
        plan_from_parts(parts)


def test_parts_that_are_no_update_are_told() -> None:
    head, chunk = sent(UPDATE)
    failure = failure_part(ValueError())
    for parts in (
        [],
        [head],
        [chunk],
        [head, failure],
        [head, chunk, failure],
        [head, chunk, head],
    ):
        with pytest.raises(BadMessage):
            update_from_parts(parts)


def test_a_peer_that_sends_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_file, "LARGEST_BYTES", 1000)
    taken = 0

    def endless() -> Iterable[PlanPart]:
        nonlocal taken
        yield HEADER
        while True:
            taken += 1
            yield PlanPart(chunk=bytes(300))

    with pytest.raises(BadMessage, match="at most 1000 bytes"):
        plan_from_parts(endless())
    assert taken == 4


def mutated(whole: bytes) -> st.SearchStrategy[bytes]:
    """`whole` with a few bytes overwritten, put in or cut out."""
    edit = st.tuples(
        st.integers(0, len(whole)),
        st.integers(0, 8),
        st.binary(max_size=8) | st.sampled_from([b"0", b"-1", b"9" * 20, b"null", b'"', b"NaN"]),
    )

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        content = whole
        for start, cut, put in edits:
            content = content[:start] + put + content[start + cut :]
        return content

    return st.lists(edit, min_size=1, max_size=4).map(apply)


HEADERS = canonical_json(header(Stage.ADVERSARIAL))
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(mutated(HEADERS) | st.binary(max_size=50))
def test_a_mutated_header_is_a_plan_or_a_bad_message(content: bytes) -> None:
    try:
        parsed = parse(PlanHeader, content, name="plan")
    except BadMessage:
        return
    assert parse(PlanHeader, canonical_json(parsed), name="plan") == parsed


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(PlanHeader.model_fields)), JSON)
def test_a_field_of_any_value_is_a_plan_or_a_bad_message(field: str, value: Any) -> None:
    content = json.dumps(json.loads(HEADERS) | {field: value})
    try:
        parsed = parse(PlanHeader, content, name="plan")
    except BadMessage:
        return
    assert parse(PlanHeader, canonical_json(parsed), name="plan") == parsed


@settings(max_examples=300, deadline=None)
@given(mutated(pack(WEIGHTS)))
def test_mutated_weights_are_a_plan_or_a_bad_message(content: bytes) -> None:
    try:
        found = plan_from_parts([HEADER, PlanPart(chunk=content)])
    except BadMessage:
        return
    assert len(found.digest()) == 64  # whatever it is, the site can name it


@settings(max_examples=300, deadline=None)
@given(mutated(pack(WEIGHTS)) | st.binary(max_size=100))
def test_mutated_tensors_are_tensors_or_a_bad_message(content: bytes) -> None:
    try:
        found = unpack(content)
    except BadMessage:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
    assert len(tensors_digest(found)) == 32


ANY_PART = st.sampled_from([HEADER, CHUNK, PlanPart()]) | st.one_of(
    st.binary(max_size=40).map(lambda content: PlanPart(header=content)),
    st.binary(max_size=40).map(lambda content: PlanPart(chunk=content)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(ANY_PART, max_size=6))
def test_parts_in_any_order_are_the_plan_or_a_bad_message(parts: list[PlanPart]) -> None:
    try:
        found = plan_from_parts(parts)
    except BadMessage:
        return
    assert found.digest() == PLAN.digest()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(UpdateHeader.model_fields)), JSON)
def test_a_field_of_any_value_is_an_update_or_a_bad_message(field: str, value: Any) -> None:
    content = json.dumps(json.loads(canonical_json(UPDATE.header)) | {field: value})
    try:
        parsed = parse(UpdateHeader, content, name="update")
    except BadMessage:
        return
    assert parse(UpdateHeader, canonical_json(parsed), name="update") == parsed


def test_a_long_header_is_not_read_and_its_faults_are_not_all_told() -> None:
    many = json.dumps({f"key-{k}": 0 for k in range(3000)})
    with pytest.raises(BadMessage) as caught:
        parse(PlanHeader, many, name="plan")
    assert len(caught.value.problems) == MOST_PROBLEMS
    with pytest.raises(BadMessage, match=f"at most {LARGEST_HEADER} bytes"):
        parse(PlanHeader, " " * LARGEST_HEADER + "{}", name="plan")


def test_a_name_cannot_begin_a_line_of_a_log() -> None:
    with pytest.raises(BadMessage) as caught:
        parse(UpdateHeader, json.dumps({"x\n2026-01-01 all is well\x1b[2J": 1}), name="update")
    assert "\\n2026-01-01 all is well\\x1b[2J" in str(caught.value)
    assert "\n2026" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_bytes_on_the_socket_are_an_answer_or_a_bad_message(data: st.DataObject) -> None:
    try:
        parts = [
            UpdatePart.FromString(data.draw(mutated(part.SerializeToString())))
            for part in sent(UPDATE)
        ]
    except DecodeError:
        return  # gRPC ends the call
    try:
        found = update_from_parts(parts)
    except BadMessage:
        return
    assert isinstance(found, SiteUpdate | str)
