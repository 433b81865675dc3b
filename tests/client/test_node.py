"""The node's loop, without a network: what goes up, and what never does."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from medsynth_client.flower import PLAN, RunEnded
from medsynth_client.node import FIRST_PATIENCE, Node
from medsynth_client.node_key import NODE_ID
from medsynth_client.site import Site
from medsynth_client.status_file import read_status
from medsynth_common.errors import (
    ConnectionFailed,
    NotAdmitted,
    TrainerDied,
    Unreachable,
    Untrusted,
)
from medsynth_common.identity.seal import Seal
from medsynth_common.plan import RoundPlan
from medsynth_common.update import SiteUpdate
from medsynth_common.wire.records import plan_to_records, update_from_records
from tiny import NewSite, plan

SECRET = "anna-1970-03-02"


class Over(BaseException):
    """Ends a loop that has no end."""


@dataclass
class FakeFleet:
    """A coordinator's end: a script of what it does, and a list of what it got."""

    script: list[Any] = field(default_factory=list)
    code: bool = False
    answers: list[RecordDict | str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    joining: list[ConnectionFailed] = field(default_factory=list)
    sending: list[Exception] = field(default_factory=list)

    def activate(self) -> int:
        self.calls.append("activate")
        if self.joining:
            raise self.joining.pop(0)
        return 77

    def deactivate(self, node: int) -> bool:
        self.calls.append(f"deactivate {node}")
        return True

    def heartbeat(self) -> bool:
        return True

    def pull(self) -> Any:
        if not self.script:
            raise Over
        step = self.script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    def brings_code(self, question: Any) -> bool:
        return self.code

    def content(self, question: Any) -> RecordDict:
        content: RecordDict = question.content
        return content

    def answer(self, question: Any, answer: RecordDict | str) -> None:
        if self.sending:
            raise self.sending.pop(0)
        self.answers.append(answer)


@dataclass
class FakeTrainer:
    say: Callable[[RoundPlan], SiteUpdate | str]
    asked: int = 0

    def carry(self, plan: RoundPlan, *, timeout: float) -> SiteUpdate | str:
        self.asked += 1
        return self.say(plan)


def question(content: RecordDict, kind: str = PLAN) -> Any:
    return SimpleNamespace(content=content, kind=kind, run=1, expires=time.time() + 60)


ASKED = plan()


@pytest.fixture
def site(new_site: NewSite) -> Path:
    return new_site()


@pytest.fixture
def right(site: Path) -> SiteUpdate:
    """The true answer to the plan."""
    return Site(site, device=torch.device("cpu")).carry(ASKED)


def served(
    site: Path, fleet: FakeFleet, say: Callable[[RoundPlan], SiteUpdate | str] = lambda _: "X"
) -> FakeTrainer:
    """Run the loop until its script is over."""
    trainer = FakeTrainer(say)
    node = Node(site, fleet, trainer, sleep=lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(Over):
        node.serve(keep_trying=False)
    assert fleet.calls[-1] == "deactivate 77"  # it says good-bye, however it ends
    return trainer


def test_a_plan_goes_to_the_trainer_and_its_update_up(site: Path, right: SiteUpdate) -> None:
    fleet = FakeFleet([None, question(plan_to_records(ASKED)), None])
    trainer = served(site, fleet, lambda _: right)
    assert trainer.asked == 1
    [answer] = fleet.answers
    assert isinstance(answer, RecordDict)
    assert update_from_records(answer).digest() == right.digest()
    status = read_status(site)["node"]
    assert (status["stage"], status["round"], status["error"]) == ("moments", 1, "")


def spoiled(update: SiteUpdate) -> dict[str, SiteUpdate | str]:
    """Answers that must not go up."""
    tensors = dict(update.own)
    name = next(iter(tensors))
    nan = torch.full_like(tensors[name], float("nan"))
    wide = torch.zeros((*tensors[name].shape, 2))
    header = update.header
    return {
        "another plan's": replace(
            update, header=header.model_copy(update={"plan_digest": "0" * 64})
        ),
        "another site's": replace(update, header=header.model_copy(update={"site": "site-b"})),
        "another run's": replace(update, header=header.model_copy(update={"run": "run-2"})),
        "another round's": replace(update, header=header.model_copy(update={"round": 2})),
        "the true count": replace(
            update, header=header.model_copy(update={"declared_patients": 9})
        ),
        "not finite": replace(update, own={**tensors, name: nan}),
        "one tensor more": replace(update, own={**tensors, "patients": torch.zeros(3)}),
        "one tensor less": replace(update, own={}),
        "another shape": replace(update, own={**tensors, name: wide}),
    }


KINDS = [
    "another plan's",
    "another site's",
    "another run's",
    "another round's",
    "the true count",
    "not finite",
    "one tensor more",
    "one tensor less",
    "another shape",
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_node_looks_again_before_anything_goes_up(
    site: Path, right: SiteUpdate, kind: str
) -> None:
    assert list(spoiled(right)) == KINDS
    fleet = FakeFleet([question(plan_to_records(ASKED))])
    served(site, fleet, lambda _: spoiled(right)[kind])
    assert fleet.answers == ["UnsafeRelease"]
    assert read_status(site)["node"]["error"] == "UnsafeRelease"


def test_a_larger_update_than_the_policy_allows_stays(site: Path, right: SiteUpdate) -> None:
    file = site / "site.toml"
    file.write_text(file.read_text().replace("[policy]", "[policy]\nmaximum_bytes = 16"))
    fleet = FakeFleet([question(plan_to_records(ASKED))])
    served(site, fleet, lambda _: right)
    assert fleet.answers == ["UnsafeRelease"]


def test_a_site_that_seals_sends_nothing_unsealed(site: Path, right: SiteUpdate) -> None:
    file = site / "site.toml"
    file.write_text(f'coordinator_key = "ed25519:{"0" * 64}"\n' + file.read_text())
    seal = Seal(header=b"{}", signature=b"0" * 64)
    fleet = FakeFleet([question(plan_to_records(ASKED))] * 2)
    answers = iter([right, replace(right, seal=seal)])
    served(site, fleet, lambda _: next(answers))
    assert fleet.answers[0] == "UnsafeRelease"
    assert isinstance(fleet.answers[1], RecordDict)


@pytest.mark.parametrize("kind", ["evaluate", "query", "train.other", "agent", ""])
def test_unknown_kinds_of_message_are_refused_by_name(
    site: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = FakeFleet([question(plan_to_records(ASKED), kind)])
    with caplog.at_level(logging.WARNING):
        trainer = served(site, fleet)
    assert (fleet.answers, trainer.asked) == (["UnknownWork"], 0)
    assert repr(kind) in caplog.text


def test_a_run_with_code_is_refused_by_name(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    fleet = FakeFleet([question(plan_to_records(ASKED))], code=True)
    with caplog.at_level(logging.WARNING):
        trainer = served(site, fleet)
    assert (fleet.answers, trainer.asked) == (["CodeRefused"], 0)
    assert "FAB" in caplog.text


def test_what_is_no_plan_does_not_reach_the_trainer(site: Path) -> None:
    fleet = FakeFleet([question(RecordDict({"plan": ConfigRecord({"header": b"{}"})}))])
    trainer = served(site, fleet)
    assert (fleet.answers, trainer.asked) == (["BadMessage"], 0)


def fail(error: Exception) -> Callable[[RoundPlan], SiteUpdate | str]:
    def say(_: RoundPlan) -> SiteUpdate | str:
        raise error

    return say


@pytest.mark.parametrize(
    ("say", "name"),
    [
        (lambda _: "BudgetExhausted", "BudgetExhausted"),
        (lambda _: f"{SECRET} died", "BadMessage"),  # a text is no name
        (fail(TrainerDied("the trainer is gone")), "TrainerDied"),
        (fail(ValueError(SECRET)), "ValueError"),
    ],
)
def test_only_a_name_goes_up(
    site: Path,
    say: Callable[[RoundPlan], SiteUpdate | str],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fleet = FakeFleet([question(plan_to_records(ASKED)), None])
    with caplog.at_level(logging.DEBUG):
        served(site, fleet, say)
    assert fleet.answers == [name]
    assert SECRET not in caplog.text


def test_a_connection_lost_while_asking_is_made_anew(site: Path) -> None:
    fleet = FakeFleet([None, Unreachable("gone"), None])
    fleet.joining = []
    served(site, fleet)
    # It leaves first: a message lost on its way here is then told at once.
    assert fleet.calls == ["activate", "deactivate 77", "activate", "deactivate 77"]


def test_once_in_it_tries_for_ever_and_says_why(
    site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = FakeFleet([None])
    waits: list[float] = []
    node = Node(site, fleet, FakeTrainer(lambda _: "X"), sleep=waits.append)  # type: ignore[arg-type]
    fleet.joining = [Unreachable("no route"), NotAdmitted("key"), Untrusted("proxy")] * 100
    with caplog.at_level(logging.WARNING):
        assert node.join(patience=None) == 77
    assert sum(waits) > 4 * 3600
    assert max(waits) == 60
    assert "no route" in caplog.text


def test_at_first_a_fault_is_told_and_ends_it(site: Path) -> None:
    for error in (NotAdmitted("key"), Untrusted("proxy")):
        fleet = FakeFleet(joining=[error])
        node = Node(site, fleet, FakeTrainer(lambda _: "X"), sleep=lambda _: None)  # type: ignore[arg-type]
        with pytest.raises(type(error)):
            node.serve(keep_trying=False)
        assert fleet.calls == ["activate"]
        status = read_status(site)["node"]
        assert (status["phase"], status["error"]) == ("stopped", type(error).__name__)


def test_at_first_a_coordinator_that_is_not_there_is_waited_for_a_little(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("medsynth_client.node.time.monotonic", lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += seconds

    fleet = FakeFleet(joining=[Unreachable("refused")] * 99)
    node = Node(site, fleet, FakeTrainer(lambda _: "X"), sleep=sleep)  # type: ignore[arg-type]
    with pytest.raises(Unreachable):
        node.join(patience=FIRST_PATIENCE)
    assert len(fleet.calls) == 3
    assert now[0] <= FIRST_PATIENCE


def test_what_an_earlier_process_left_open_is_ended_first(site: Path) -> None:
    (site / NODE_ID).write_text("12345\n")
    fleet = FakeFleet()
    served(site, fleet)
    assert fleet.calls[:2] == ["deactivate 12345", "activate"]
    assert (site / NODE_ID).read_text() == "77\n"


def test_an_answer_is_sent_again_and_dropped_when_nobody_wants_it(
    site: Path, right: SiteUpdate
) -> None:
    asked = question(plan_to_records(ASKED))
    fleet = FakeFleet([asked, asked, None], sending=[Unreachable("x"), Unreachable("x")])
    served(site, fleet, lambda _: right)
    assert len(fleet.answers) == 2
    fleet = FakeFleet([asked, asked], sending=[RunEnded("over")])
    served(site, fleet, lambda _: right)
    assert len(fleet.answers) == 1


def test_an_answer_that_cannot_be_delivered_makes_it_join_anew(
    site: Path, right: SiteUpdate
) -> None:
    asked = question(plan_to_records(ASKED))
    fleet = FakeFleet([asked, asked], sending=[Unreachable("x")] * 8)
    trainer = served(site, fleet, lambda _: right)
    assert trainer.asked == 2
    assert len(fleet.answers) == 1
    assert fleet.calls.count("activate") == 2
