"""The network engine over real TLS on loopback: what hospitals say, and what is made of it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from federation.stand_in import Saying, StandIn
from federation.wire import Wire, an_update, sealed
from medsynth_common.errors import TimedOut
from medsynth_common.identity import SigningKey
from medsynth_common.plan import RoundPlan
from medsynth_common.update import SiteUpdate
from medsynth_common.wire.records import update_to_records
from medsynth_server.federation import Stopped, _checked


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with Wire(tmp_path) as wire:
        yield wire


def honest(wire: Wire, name: str) -> Callable[[RoundPlan], RecordDict]:
    return lambda plan: update_to_records(sealed(wire.sites[name], wire, plan, an_update(plan)))


def verdict(wire: Wire, name: str, answer: SiteUpdate | str) -> str:
    """What the federation's loop makes of an answer: an update, or an error's name."""
    checked = answer if isinstance(answer, str) else _checked(answer, wire.plan_for(name))
    return "ok" if isinstance(checked, SiteUpdate) else checked


def test_two_sites_are_asked_by_sealed_plans_and_their_sealed_answers_come_back(
    wire: Wire,
) -> None:
    for name in ("b", "a"):
        wire.join(name, honest(wire, name))
    wire.grid._quorum = 2
    answers = wire.ask()
    assert [wire.grid.site_of(node) for node in wire.grid.get_node_ids()] == ["a", "b"]
    for name in ("a", "b"):
        assert verdict(wire, name, answers[name]) == "ok"
        (seen,) = wire.sites[name].seen
        assert seen.digest() == wire.plan_for(name).digest()
        assert seen.header.site == name
        got = answers[name]
        assert isinstance(got, SiteUpdate)
        assert got.digest() == an_update(wire.plan_for(name)).digest()


def spoilt(
    change: Callable[[SiteUpdate], SiteUpdate],
) -> Callable[[StandIn, Wire, RoundPlan], SiteUpdate]:
    return lambda site, wire, plan: sealed(site, wire, plan, change(an_update(plan)))


def with_tensors(
    change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]],
) -> Callable[[StandIn, Wire, RoundPlan], SiteUpdate]:
    """An answer of which each tensor was replaced, and which its site has sealed as it is."""

    def spoil(update: SiteUpdate) -> SiteUpdate:
        changed: dict[str, torch.Tensor] = {}
        for name, tensor in update.own.items():
            changed |= change(name, tensor)
        return replace(update, own=changed)

    return spoilt(spoil)


def by_another_key(site: StandIn, wire: Wire, plan: RoundPlan) -> SiteUpdate:
    stranger = StandIn(site.site, signing_key=SigningKey.generate())
    return sealed(stranger, wire, plan, an_update(plan))


HOSTILE: dict[str, tuple[Callable[[StandIn, Wire, RoundPlan], SiteUpdate], str]] = {
    "NaN": (with_tensors(lambda k, t: {k: t * float("nan")}), "BadMessage"),
    "infinity": (with_tensors(lambda k, t: {k: t / 0}), "BadMessage"),
    "huge": (with_tensors(lambda k, t: {k: t * 1e30}), "BadMessage"),
    "another type": (with_tensors(lambda k, t: {k: t.double()}), "BadMessage"),
    "another shape": (with_tensors(lambda k, t: {k: t.reshape(1, *t.shape)}), "BadMessage"),
    "other keys": (with_tensors(lambda k, t: {f"{k}x": t}), "BadMessage"),
    "nothing in it": (with_tensors(lambda k, t: {}), "BadMessage"),
    "no seal": (lambda site, wire, plan: an_update(plan), "BadSignature"),
    "another's seal": (by_another_key, "BadSignature"),
    "a changed number": (
        lambda site, wire, plan: replace(
            sealed(site, wire, plan, an_update(plan)),
            own={k: t + 1e-3 for k, t in an_update(plan).own.items()},
        ),
        "WrongAddress",
    ),
    "another round's": (
        spoilt(lambda u: replace(u, header=u.header.model_copy(update={"round": 7}))),
        "BadMessage",
    ),
    "another plan's": (
        spoilt(lambda u: replace(u, header=u.header.model_copy(update={"plan_digest": "0" * 64}))),
        "BadMessage",
    ),
    "another site's": (
        spoilt(lambda u: replace(u, header=u.header.model_copy(update={"site": "good"}))),
        "WrongAddress",
    ),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    """One link for many answers: an honest site, and one that says what a test wants."""
    with Wire(tmp_path_factory.mktemp("pair"), quorum=2) as wire:
        for name in ("good", "bad"):
            wire.join(name, honest(wire, name))
        yield wire


def said_by(wire: Wire, say: Saying) -> str:
    """What is made of one answer of the bad site, while the good one is heard."""
    bad = wire.sites["bad"]
    if bad.seen:
        assert bad.idle.wait(60)  # it may still be sending what was refused
    if bad.failed is not None:  # turned away in the middle of it
        bad._thread.join(60)
        bad.failed = None
        bad.start(wire.address, wire.ca)
    bad.say = say
    answers = wire.ask()
    assert verdict(wire, "good", answers["good"]) == "ok"
    return verdict(wire, "bad", answers["bad"])


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_site_is_refused_by_name_and_the_others_are_heard(pair: Wire, kind: str) -> None:
    say, error = HOSTILE[kind]
    bad = pair.sites["bad"]

    def answer(plan: RoundPlan) -> RecordDict:
        update: SiteUpdate = say(bad, pair, plan)
        return update_to_records(update)

    assert said_by(pair, answer) == error


def raw(**records: object) -> RecordDict:
    return RecordDict(records)


def a_forged_header(text: bytes) -> Callable[[StandIn, Wire, RoundPlan], RecordDict]:
    def forge(site: StandIn, wire: Wire, plan: RoundPlan) -> RecordDict:
        records = update_to_records(sealed(site, wire, plan, an_update(plan)))
        header = records.config_records["update"]["header"]
        assert isinstance(header, bytes)
        first, second = text.split(b"->")
        assert first in header
        records.config_records["update"] = ConfigRecord({"header": header.replace(first, second)})
        return records

    return forge


STRANGE: dict[str, Callable[[StandIn, Wire, RoundPlan], RecordDict | str]] = {
    "a million million patients": a_forged_header(
        b'"declared_patients":3->"declared_patients":1000000000000000000000000000000'
    ),
    "a header with more keys": a_forged_header(b'"delta"->"loss":1,"delta"'),
    "no records": lambda *_: raw(),
    "records of another kind": lambda *_: raw(x=MetricRecord({"num-examples": 1e30})),
    "a text for arrays": lambda *_: raw(
        update=ConfigRecord({"header": b"{}"}),
        weights=ArrayRecord({"w": Array("f", (1,), "numpy.ndarray", b"no array at all")}),
        own=ArrayRecord({}),
    ),
    "a pickle for arrays": lambda *_: raw(
        update=ConfigRecord({"header": b"{}"}),
        weights=ArrayRecord({"w": Array("O", (1,), "numpy.ndarray", b"\x93NUMPYcos\nsystem\n.")}),
        own=ArrayRecord({}),
    ),
    "too many bytes": lambda *_: raw(x=ConfigRecord({"x": b"x" * (4 << 20)})),
    "too many objects": lambda *_: raw(
        x=ArrayRecord({str(n): Array(torch.full((1,), n).numpy()) for n in range(40)})
    ),
    "an error that is a sentence": lambda *_: "patient Jane Doe was not found",
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_update_at_all_is_refused_as_a_bad_message(pair: Wire, kind: str) -> None:
    bad = pair.sites["bad"]
    assert said_by(pair, lambda plan: STRANGE[kind](bad, pair, plan)) == "BadMessage"


def test_who_was_refused_is_asked_again_and_heard(pair: Wire) -> None:
    assert said_by(pair, honest(pair, "bad")) == "ok"


def test_an_answer_to_an_older_question_is_refused(pair: Wire) -> None:
    bad = pair.sites["bad"]
    assert said_by(pair, honest(pair, "bad")) == "ok"
    old = bad.seen[-1]
    repeat = update_to_records(sealed(bad, pair, old, an_update(old)))
    assert said_by(pair, lambda plan: repeat) == "WrongAddress"


def test_an_error_keeps_its_name(pair: Wire) -> None:
    assert said_by(pair, lambda plan: "BudgetExhausted") == "BudgetExhausted"


def test_a_silent_site_is_dropped_at_the_deadline_and_welcome_in_the_next_round(
    wire: Wire,
) -> None:
    late = wire.join("late", lambda plan: None)
    wire.join("good", honest(wire, "good"))
    wire.grid._quorum = 2
    answers = wire.ask(timeout=5.0)
    assert verdict(wire, "good", answers["good"]) == "ok"
    assert verdict(wire, "late", answers["late"]) == "TimedOut"
    late.say = honest(wire, "late")
    assert {verdict(wire, name, said) for name, said in wire.ask().items()} == {"ok"}


def test_a_node_that_was_restarted_is_asked_again_in_the_same_round(wire: Wire) -> None:
    site = wire.join("a", lambda plan: None)

    def restart(plan: RoundPlan) -> None:
        site._stop.set()  # it leaves with the question in its hand
        again.append(StandIn("a", honest(wire, "a"), site.node_key, site.signing_key))

    again: list[StandIn] = []
    site.say = restart
    nodes = wire.grid.nodes

    def look() -> object:
        if again and not site._thread.is_alive() and "a" in wire.sites and wire.sites["a"] is site:
            wire.sites["a"] = again[0].start(wire.address, wire.ca)
        return nodes()

    wire.grid.nodes = look  # type: ignore[method-assign,assignment] # the next look comes after it
    assert verdict(wire, "a", wire.ask()["a"]) == "ok"
    assert [plan.digest() for plan in again[0].seen] == [site.seen[0].digest()]
    assert again[0].seen[0].seal != site.seen[0].seal


def test_a_node_that_stays_away_is_dropped_after_its_grace(tmp_path: Path) -> None:
    with Wire(tmp_path, grace=0.5) as wire:
        site = wire.join("a", lambda plan: site._stop.set())
        began = time.monotonic()
        assert verdict(wire, "a", wire.ask(timeout=60.0)["a"]) == "NodeLost"
        assert time.monotonic() - began < 50  # long before the deadline


def test_a_site_that_is_taken_out_is_out_of_the_round_and_turned_away(wire: Wire) -> None:
    site = wire.join("a", lambda plan: wire.sites.pop("a") and None)
    wire.join("b", honest(wire, "b"))
    wire.grid._quorum = 2
    answers = wire.ask()
    assert verdict(wire, "a", answers["a"]) == "NotEnrolled"
    assert verdict(wire, "b", answers["b"]) == "ok"
    site._thread.join(20)
    assert "401" in str(site.failed)


def test_waiting_for_a_quorum_names_who_is_missing_and_ends(tmp_path: Path) -> None:
    with Wire(tmp_path, quorum=2, join_deadline=0.5) as wire:
        wire.join("here", honest(wire, "here"))
        wire.sites["away"] = StandIn("away")
        wire.sites["away"]._thread.start = lambda: None  # type: ignore[method-assign]
        while not wire.grid.nodes()["here"].online:
            time.sleep(0.05)
        with pytest.raises(TimedOut, match="1 in touch, 2 needed; missing: away"):
            wire.ask()
        assert any("missing: away" in line for line in wire.told)
        wire.grid._stopping = lambda: True
        with pytest.raises(Stopped):
            wire.ask()
        wire.sites.pop("away")


def test_what_an_old_process_left_does_not_disturb_a_new_one(tmp_path: Path) -> None:
    """The same database: nodes keep their numbers, and nobody is asked an old question."""
    with Wire(tmp_path) as wire:
        site = wire.join("a", lambda plan: None)
        assert verdict(wire, "a", wire.ask(timeout=1.0)["a"]) == "TimedOut"
        list(wire.grid.ask({}, timeout=1.0))
        node = list(wire.grid.get_node_ids())
        wire.link.close = lambda: None  # type: ignore[method-assign] # as a killed process
        wire.sites.clear()
        site.stop()
    with Wire(tmp_path) as again:
        heir = StandIn("a", honest(again, "a"), site.node_key, site.signing_key)
        again.sites["a"] = heir
        again.grid.enrol()
        heir.start(again.address, again.ca)
        assert verdict(again, "a", again.ask()["a"]) == "ok"
        assert list(again.grid.get_node_ids()) == node
        assert len(heir.seen) == 1


def test_a_site_that_is_enrolled_while_a_run_goes_on_is_asked_in_the_next_round(
    wire: Wire,
) -> None:
    wire.join("b", honest(wire, "b"))
    assert list(wire.ask()) == ["b"]
    wire.sites["a"] = StandIn("a", honest(wire, "a"))
    wire.grid._quorum = 2
    # Nobody tells the grid: it looks for itself, and lets the node in when it comes.
    assert set(wire.grid.nodes()) == {"a", "b"}
    wire.sites["a"].start(wire.address, wire.ca)
    answers = wire.ask()
    assert {verdict(wire, name, said) for name, said in answers.items()} == {"ok"}
    assert set(answers) == {"a", "b"}
