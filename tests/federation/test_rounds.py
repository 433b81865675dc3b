"""Whole rounds in one process: what a federation learns, records and remembers."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from benchmarks.crash_matrix import uncharged
from torch import Tensor

from federation.in_process import InProcessGrid, SmallFederation
from medsynth_client.audit import AuditLog
from medsynth_client.privacy_command import status
from medsynth_common.plan import RoundPlan, Stage
from medsynth_common.style import Style
from medsynth_common.tensors import under
from medsynth_server.config import load_config
from medsynth_server.record import NoteEvent, RoundEvent
from tiny_run import public_model, same_tensors, tiny_config

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"
ROUNDS = [
    *((Stage.MOMENTS, 1), (Stage.MOMENTS, 2)),
    *((Stage.SEGMENT, 1), (Stage.SEGMENT, 2), (Stage.SEGMENT, 3)),
    *((Stage.ADVERSARIAL, 1), (Stage.ADVERSARIAL, 2)),
]


def _rounds(federation: SmallFederation) -> list[tuple[Stage, int]]:
    return [(e.stage, e.round) for e in federation.events if isinstance(e, RoundEvent)]


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[SmallFederation, Mapping[str, Tensor]]:
    federation = SmallFederation(tmp_path_factory.mktemp("run"), tiny_config())
    return federation, federation.train()


def test_every_stage_runs_and_every_site_answers_every_round(
    finished: tuple[SmallFederation, Mapping[str, Tensor]],
) -> None:
    federation, tensors = finished
    assert _rounds(federation) == ROUNDS
    for event in federation.events:
        assert isinstance(event, RoundEvent)
        asked = (event.stage, event.round) != (Stage.SEGMENT, 1)
        assert event.sites == (("site-1", "site-2") if asked else ())
        assert event.refused == {}
    for part in ("generator", "segmenter"):
        assert not same_tensors(under(part, tensors), under(part, public_model().tensors))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_each_site_has_a_style_of_its_own_and_the_critic_stays_public(
    finished: tuple[SmallFederation, Mapping[str, Tensor]],
) -> None:
    _, tensors = finished
    one, other = (Style.from_tensors(under(f"style.site-{n}", tensors)) for n in (1, 2))
    for part, tensor in one.tensors().items():
        assert not torch.equal(tensor, other.tensors()[part]), part
    assert same_tensors(under("critic", tensors), under("critic", public_model().tensors))


def test_everything_released_was_charged_and_nothing_else_left(
    finished: tuple[SmallFederation, Mapping[str, Tensor]],
) -> None:
    federation, _ = finished
    for site in federation.sites:
        assert uncharged(site) == []
        told = AuditLog(site / "audit.jsonl").read()
        assert [(e.stage, e.round) for e in told] == [r for r in ROUNDS if r != (Stage.SEGMENT, 1)]
        spent = status(site)["epsilon"]
        assert 0.95 * 8.0 < spent <= 8.0


def test_the_same_seed_gives_the_same_weights(
    finished: tuple[SmallFederation, Mapping[str, Tensor]], tmp_path: Path
) -> None:
    assert same_tensors(finished[1], SmallFederation(tmp_path, tiny_config()).train())


def test_another_seed_gives_other_noise_from_the_same_start(tmp_path: Path) -> None:
    first = {"adversarial": {"enabled": False}, "segment": {"enabled": False}}
    trained = {
        seed: SmallFederation(tmp_path / str(seed), tiny_config({**first, "seed": seed})).train()
        for seed in (1, 2)
    }
    assert not torch.equal(trained[1]["style.site-1.offset"], trained[2]["style.site-1.offset"])


def test_without_a_seed_no_noise_comes_twice(tmp_path: Path) -> None:
    changes = {"adversarial": {"enabled": False}, "segment": {"enabled": False}, "seed": None}
    one, other = (
        SmallFederation(tmp_path / name, tiny_config(changes)).train() for name in ("a", "b")
    )
    for site in ("site-1", "site-2"):
        offsets = one[f"style.{site}.offset"], other[f"style.{site}.offset"]
        assert not torch.equal(*offsets)


class Crash(Exception):
    """Stands for the coordinator's end."""


@pytest.mark.parametrize(
    ("at", "when"),
    [
        ((Stage.MOMENTS, 1, "site-1"), "after"),
        ((Stage.SEGMENT, 3, "site-2"), "before"),
        ((Stage.ADVERSARIAL, 2, "site-2"), "after"),
    ],
)
def test_a_run_that_stopped_between_sites_goes_on_as_if_it_had_not(
    finished: tuple[SmallFederation, Mapping[str, Tensor]],
    tmp_path: Path,
    at: tuple[Stage, int, str],
    when: str,
) -> None:
    """Before: the site was not asked yet. After: it answered, and the answer was lost."""

    def crash(plan: RoundPlan) -> None:
        if (plan.header.stage, plan.header.round, plan.header.site) == at:
            raise Crash

    federation = SmallFederation(tmp_path, tiny_config())
    federation.begin()
    broken = InProcessGrid(federation.sites)
    setattr(broken, when, crash)
    with pytest.raises(Crash):
        federation.train(broken)
    assert same_tensors(finished[1], federation.train())
    assert _rounds(federation) == ROUNDS
    for site in federation.sites:
        assert uncharged(site) == []
    # A site that has answered gives that answer again: nothing is charged twice.
    assert status(federation.sites[0]) == status(finished[0].sites[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"adversarial": {"critic": "head"}, "crop": [16] * 3},
        {"adversarial": {"critic": "patchgan", "paired_weight": 1.0}, "crop": [16] * 3},
        {
            "privacy": "off",
            "federation": {"strategy": "fedadam"},
            "segment": {"proximal": 1.0, "sampling_rate": 0.5, "free_steps": 1},
        },
    ],
)
def test_the_other_ways_to_train_run_through(tmp_path: Path, changes: dict[str, object]) -> None:
    federation = SmallFederation(tmp_path, tiny_config(changes))
    tensors = federation.train()
    assert _rounds(federation) == ROUNDS
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    for site in federation.sites:
        assert uncharged(site) == []


@pytest.mark.parametrize("privacy", ["off", {"epsilon": 8.0}])
def test_a_small_copy_of_the_seed_paper_s_set_up_runs_through(
    tmp_path: Path, privacy: object
) -> None:
    """With an odd third side, as 54 is to its networks; under privacy, both halves are charged."""
    paper = tomllib.loads((EXAMPLES / "shin2018.toml").read_text())
    settings = {**paper["adversarial"], "rounds": 2, "steps": 2, "generator_steps": 2}
    settings |= {"sampling_rate": 0.5, "paired_sampling_rate": 0.5, "label_bank": 2}
    small = {"grid": [32, 32, 25], "crop": [32, 32, 25], "privacy": privacy, "preset": "cpu"}
    federation = SmallFederation(
        tmp_path, tiny_config({**small, "segment": paper["segment"], "adversarial": settings})
    )
    tensors = federation.train()
    assert _rounds(federation) == [one for one in ROUNDS if one[0] is not Stage.SEGMENT]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
    assert not same_tensors(under("generator", tensors), under("generator", public_model().tensors))
    spent = [status(site) for site in federation.sites]
    for one in spent:
        names = {m["name"] for project in one["projects"] for m in project["mechanisms"]}
        assert names == {"level", "spread", "critic", "paired"}
        assert (one["epsilon"] is None) == (privacy == "off")
        assert one["epsilon"] is None or one["epsilon"] <= 8.0


def test_the_seed_paper_s_settings_are_at_its_size() -> None:
    config = load_config(EXAMPLES / "shin2018.toml", {})
    assert config.grid == config.crop == (128, 128, 54)
    assert config.adversarial.plays_on_pairs
    load_config(EXAMPLES / "shin2018.toml", {"grid": [128] * 3, "crop": [128] * 3})
    load_config(EXAMPLES / "real_pairs.toml", {})


def test_a_spent_budget_ends_each_stage_early_and_what_was_learnt_stays(tmp_path: Path) -> None:
    federation = SmallFederation(tmp_path, tiny_config({"privacy": {"cap": 6.0}}))
    tensors = federation.train()
    told = _rounds(federation)
    assert [r for r in ROUNDS if r in told] == told
    assert ROUNDS[:3] == told[:3]
    assert (Stage.SEGMENT, 3) not in told
    assert (Stage.ADVERSARIAL, 2) not in told
    # The average over the rounds that there were has taken the generator's place.
    assert same_tensors(under("generator", tensors), under("average", tensors))
    notes = [event.text for event in federation.events if isinstance(event, NoteEvent)]
    assert any("budget is spent" in note for note in notes)
    for site in federation.sites:
        assert status(site)["epsilon"] <= 6.0
        assert uncharged(site) == []
    assert "style.site-1.offset" in tensors
