"""The story of a round at a hospital: look, policy, charge, train, gate, keep, confirm."""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medsynth_client import site as site_file
from medsynth_client.audit import AuditEvent, AuditLog
from medsynth_client.audit import verify as verify_audit
from medsynth_client.keeping import Keeping
from medsynth_client.ledger import Ledger
from medsynth_client.order import Order, Outcome
from medsynth_client.retention import STATE
from medsynth_client.site import Site
from medsynth_client.site_record import read_site
from medsynth_client.spending import EVERYONE, epsilon_of
from medsynth_client.stages import WORK
from medsynth_client.verification import verify_site
from medsynth_common.errors import (
    AlreadyAnswered,
    BadMessage,
    BudgetExhausted,
    MedsynthError,
    PolicyRefusal,
    StorageFailed,
    UnsafeRelease,
    WrongAddress,
)
from medsynth_common.plan import MOST_PROBLEMS, Bits, Critic, RoundPlan, SegmentSettings, Stage
from medsynth_common.privacy.randomness import SimulatedRandomness
from medsynth_common.tensors import pack
from medsynth_common.update import SiteUpdate, check_tensors
from medsynth_common.wire.forms import answered_weights, expected_update
from medsynth_common.wire.parts import update_tensors
from medsynth_common.wire.rounding import restored
from tiny import SITE, NewSite, adversarial, gaussian, model, plan, unprotected

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A stage, what it is told, and what it spends."""

    stage: Stage
    mechanisms: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)

    def plan(self, *, protected: bool = True, **changes: Any) -> RoundPlan:
        made = gaussian if protected else unprotected
        mechanisms = tuple(made(name) for name in self.mechanisms)
        return plan(self.stage, **{"mechanisms": mechanisms, **self.changes, **changes})


CASES = {
    "level": Case(stage=Stage.MOMENTS, mechanisms=("level",)),
    "spread": Case(stage=Stage.MOMENTS, mechanisms=("spread",), changes={"round": 2}),
    "segment": Case(stage=Stage.SEGMENT, mechanisms=("segmenter",)),
    "proximal": Case(
        stage=Stage.SEGMENT,
        mechanisms=("segmenter",),
        changes={"settings": SegmentSettings(proximal=0.1)},
    ),
    **{
        critic.value: Case(
            stage=Stage.ADVERSARIAL,
            mechanisms=("critic",),
            changes={"settings": adversarial(critic=critic)},
        )
        for critic in Critic
    },
    "paired": Case(
        stage=Stage.ADVERSARIAL,
        mechanisms=("critic", "paired"),
        changes={"settings": adversarial(paired_weight=1.0)},
    ),
}
SEGMENT = CASES["segment"]


def events(folder: Path) -> list[AuditEvent]:
    return AuditLog(folder / "audit.jsonl").read()


def refusals(folder: Path) -> list[str]:
    return [event.error for event in events(folder) if event.outcome == "refused"]


def steps_charged(folder: Path) -> dict[str, int]:
    return {line.name: line.steps for line in read_site(folder).ledger.spending.statement()}


def same(first: SiteUpdate, second: SiteUpdate) -> bool:
    one, two = update_tensors(first), update_tensors(second)
    return (
        first.header == second.header
        and one.keys() == two.keys()
        and all(torch.equal(one[name], two[name]) for name in one)
    )


@pytest.mark.parametrize("protected", [True, False], ids=["protected", "unprotected"])
@pytest.mark.parametrize("name", CASES)
def test_the_whole_story_of_a_round(new_site: NewSite, name: str, protected: bool) -> None:
    free = {} if protected else {"allow_unprotected": True, "epsilon_cap": math.inf}
    folder = new_site(**free)
    asked = CASES[name].plan(protected=protected)
    update = Site(folder, device=CPU).carry(asked)

    # Exactly the tensors of the stage's form, and they are new.
    sent = update_tensors(update)
    check_tensors(sent, expected_update(asked))
    moved = {key: value for key, value in update.weights.items() if asked.weights[key].numel()}
    assert all(not torch.equal(moved[key], asked.weights[key]) for key in list(moved)[:2])
    assert sent
    # Nothing but the receipt beside them.
    head = update.header
    assert (head.run, head.site, head.stage) == ("run-1", SITE, asked.header.stage)
    assert (head.plan_digest, head.declared_patients) == (asked.digest(), 3)
    assert (head.epsilon is not None) == (head.cap is not None) == protected
    # Charged, audited, confirmed: the records agree with each other and with what left.
    assert steps_charged(folder) == dict.fromkeys(CASES[name].mechanisms, 1)
    [event] = events(folder)
    assert (event.outcome, event.plan_digest) == ("released", asked.digest())
    assert event.sha256 == hashlib.sha256(pack(sent)).hexdigest()
    assert event.epsilon == head.epsilon
    assert len(event.receipts) == len(CASES[name].mechanisms)
    assert verify_site(folder).problems == []
    assert verify_audit(folder / "audit.jsonl") == []

    # Asked again, also after a restart, it gives the same answer and spends nothing.
    again = Site(folder, device=CPU).carry(asked)
    assert same(again, update)
    assert len(events(folder)) == 1
    assert steps_charged(folder) == dict.fromkeys(CASES[name].mechanisms, 1)


def test_without_a_seed_no_two_sites_draw_the_same_noise(new_site: NewSite) -> None:
    first, second = (
        Site(new_site(name, seed=None), device=CPU).carry(plan(site=name)) for name in ("a", "b")
    )
    assert not torch.equal(first.own["style.offset"], second.own["style.offset"])


def test_a_rehearsal_repeats_with_its_seed(new_site: NewSite, tmp_path: Path) -> None:
    asked = SEGMENT.plan()
    first = Site(new_site(), device=CPU).carry(asked)
    (tmp_path / SITE).rename(tmp_path / "before")
    again = Site(new_site(), device=CPU).carry(asked)
    assert same(again, first)


@pytest.mark.parametrize("case", [SEGMENT, CASES["mean-features"]], ids=["segment", "adversarial"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_rounded_answer_passes_the_gate_and_is_about_the_weights(
    new_site: NewSite, bits: Bits, case: Case
) -> None:
    asked = case.plan(update_bits=bits)
    folder = new_site()
    answer = Site(folder, device=CPU).carry(asked)
    check_tensors(update_tensors(answer), expected_update(asked))
    start = answered_weights(asked)
    assert sum(map(nbytes, answer.weights.values())) < sum(map(nbytes, start.values())) * bits / 24
    found = restored(answer.weights, start, bits)
    check_tensors(found, start)
    assert any(not torch.equal(found[name], start[name]) for name in start)
    [event] = events(folder)
    assert event.bytes == len(pack(update_tensors(answer)))


def test_a_rounded_answer_is_measured_by_the_weights_it_stands_for(new_site: NewSite) -> None:
    asked = SEGMENT.plan(update_bits=4)
    norm = math.sqrt(sum(float(t.square().sum()) for t in answered_weights(asked).values()))
    with pytest.raises(PolicyRefusal, match="maximum_norm"):
        Site(new_site(maximum_norm=norm / 2), device=CPU).carry(asked)


def nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("critic", Critic)
def test_the_critic_stays_at_the_site_and_goes_on_learning(
    new_site: NewSite, critic: Critic
) -> None:
    folder = new_site()
    site = Site(folder, device=CPU)
    counts = []
    for round in (1, 2):
        case = CASES[critic.value]
        update = site.carry(case.plan(round=round))
        state = Keeping(folder / STATE).load("run-1", "").state
        steps = {
            Critic.MEAN_FEATURES: "mean-features.releases",
            Critic.HEAD: "head-optimizer.0.step",
            Critic.PATCHGAN: "patchgan-optimizer.0.step",
        }
        counts.append((float(state[steps[critic]]), float(state["generator-optimizer.0.step"])))
        assert not any("critic" in key or "head" in key for key in update_tensors(update))
        site = Site(folder, device=CPU)  # its memory is on disk
    assert counts == [(1, 1), (2, 2)]


def test_stages_keep_each_other_s_memory(new_site: NewSite) -> None:
    folder = new_site()
    site = Site(folder, device=CPU)
    site.carry(SEGMENT.plan())
    site.carry(CASES["head"].plan())
    state = Keeping(folder / STATE).load("run-1", "").state
    assert {"segmenter-optimizer.0.step", "head.weight"} <= state.keys()


def snapshot(folder: Path) -> tuple[dict[str, int], bytes]:
    """What was charged, and what the site remembers."""
    state = folder / STATE / "run-1.safetensors"
    return steps_charged(folder), state.read_bytes() if state.exists() else b""


REFUSED: dict[str, tuple[dict[str, Any], RoundPlan, type[MedsynthError]]] = {
    "stage": ({"stages": ["moments"]}, SEGMENT.plan(round=2), PolicyRefusal),
    "no noise": ({}, SEGMENT.plan(protected=False), PolicyRefusal),
    "too little noise": (
        {},
        SEGMENT.plan(mechanisms=(gaussian("segmenter", noise_multiplier=0.1),)),
        PolicyRefusal,
    ),
    "too many steps": (
        {"maximum_steps": 10},
        SEGMENT.plan(mechanisms=(gaussian("segmenter", steps=11),)),
        PolicyRefusal,
    ),
    "too few patients": ({"minimum_patients": 4}, SEGMENT.plan(), PolicyRefusal),
    "second mechanism": (
        {},
        CASES["paired"].plan(mechanisms=(gaussian("critic"), unprotected("paired"))),
        PolicyRefusal,
    ),
    "second mechanism past the cap": (
        {"epsilon_cap": 2.0},
        CASES["paired"].plan(
            mechanisms=(gaussian("critic"), gaussian("paired", noise_multiplier=0.6))
        ),
        BudgetExhausted,
    ),
    "past the cap": (
        {},
        SEGMENT.plan(mechanisms=(gaussian("segmenter", noise_multiplier=0.6, steps=50),)),
        BudgetExhausted,
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_refused_plan_is_written_down_and_changes_nothing(new_site: NewSite, why: str) -> None:
    limits, asked, error = REFUSED[why]
    folder = new_site(**limits)
    site = Site(folder, device=CPU)
    if "minimum_patients" not in limits:
        site.carry(CASES["level"].plan())
    before = snapshot(folder)
    with pytest.raises(error):
        site.carry(asked)
    assert snapshot(folder) == before
    last = events(folder)[-1]
    assert (last.outcome, last.error, last.bytes) == ("refused", error.__name__, 0)
    assert last.plan_digest == asked.digest()


def test_the_cap_holds_over_runs_and_restarts(new_site: NewSite) -> None:
    folder = new_site(epsilon_cap=1.2)
    Site(folder, device=CPU).carry(CASES["level"].plan(run="run-1"))
    Site(folder, device=CPU).carry(CASES["level"].plan(run="run-2"))
    with pytest.raises(BudgetExhausted):
        Site(folder, device=CPU).carry(CASES["level"].plan(run="run-3"))
    assert read_site(folder).ledger.spending.worst(epsilon_of, 1e-5, EVERYONE) <= 1.2


def test_another_site_s_plan_is_not_carried_out(new_site: NewSite) -> None:
    folder = new_site()
    with pytest.raises(WrongAddress, match="plan: site: got site-b, wanted site-a"):
        Site(folder, device=CPU).carry(SEGMENT.plan(site="site-b"))
    assert snapshot(folder) == ({}, b"")
    assert refusals(folder) == ["WrongAddress"]


def test_a_plan_without_its_mechanism_releases_nothing(new_site: NewSite) -> None:
    folder = new_site()
    for mechanisms in ((), (gaussian("something"),)):
        with pytest.raises(BadMessage, match=r"mechanisms of segment round 1: .*\['segmenter'\]"):
            Site(folder, device=CPU).carry(SEGMENT.plan(mechanisms=mechanisms))
    assert refusals(folder) == ["BadMessage"] * 2
    assert steps_charged(folder) == {}


MISSHAPEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a longer one": lambda tensor: torch.cat([tensor.flatten(), tensor.flatten()]),
    "doubles": lambda tensor: tensor.double(),
    "NaN": lambda tensor: tensor * math.nan,
    "out of bounds": lambda tensor: tensor + 1e6,
}


@pytest.mark.parametrize("what", MISSHAPEN)
def test_a_plan_of_misshapen_weights_is_not_paid_for(new_site: NewSite, what: str) -> None:
    folder, asked = new_site(), SEGMENT.plan()
    name, tensor = next((n, t) for n, t in asked.weights.items() if t.is_floating_point())
    spoilt = replace(asked, weights={**asked.weights, name: MISSHAPEN[what](tensor)})
    with pytest.raises(BadMessage, match=re.escape(name)):
        Site(folder, device=CPU).carry(spoilt)
    assert refusals(folder) == ["BadMessage"]
    assert snapshot(folder) == ({}, b"")


def test_a_plan_with_a_tensor_too_many_is_not_paid_for(new_site: NewSite) -> None:
    folder, asked = new_site(), SEGMENT.plan()
    more = {f"extra-{k}\x1b[2J": torch.zeros(1) for k in range(1000)}
    with pytest.raises(BadMessage) as caught:
        Site(folder, device=CPU).carry(replace(asked, weights={**asked.weights, **more}))
    assert len(caught.value.problems) == MOST_PROBLEMS  # a log is not filled by one message
    assert "\x1b" not in str(caught.value)
    assert steps_charged(folder) == {}


def test_a_grid_that_is_too_large_is_refused(new_site: NewSite) -> None:
    folder = new_site()
    with pytest.raises(PolicyRefusal, match="maximum_voxels: got a grid of 134217728 voxels"):
        Site(folder, device=CPU).carry(SEGMENT.plan(grid=(512, 512, 512)))
    assert refusals(folder) == ["PolicyRefusal"]


def test_patients_of_one_grid_at_a_time_are_held(new_site: NewSite) -> None:
    site = Site(new_site(), device=CPU)
    first = site.patients((24, 24, 24))
    assert site.patients((24, 24, 24)) is first
    site.patients((24, 24, 32))
    assert site._patients.keys() == {(24, 24, 32)}


def test_a_round_that_was_left_behind_is_not_answered_again(new_site: NewSite) -> None:
    """An old plan is replayed; so is one for an old round that was never asked."""
    folder = new_site()
    first, third = SEGMENT.plan(round=1), SEGMENT.plan(round=3)
    Site(folder, device=CPU).carry(first)
    site = Site(folder, device=CPU)
    answer = site.carry(third)
    before = snapshot(folder)
    for old in (first, SEGMENT.plan(round=2), SEGMENT.plan(round=3, public_seed=12)):
        with pytest.raises(AlreadyAnswered, match="round 3 was answered"):
            site.carry(old)
    assert refusals(folder) == ["AlreadyAnswered"] * 3
    assert snapshot(folder) == before
    assert same(site.carry(third), answer)  # the last plan's answer is kept, and costs nothing
    assert snapshot(folder) == before
    site.carry(CASES["mean-features"].plan(round=1))  # other stages count for themselves,
    site.carry(SEGMENT.plan(run="run-2", round=1))  # and so do other runs
    with pytest.raises(AlreadyAnswered):
        Site(folder, device=CPU).carry(third)  # its answer is no longer kept


class Broken(Exception):
    """What a stage's work may die of."""


def broken(_: Order) -> Outcome:
    raise Broken


def test_a_charge_stands_when_the_work_dies(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_site()
    site = Site(folder, device=CPU)
    asked = SEGMENT.plan()
    with monkeypatch.context() as patched:
        patched.setitem(WORK, Stage.SEGMENT, broken)
        with pytest.raises(Broken):
            site.carry(asked)
    assert snapshot(folder) == ({"segmenter": 1}, b"")
    assert refusals(folder) == ["Broken"]
    site.carry(asked)  # its noise is drawn anew, and so it is paid for again
    assert steps_charged(folder) == {"segmenter": 2}
    assert [event.outcome for event in events(folder)] == ["refused", "released"]


def test_a_charge_stands_when_the_disk_is_full(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageFailed("no space left")

    folder = new_site()
    with monkeypatch.context() as patched:
        patched.setattr(Keeping, "store", full)
        with pytest.raises(StorageFailed):
            Site(folder, device=CPU).carry(SEGMENT.plan())
    assert steps_charged(folder) == {"segmenter": 1}
    Site(folder, device=CPU).carry(SEGMENT.plan())
    assert steps_charged(folder) == {"segmenter": 2}


SPOILS: dict[str, Callable[[Outcome], Outcome]] = {
    "a count": lambda good: replace(good, own={"patients": torch.tensor(3.0)}),
    "a loss": lambda good: replace(good, weights={**good.weights, "loss": torch.zeros(())}),
    "less": lambda good: replace(good, weights=dict(list(good.weights.items())[1:])),
    "NaN": lambda good: replace(
        good, weights={key: value * math.nan for key, value in good.weights.items()}
    ),
    "doubles": lambda good: replace(
        good, weights={key: value.double() for key, value in good.weights.items()}
    ),
}


@pytest.mark.parametrize("what", SPOILS)
def test_what_the_plan_did_not_ask_for_stays(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    good = Outcome(
        weights={key: value for key, value in model().items() if key.startswith("segmenter.")},
        own={},
        state={},
    )
    folder = new_site()
    monkeypatch.setitem(WORK, Stage.SEGMENT, lambda _: SPOILS[what](good))
    with pytest.raises(UnsafeRelease):
        Site(folder, device=CPU).carry(SEGMENT.plan())
    assert [(event.outcome, event.error) for event in events(folder)] == [
        ("refused", "UnsafeRelease")
    ]
    assert snapshot(folder) == ({"segmenter": 1}, b"")


def test_the_steps_come_in_their_order(new_site: NewSite, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def spy(owner: Any, name: str, says: str) -> None:
        true = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            told.append(says)
            return true(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    folder = new_site()
    site = Site(folder, device=CPU)
    spy(Keeping, "load", "look")
    spy(site_file, "check_plan", "policy")
    spy(Ledger, "reserve_all", "charge")
    spy(SimulatedRandomness, "uniform", "sample")
    spy(SimulatedRandomness, "normal", "noise")
    spy(AuditLog, "append", "audit")
    spy(Keeping, "store", "keep")
    spy(Ledger, "confirm", "confirm")
    site.carry(CASES["level"].plan())
    assert told == ["look", "policy", "charge", "sample", "noise", "audit", "keep", "confirm"]
