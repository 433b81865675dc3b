"""The network engine over real TLS on loopback: what hospitals say, and what is made of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flwr.app import RecordDict

from federation.wire import Wire, an_update, sealed
from medsynth_common.plan import RoundPlan
from medsynth_common.update import SiteUpdate
from medsynth_common.wire.records import update_from_records, update_to_records
from medsynth_server.federation import _checked


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    with Wire(tmp_path) as wire:
        yield wire


def honest(wire: Wire, name: str) -> Callable[[RoundPlan], RecordDict]:
    return lambda plan: update_to_records(sealed(wire.sites[name], wire, plan, an_update(plan)))


def verdict(wire: Wire, name: str, answer: object) -> str:
    """What the federation's loop makes of an answer: an update, or an error's name."""
    checked = _checked(answer, wire.plan_for(name))  # type: ignore[arg-type]
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
        got = update_from_records(answers[name].content)
        assert got.digest() == an_update(wire.plan_for(name)).digest()
