import json
import math
import struct

import pytest
import torch
from torch import Tensor, nn

from medsynth_common.errors import BadMessage
from medsynth_common.tensors import (
    HashedTensors,
    all_finite,
    pack,
    packs_to,
    state_of,
    tensors_digest,
    under,
    unpack,
    with_prefix,
)

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "turned": torch.arange(6.0).reshape(2, 3).T,
    "steps": torch.tensor(7),
    "labels": torch.tensor([1, 255], dtype=torch.uint8),
    "mask": torch.tensor([True, False]),
    "none": torch.zeros(0, 3),
}


def test_what_was_packed_is_unpacked() -> None:
    back = unpack(pack(TENSORS))
    assert back.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_the_same_tensors_are_the_same_bytes() -> None:
    again = {name: tensor.clone() for name, tensor in reversed(TENSORS.items())}
    assert pack(again) == pack(TENSORS)
    assert tensors_digest(again) == tensors_digest(TENSORS)
    assert pack({}) == pack({})
    assert unpack(pack({})) == {}


def test_tensors_that_share_memory_are_packed_apart() -> None:
    whole = torch.arange(6.0)
    back = unpack(pack({"whole": whole, "same": whole, "part": whole[2:4]}))
    assert torch.equal(back["same"], whole)
    assert back["part"].tolist() == [2, 3]


def test_a_hash_that_goes_on_from_the_last_is_the_same_hash() -> None:
    hashed = HashedTensors()
    for last in ("weight", "zero", "labels", "a"):
        changed = TENSORS | {last: torch.ones(3)}
        assert hashed.digest(changed) == hashed.digest(dict(changed)) == tensors_digest(changed)


def test_only_the_very_bytes_are_what_tensors_pack_to() -> None:
    content = pack(TENSORS)
    assert packs_to(TENSORS, content)
    assert packs_to({}, pack({}))
    for place in range(len(content)):
        spoilt = bytearray(content)
        spoilt[place] ^= 1
        assert not packs_to(TENSORS, bytes(spoilt))
        assert not packs_to(TENSORS, content[:place])
    assert not packs_to(TENSORS, content + b"\0")
    assert not packs_to(TENSORS | {"more": torch.zeros(0)}, content)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 40, 200, -1])
def test_a_cut_message_is_told(length: int) -> None:
    with pytest.raises(BadMessage, match="safetensors"):
        unpack(pack(TENSORS)[:length])


def file_of(entries: dict[str, object], data: bytes = b"") -> bytes:
    """Bytes that claim to be safetensors."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"patient anna" * 10,
        struct.pack("<Q", 2**63) + b"{}",
        file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, bytes(4)),
        file_of({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
        file_of({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        file_of({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        file_of({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}}),
        file_of({"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}),
        file_of({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, bytes(1)),
        file_of({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}, bytes(3)),
        file_of({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        pack(TENSORS) + b"more",
    ],
)
def test_what_is_no_safetensors_is_told(content: bytes) -> None:
    with pytest.raises(BadMessage, match=f"tensors: got {len(content)} bytes, wanted safetensors"):
        unpack(content)


def test_no_two_sets_of_tensors_share_a_digest_by_a_clever_name() -> None:
    pair = {"a": torch.tensor([0x41414141], dtype=torch.int32), "b": torch.zeros(1)}
    clever = "a|torch.int32|(1,)|AAAAb"
    assert tensors_digest(pair) != tensors_digest({clever: pair["b"]})


def test_prefixes_are_put_on_and_taken_off() -> None:
    inner = {"a": torch.zeros(1), "b.c": torch.ones(1)}
    outer = with_prefix("net", inner)
    assert outer.keys() == {"net.a", "net.b.c"}
    assert under("net", {**outer, "network.a": torch.zeros(1), "net": torch.zeros(1)}) == inner
    assert under("ne", outer) == {}


def test_a_module_s_state_is_a_copy() -> None:
    module = nn.BatchNorm1d(2)
    before: dict[str, Tensor] = state_of(module)
    assert "running_mean" in before
    with torch.no_grad():
        module.weight.add_(1)
    assert torch.equal(before["weight"], torch.ones(2))
    assert not before["weight"].requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_found(bad: float) -> None:
    tensor = torch.zeros(1000)
    assert all_finite(tensor)
    tensor[777] = bad
    assert not all_finite(tensor)
    assert not all_finite(torch.tensor(bad, dtype=torch.bfloat16))


def test_whole_numbers_and_nothing_are_finite() -> None:
    assert all_finite(torch.zeros(0, 3))
    assert all_finite(torch.tensor([True]))
