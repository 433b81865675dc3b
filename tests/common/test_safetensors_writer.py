"""The fast writer beside the format's own: the same bytes for whatever tensors."""

import json

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medsynth_common.errors import BadMessage
from medsynth_common.safetensors_writer import TYPE_OF, pieces


def reference(tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> bytes:
    plain = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return bytes(safetensors.torch.save(plain, metadata=metadata))


@st.composite
def tensor(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    kind = draw(st.sampled_from(list(TYPE_OF.values())))
    draws = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    made = (torch.randn(shape, generator=draws) * 5).to(kind)
    return made.transpose(0, -1) if draw(st.booleans()) and shape else made


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__"
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(names, tensor(), max_size=8), st.sampled_from([None, {"of": "it"}]))
def test_the_bytes_are_those_of_safetensors(
    tensors: dict[str, Tensor], metadata: dict[str, str] | None
) -> None:
    assert b"".join(pieces(tensors, metadata)) == reference(tensors, metadata)


def test_several_facts_are_kept() -> None:
    facts = {"plan_digest": "a" * 64, "header": json.dumps({"run": "r"})}
    written = b"".join(pieces({"a": torch.ones(2)}, facts))
    header = json.loads(written[8 : 8 + int.from_bytes(written[:8], "little")])
    assert header["__metadata__"] == facts


def test_a_type_that_is_not_known_is_told() -> None:
    with pytest.raises(BadMessage, match="complex64"):
        pieces({"a": torch.ones(2, dtype=torch.complex64)})
