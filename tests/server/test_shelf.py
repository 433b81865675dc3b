"""Tensors in a file: the same as in memory, for whoever looks and whoever combines."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medsynth_common.errors import BadMessage
from medsynth_common.tensors import pack, packed_pieces, tensors_digest, unpack
from medsynth_server import strategies
from medsynth_server.flower import start_identity
from medsynth_server.shelf import Draft, Shelf, Shelves
from medsynth_server.strategies import STRATEGIES, Answer, Combiner
from server.test_strategies import SIZES, _answers
from tiny_run import same_tensors

TENSORS = {
    "a.weight": torch.arange(24.0).reshape(2, 3, 4),
    "b": torch.tensor(7.5),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "steps": torch.tensor([3, 4]),
    "none": torch.empty(0, 2),
}


def _shelf(tensors: Mapping[str, Tensor], folder: Path, *, size: int = 64) -> Shelf:
    return Shelf.arriving(packed_pieces(tensors, size=size), folder=folder)


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_pieces_are_whole_safetensors_and_no_longer_than_asked(size: int) -> None:
    pieces = list(packed_pieces(TENSORS, size=size))
    assert all(len(piece) == size for piece in pieces[:-1])
    assert len(pieces[-1]) <= size
    assert tensors_digest(unpack(b"".join(pieces))) == tensors_digest(TENSORS)


def test_a_type_that_has_no_code_is_told() -> None:
    with pytest.raises(BadMessage, match="complex64"):
        list(packed_pieces({"c": torch.zeros(1, dtype=torch.complex64)}, size=64))


def test_what_lies_on_a_shelf_is_what_was_put_there_and_no_file_is_left(tmp_path: Path) -> None:
    shelf = _shelf(TENSORS, tmp_path)
    assert not list(tmp_path.iterdir())
    assert set(shelf) == set(TENSORS)
    assert tensors_digest(shelf) == tensors_digest(TENSORS)
    assert shelf.piece("a.weight", 5, 9).tolist() == [5.0, 6.0, 7.0, 8.0]
    assert shelf.piece("a.weight", 20, 99).tolist() == [20.0, 21.0, 22.0, 23.0]


def test_a_shelf_gives_its_file_back(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    shelf = _shelf(TENSORS, tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del shelf
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_answers_share_one_file_that_goes_with_the_last(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    shelves = Shelves(tmp_path / "made")
    assert list(tmp_path.iterdir()) == []
    answers = [{name: tensor + n for name, tensor in TENSORS.items()} for n in range(5)]
    put = [shelves.put(answer) for answer in answers]
    assert list((tmp_path / "made").iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before + 1
    for shelf, answer in zip(put, answers, strict=True):
        assert tensors_digest(shelf) == tensors_digest(answer)
    del shelves, shelf, put[:4]
    assert tensors_digest(put[0]) == tensors_digest(answers[4])
    del put
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("content", [b"", b"anna", pack(TENSORS)[:-1], pack(TENSORS) + b"x"])
def test_what_is_no_safetensors_is_told(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadMessage, match="safetensors"):
        Shelf.arriving(iter([content]), folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize(("piece", "room"), [(3, 1 << 20), (1 << 20, 3 * len(SIZES)), (9, 1)])
def test_answers_on_disk_and_in_pieces_combine_as_whole_ones_in_memory(
    name: str, piece: int, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_identity(run_id=1)
    draw = torch.Generator().manual_seed(1)
    shapes = {"segmenter.a": (5, 7), "segmenter.b": (4,), "segmenter.c": ()}
    many = [{k: torch.randn(s, generator=draw) for k, s in shapes.items()} for _ in SIZES]
    current = {k: torch.randn(s, generator=draw) for k, s in shapes.items()}
    whole = _answers(many)
    shelved = [
        Answer(update=replace(one.update, weights=_shelf(one.update.weights, tmp_path)))
        for one in whole
    ]
    wanted, memory = Combiner(name).combine(current, whole, round=1, memory={})
    wanted, memory = Combiner(name).combine(wanted, whole, round=2, memory=memory)
    monkeypatch.setattr(strategies, "_PIECE", piece)
    monkeypatch.setattr(strategies, "_ROOM", room)
    found, kept = Combiner(name).combine(current, shelved, round=1, memory={})
    found, kept = Combiner(name).combine(found, shelved, round=2, memory=kept)
    assert same_tensors(found, wanted)
    assert same_tensors(kept, memory)


def test_a_draft_becomes_tensors_and_its_file_goes_with_them(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    draft = Draft(TENSORS, folder=tmp_path)
    for name, tensor in TENSORS.items():
        flat = tensor.view(-1)
        for start in range(0, tensor.numel(), 5):
            draft.put(name, start, flat[start : start + 5].double())
    made = draft.tensors()
    assert tensors_digest(made) == tensors_digest(TENSORS)
    assert list(tmp_path.iterdir()) == []
    made["a.weight"].add_(1.0)  # a tensor like any other, and nobody else's
    assert torch.equal(made["a.weight"], TENSORS["a.weight"] + 1.0)
    del made, draft
    assert len(os.listdir("/proc/self/fd")) <= before


def _resident(field: str) -> int:
    """Bytes of this process, by kind: RssFile, or VmRSS of all."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def test_what_is_drafted_is_not_in_memory_until_it_is_looked_at(tmp_path: Path) -> None:
    size = 16 << 20
    draft = Draft({"w": torch.empty(size, device="meta")}, folder=tmp_path)
    before = _resident("VmRSS")
    for start in range(0, size, 1 << 18):
        draft.put("w", start, torch.ones(1 << 18))
    made = draft.tensors()
    assert _resident("VmRSS") - before < size  # of the 64 MB that it has: a quarter
    assert made["w"].sum().item() == size
    assert _resident("VmRSS") - before > 3 * size
