from pathlib import Path

import pytest
import torch

from medsynth_common.errors import BadData
from medsynth_server.checkpoint import Checkpoint, Done
from tiny_run import public_model, same_tensors


def test_model_and_place_come_back_as_they_were(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors")
    model = public_model().updated({"style.site-1.code": torch.arange(4.0).flip(0)})
    done = Done().with_round("moments", 2).with_round("segment", 1)
    checkpoint.store(model, done)
    stored, place = checkpoint.load(public_model())
    assert same_tensors(stored.tensors, model.tensors)
    assert place == done
    assert (place.next_round("segment"), place.next_round("adversarial")) == (2, 1)
    assert place.covers("moments", 2)
    assert not place.covers("moments", 3)


def test_before_the_first_round_there_is_the_start_and_nothing_done(tmp_path: Path) -> None:
    model, done = Checkpoint(tmp_path / "none").load(public_model())
    assert model is public_model()
    assert done == Done()


@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x10" + b"\0" * 7 + b'{"__metadata__":'])
def test_an_unreadable_checkpoint_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadData, match="unreadable checkpoint"):
        Checkpoint(path).load(public_model())


def test_a_cut_checkpoint_is_told(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "c.safetensors")
    checkpoint.store(public_model(), Done())
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-1])
    with pytest.raises(BadData, match="unreadable checkpoint"):
        checkpoint.load(public_model())
