"""The same plans and updates as Flower records."""

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth_common.errors import BadMessage
from medsynth_common.plan import Stage
from medsynth_common.update import SiteUpdate, UpdateHeader, check_tensors
from medsynth_common.wire.records import (
    arrays,
    packed,
    plan_from_records,
    plan_to_records,
    tensors,
    update_from_records,
    update_to_records,
)
from tiny import plan

UPDATE = SiteUpdate(
    header=UpdateHeader(
        run="run-1",
        site="site-a",
        stage=Stage.SEGMENT,
        round=1,
        plan_digest="a" * 64,
        declared_patients=20,
        delta=1e-5,
    ),
    weights={"segmenter.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)},
    own={},
)


def test_a_plan_survives_as_records() -> None:
    first = plan(Stage.SEGMENT)
    again = plan_from_records(plan_to_records(first))
    assert again.header == first.header
    assert again.digest() == first.digest()


def test_an_update_survives_as_records() -> None:
    again = update_from_records(update_to_records(UPDATE))
    assert again.header == UPDATE.header
    assert again.own == {}
    assert again.weights.keys() == UPDATE.weights.keys()
    assert torch.equal(again.weights["segmenter.weight"], UPDATE.weights["segmenter.weight"])
    assert again.weights["steps"].dtype == torch.int64


def test_what_was_taken_out_is_a_copy() -> None:
    record = arrays(UPDATE.weights)
    tensors(record)["segmenter.weight"].zero_()
    assert torch.equal(tensors(record)["segmenter.weight"], UPDATE.weights["segmenter.weight"])


def test_records_that_hold_no_plan_are_told() -> None:
    whole = plan_to_records(plan(Stage.SEGMENT))
    weights = whole.array_records["weights"]
    for broken in (
        RecordDict(),
        RecordDict({"weights": weights}),
        RecordDict({"weights": weights, "plan": ConfigRecord()}),
        RecordDict({"weights": weights, "plan": ConfigRecord({"header": "text"})}),
        RecordDict({"weights": weights, "plan": ConfigRecord({"header": b"{}"})}),
        RecordDict({"plan": whole.config_records["plan"]}),
    ):
        with pytest.raises(BadMessage):
            plan_from_records(broken)


def test_records_that_hold_no_update_are_told() -> None:
    for name in ("weights", "update"):
        records = update_to_records(UPDATE)
        del records[name]
        with pytest.raises(BadMessage):
            update_from_records(records)


def test_a_type_that_numpy_has_not_is_told() -> None:
    """A site that sends it must not end a run."""
    odd = {"segmenter.weight": torch.zeros(2, dtype=torch.bfloat16)}
    travelled = update_from_records(update_to_records(replace(UPDATE, weights=odd)))
    with pytest.raises(BadMessage, match=r"got torch\.bfloat16"):  # as every update is checked
        check_tensors(travelled.weights, {"segmenter.weight": torch.zeros(2)})
    with pytest.raises(BadMessage, match=r"torch\.bfloat16, wanted types that numpy has"):
        arrays(odd)


def record_of(content: bytes, stype: str = "numpy.ndarray") -> ArrayRecord:
    return ArrayRecord({"a": Array(dtype="float32", shape=(2,), stype=stype, data=content)})


def numpy_bytes(value: np.ndarray) -> bytes:
    stream = BytesIO()
    np.save(stream, value, allow_pickle=True)
    return stream.getvalue()


GOOD = numpy_bytes(np.zeros(2, dtype=np.float32))


def claiming(shape: str) -> bytes:
    """A numpy file whose head claims another shape than it holds."""
    wanted = f"(2,), }}{' ' * len(shape)}"
    return GOOD.replace(wanted.encode(), f"{shape}, }}    ".encode()[: len(wanted)])


@pytest.mark.parametrize(
    ("content", "stype"),
    [
        (b"", "numpy.ndarray"),
        (b"PK\x03\x04rest of a zip file", "numpy.ndarray"),
        (b"patient anna", "numpy.ndarray"),
        (GOOD[:-1], "numpy.ndarray"),
        (GOOD[:20], "numpy.ndarray"),
        (GOOD, "pickle"),
        (claiming("(8000000000000,)"), "numpy.ndarray"),
        (numpy_bytes(np.array([object()])), "numpy.ndarray"),
        (numpy_bytes(np.array(["anna"])), "numpy.ndarray"),
    ],
)
def test_arrays_that_are_none_are_told(content: bytes, stype: str) -> None:
    with pytest.raises(BadMessage, match="numeric arrays"):
        tensors(record_of(content, stype))


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, len(GOOD)),
    st.integers(0, 8),
    st.binary(max_size=8) | st.sampled_from([b"9" * 16, b"(", b"'", b"-1", b"None"]),
)
def test_mutated_arrays_are_tensors_or_a_bad_message(start: int, cut: int, put: bytes) -> None:
    try:
        found = tensors(record_of(GOOD[:start] + put + GOOD[start + cut :]))
    except BadMessage:
        return
    assert found.keys() == {"a"}


def test_arrays_that_share_their_bytes_come_to_no_more_than_the_plans_form() -> None:
    """A hundred names of one piece travel as one."""
    piece = Array(dtype="uint8", shape=(1000,), stype="safetensors", data=b"x" * 1000)
    records = update_to_records(UPDATE)
    records["weights"] = ArrayRecord({f"safetensors-{n}": piece for n in range(100)})
    seen: list[int] = []

    def read(pieces: Iterator[bytes | memoryview]) -> dict[str, torch.Tensor]:
        seen.extend(len(piece) for piece in pieces)
        return {}

    with pytest.raises(BadMessage, match="more bytes"):
        update_from_records(records, read=read, most=5000)
    records["own"] = records["weights"]
    records["weights"] = update_to_records(UPDATE)["weights"]
    with pytest.raises(BadMessage, match="more bytes"):
        update_from_records(records, most=5000)
    assert update_from_records(update_to_records(UPDATE), most=5000).digest() == UPDATE.digest()


def test_bytes_under_another_name_are_no_weights() -> None:
    records = update_to_records(UPDATE)
    content = records.array_records["weights"]["safetensors-0"].data
    stranger = Array(dtype="uint8", shape=(1,), stype="numpy.ndarray", data=content)
    records["weights"] = ArrayRecord({"safetensors-0": stranger})
    with pytest.raises(BadMessage, match="bytes of safetensors"):
        update_from_records(records)


def test_plans_may_share_their_packed_weights() -> None:
    first = plan(Stage.SEGMENT)
    again = plan_from_records(plan_to_records(first, weights=packed(first.weights)))
    assert again.digest() == first.digest()
