"""Figures about patients reach a coordinator as charged releases or not at all; none steers it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.app import Message, RecordDict

from federation.in_process import InProcessGrid, SmallFederation
from medsynth_client.privacy_command import status
from medsynth_client.site_record import read_site
from medsynth_common.plan import Stage
from medsynth_common.wire.records import plan_from_records
from medsynth_server.engines.by_messages import ByMessages
from medsynth_server.flower import reply
from medsynth_server.record import NoteEvent, RoundEvent
from tiny_run import same_tensors, tiny_config

MEASURED = {"metrics": {"enabled": True}, "adversarial": {"enabled": False}}
NAMES = [f"Dice at the sites, {region} tumour" for region in ("whole", "enhancing")]


def _rounds(federation: SmallFederation) -> list[RoundEvent]:
    return [event for event in federation.events if isinstance(event, RoundEvent)]


def test_dice_at_the_sites_is_asked_for_charged_and_recorded(tmp_path: Path) -> None:
    federation = SmallFederation(tmp_path, tiny_config(MEASURED))
    federation.train()
    *others, last = _rounds(federation)
    assert (last.stage, last.sites) == (Stage.METRICS, ("site-1", "site-2"))
    assert all(event.site_metrics == {} for event in others)
    assert set(NAMES) < set(last.site_metrics)
    for metric in last.site_metrics.values():
        assert (metric.value is None) == (metric.noise_sd is None)
    for site in federation.sites:
        [project] = status(site)["projects"]
        assert [m["name"] for m in project["mechanisms"]][-1] == "metrics"
        assert 0.95 * 8.0 < status(site)["epsilon"] <= 8.0


def test_without_privacy_the_figure_is_exact(tmp_path: Path) -> None:
    federation = SmallFederation(tmp_path, tiny_config({**MEASURED, "privacy": "off"}))
    federation.train()
    whole = _rounds(federation)[-1].site_metrics[NAMES[0]]
    assert whole.noise_sd == 0
    assert whole.value is not None
    assert 0 <= whole.value <= 1


def test_by_default_nothing_of_the_kind_is_asked_or_released(tmp_path: Path) -> None:
    asked: list[tuple[Stage, tuple[str, ...]]] = []
    federation = SmallFederation(tmp_path, tiny_config())
    federation.begin()
    grid = InProcessGrid(
        federation.sites,
        before=lambda plan: asked.append(
            (plan.header.stage, tuple(one.name for one in plan.header.mechanisms))
        ),
    )
    federation.train(grid)
    assert Stage.METRICS not in {stage for stage, _ in asked}
    charged = {
        line.name
        for site in federation.sites
        for line in read_site(site).ledger.spending.statement()
    }
    assert charged == {name for _, names in asked for name in names}
    assert charged == {"level", "spread", "segmenter", "critic"}
    assert all(event.site_metrics == {} for event in _rounds(federation))


def test_hospitals_that_do_not_list_the_stage_do_not_end_the_run(tmp_path: Path) -> None:
    federation = SmallFederation(tmp_path, tiny_config(MEASURED))
    federation.begin()
    grid = InProcessGrid(federation.sites)
    for site in grid.sites.values():
        allowed = tuple(stage for stage in site.file.policy.stages if stage != "metrics")
        site._policy = site.file.policy.model_copy(update={"stages": allowed})
    federation.train(grid)
    assert {event.stage for event in _rounds(federation)} == {Stage.MOMENTS, Stage.SEGMENT}
    (note,) = [event.text for event in federation.events if isinstance(event, NoteEvent)]
    assert "no site answered (site-1: PolicyRefusal, site-2: PolicyRefusal)" in note


@dataclass
class Recording(InProcessGrid):
    """Keeps every answer, in order."""

    answers: list[RecordDict] = field(default_factory=list)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        for message in super().send_and_receive(messages, timeout=timeout):
            self.answers.append(message.content)
            yield message


@dataclass
class Replaying(ByMessages):
    """Gives the same answers again; there is no site and no patient behind it."""

    names: Sequence[str]
    answers: list[RecordDict]

    def get_node_ids(self) -> Iterable[int]:
        return [1000 + index for index in range(len(self.names))]

    def site_of(self, node: int) -> str:
        return self.names[node - 1000]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        for message in messages:
            assert plan_from_records(message.content).header.site in self.names
            yield reply(self.answers.pop(0), message)


def test_whatever_a_coordinator_decides_follows_from_the_releases_alone(tmp_path: Path) -> None:
    """No early stop, no choice of a best round, no weight that looks at a patient another way."""
    first = SmallFederation(tmp_path / "first", tiny_config({"metrics": {"enabled": True}}))
    first.begin()
    grid = Recording(first.sites)
    tensors = first.train(grid)
    again = SmallFederation(tmp_path / "again", tiny_config({"metrics": {"enabled": True}}))
    replayed = again.train(Replaying(list(grid.sites), list(grid.answers)))
    assert same_tensors(tensors, replayed)
    timeless = [
        [event.model_copy(update={"seconds": 0.0}) for event in _rounds(one)]
        for one in (first, again)
    ]
    assert timeless[0] == timeless[1]
    assert not any((site / "ledger.db").exists() for site in again.sites)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in replayed.values())
