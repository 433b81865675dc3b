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
    empty = Keeping(tmp_path / "state.safetensors").load()
    assert (empty.plan_digest, empty.header, empty.update, empty.state) == ("", None, {}, {})


def test_what_was_stored_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    Keeping(path).store(KEPT)
    found = Keeping(path).load()
    assert (found.plan_digest, found.header) == (KEPT.plan_digest, HEADER)
    assert torch.equal(found.update["weights.a"], KEPT.update["weights.a"])
    assert found.state.keys() == KEPT.state.keys()
    assert int(found.state["head.step"]) == 3


def test_an_answer_to_another_plan_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    Keeping(path).store(KEPT)
    other, same = Keeping(path).load("b" * 64), Keeping(path).load(KEPT.plan_digest)
    assert (other.plan_digest, other.update) == (KEPT.plan_digest, {})
    assert other.state.keys() == same.state.keys() == KEPT.state.keys()
    assert same.update.keys() == KEPT.update.keys()


def test_a_store_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.safetensors"
    Keeping(path).store(KEPT)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeping_file, "write_pieces", full)
    with pytest.raises(OSError, match="No space"):
        Keeping(path).store(Kept(plan_digest="b" * 64, header=HEADER))
    assert path.read_bytes() == before


@pytest.mark.parametrize("spoil", ["empty", "cut", "garbage", "no metadata", "bad header"])
def test_a_damaged_memory_is_told_with_its_mend(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "state.safetensors"
    Keeping(path).store(KEPT)
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
    with pytest.raises(BadData, match="remove it to start this site afresh") as caught:
        Keeping(path).load()
    assert isinstance(caught.value, BadInput)
