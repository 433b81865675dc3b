from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from medsynth_client import keeping as keeping_file
from medsynth_client.keeping import Keeping, Kept
from medsynth_common.errors import BadData, BadInput
from medsynth_common.plan import Stage
from medsynth_common.update import UpdateHeader

HEADER = UpdateHeader(
    run="run-1",
    site="site-a",
    stage=Stage.SEGMENT,
    round=1,
    plan_digest="a" * 64,
    declared_patients=20,
    delta=1e-5,
)
KEPT = Kept(
    plan_digest="a" * 64,
    header=HEADER,
    update={"weights.a": torch.arange(6.0).reshape(2, 3).T},
    state={"head.weight": torch.ones(2), "head.step": torch.tensor(3)},
)


def test_a_new_site_remembers_nothing(tmp_path: Path) -> None:
    empty = Keeping(tmp_path).load("run-1", KEPT.plan_digest)
    assert (empty.plan_digest, empty.header, empty.update, empty.state) == ("", None, {}, {})


def test_what_was_stored_is_remembered(tmp_path: Path) -> None:
    Keeping(tmp_path).store(KEPT)
    found = Keeping(tmp_path).load("run-1", KEPT.plan_digest)
    assert (found.plan_digest, found.header) == (KEPT.plan_digest, HEADER)
    assert torch.equal(found.update["weights.a"], KEPT.update["weights.a"])
    assert found.state.keys() == KEPT.state.keys()
    assert int(found.state["head.step"]) == 3


def test_an_answer_to_another_plan_is_not_read(tmp_path: Path) -> None:
    memory = Keeping(tmp_path)
    memory.store(KEPT)
    other, same = memory.load("run-1", "b" * 64), memory.load("run-1", KEPT.plan_digest)
    assert (other.plan_digest, other.update) == (KEPT.plan_digest, {})
    assert other.state.keys() == same.state.keys() == KEPT.state.keys()
    assert same.update.keys() == KEPT.update.keys()


def test_every_run_has_a_memory_of_its_own(tmp_path: Path) -> None:
    memory = Keeping(tmp_path)
    memory.store(KEPT)
    assert memory.load("run-2", KEPT.plan_digest) == Kept()
    header = HEADER.model_copy(update={"run": "run-2"})
    memory.store(replace(KEPT, header=header, state={}))
    assert memory.load("run-1", KEPT.plan_digest).state.keys() == KEPT.state.keys()
    assert memory.load("run-2", KEPT.plan_digest).state == {}


def test_a_run_s_memory_is_not_that_of_another_whose_file_has_its_name(tmp_path: Path) -> None:
    """As on a disk that tells no small letters from large ones."""
    memory = Keeping(tmp_path)
    memory.store(KEPT)
    (tmp_path / "run-1.safetensors").rename(tmp_path / "Run-1.safetensors")
    assert memory.load("Run-1", KEPT.plan_digest) == Kept()


def test_a_store_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run-1.safetensors"
    Keeping(tmp_path).store(KEPT)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeping_file, "write_pieces", full)
    with pytest.raises(OSError, match="No space"):
        Keeping(tmp_path).store(Kept(plan_digest="b" * 64, header=HEADER))
    assert path.read_bytes() == before


@pytest.mark.parametrize("spoil", ["empty", "cut", "garbage", "no metadata", "bad header"])
def test_a_damaged_memory_is_told_with_its_mend(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "run-1.safetensors"
    Keeping(tmp_path).store(KEPT)
    whole = path.read_bytes()
    tensors = {"update.a": torch.zeros(1)}
    path.write_bytes(
        {
            "empty": b"",
            "cut": whole[:-3],
            "garbage": b"patient" * 30,
            "no metadata": safetensors.torch.save(tensors),
            "bad header": safetensors.torch.save(tensors, {"plan_digest": "a", "header": "{}"}),
        }[spoil]
    )
    with pytest.raises(BadData, match="remove it to start this run afresh") as caught:
        Keeping(tmp_path).load("run-1", KEPT.plan_digest)
    assert isinstance(caught.value, BadInput)
