"""A hospital as it runs: its two processes, a coordinator's link, and what may die between them."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from flwr.app import Message

from federation.hospital import Hospital, make_hospital
from federation.wire import Wire
from medsynth_client.connection import tls_context
from medsynth_client.doctor import examine
from medsynth_client.flower import Fleet
from medsynth_client.hash_chain import exclusive
from medsynth_client.node_key import NODE_ID, NODE_KEY, load_node_key
from medsynth_client.privacy_command import read_audit
from medsynth_client.site_record import read_site
from medsynth_client.status_command import site_status
from medsynth_common.identity.cards import CoordinatorCard
from medsynth_common.update import SiteUpdate

pytestmark = pytest.mark.slow

SITE = "site-a"
SECONDS = 120.0


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    folder = tmp_path / "coordinator"
    folder.mkdir()
    with Wire(folder, grace=SECONDS, join_deadline=SECONDS) as made, _beating(made):
        yield made


@contextmanager
def _beating(wire: Wire) -> Iterator[None]:
    """A coordinator's run is alive between its questions too."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(5.0):
            wire.link.beat()

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    done.set()
    thread.join()


def card_of(wire: Wire) -> CoordinatorCard:
    return CoordinatorCard(
        federation="test",
        address=wire.address,
        signing_key=wire.key.public.text,
        ca=wire.ca.decode(),
    )


@pytest.fixture
def hospital(wire: Wire, tmp_path: Path) -> Hospital:
    made = make_hospital(tmp_path / SITE, name=SITE, card=card_of(wire))
    wire.sites[SITE] = made  # type: ignore[assignment] # it has a card and can be stopped
    wire.grid.enrol()
    return made


@pytest.fixture
def hand() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


def asking(hand: ThreadPoolExecutor, wire: Wire) -> Future[Mapping[str, Message]]:
    return hand.submit(wire.ask, timeout=SECONDS)


@contextmanager
def held_before_release(hospital: Hospital) -> Iterator[None]:
    """Nothing can be written into the audit log meanwhile, and so nothing leaves the trainer."""
    hospital.wait(lambda _: site_status(hospital.folder)["trainer_serving"], seconds=SECONDS)
    with exclusive(hospital.folder / "audit.jsonl", timeout=SECONDS):
        yield


def plan_taken(hospital: Hospital) -> None:
    """Wait until the trainer has a plan in its hands."""
    hospital.wait(lambda _: (hospital.folder / "seals.jsonl").exists(), seconds=SECONDS)


def plan_charged(hospital: Hospital) -> None:
    """Wait until the trainer has paid for a plan; past the records' own code, which is held."""
    ledger = f"{(hospital.folder / 'ledger.db').as_uri()}?mode=ro"
    reserved = "SELECT COUNT(*) FROM entries WHERE kind = 'reservation'"

    def found(_: object) -> bool:
        with closing(sqlite3.connect(ledger, uri=True)) as connection:
            return bool(connection.execute(reserved).fetchone()[0])

    hospital.wait(found, seconds=SECONDS)


def charged(hospital: Hospital) -> list[int]:
    return [line.steps for line in read_site(hospital.folder).ledger.spending.statement()]


def outcomes(hospital: Hospital) -> list[str]:
    return [event.outcome for event in read_audit(hospital.folder)]


def network_of(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def test_a_plan_is_answered_and_the_trainer_has_no_network(hospital: Hospital, wire: Wire) -> None:
    hospital.start("--log-format", "json").connected()
    answer = wire.ask(timeout=SECONDS)[SITE]
    # The grid has checked the site's seal on it already.
    assert isinstance(answer, SiteUpdate), answer
    assert answer.header.site == SITE
    assert charged(hospital) == [1]

    # The coordinator may have the answer before the node knows that it was sent.
    hospital.connected()
    facts = site_status(hospital.folder)
    stage = wire.plan_for(SITE).header.stage
    assert (facts["phase"], facts["stage"], facts["round"]) == ("waiting", stage, 1)
    assert (facts["releases_today"], facts["trainer_serving"]) == (1, True)
    assert 0 < facts["epsilon"] < facts["cap"]
    if facts["trainer_isolated"]:
        assert network_of(hospital.pid("trainer")) != network_of(hospital.pid("node"))

    second = Hospital(hospital.folder).start()
    assert second.ended(seconds=SECONDS) == 4
    assert "a site that runs already" in second.errors()

    assert hospital.stop() == 0
    facts = site_status(hospital.folder)
    assert (facts["running"], facts["phase"], facts["trainer_serving"]) == (False, "stopped", False)
    for name in ("node", "trainer", "run"):
        lines = hospital.log(name).splitlines()
        assert lines
        assert all(line.startswith("{") for line in lines)


def test_a_trainer_that_dies_costs_one_update_and_comes_back(
    hospital: Hospital, wire: Wire, hand: ThreadPoolExecutor
) -> None:
    hospital.start().connected()
    with held_before_release(hospital):
        asked = asking(hand, wire)
        plan_charged(hospital)
        dead = hospital.pid("trainer")
        hospital.kill("trainer")
        answer = asked.result(SECONDS)[SITE]
    assert answer == "TrainerDied"
    hospital.wait(lambda status: status["run"].get("trainer_died") == "signal SIGKILL")

    again = wire.ask(timeout=SECONDS)[SITE]
    assert isinstance(again, SiteUpdate), again
    assert hospital.pid("trainer") != dead
    # What the dead one had charged stays charged: it may have drawn its noise.
    assert charged(hospital) == [2]
    assert outcomes(hospital) == ["released"]
    assert hospital.stop() == 0


def test_a_node_killed_before_it_delivered_costs_nothing(
    hospital: Hospital, wire: Wire, hand: ThreadPoolExecutor
) -> None:
    hospital.start().connected()
    with held_before_release(hospital):
        asked = asking(hand, wire)
        plan_taken(hospital)
        trainer, node = hospital.pid("trainer"), hospital.pid("node")
        hospital.kill("node")
    answer = asked.result(SECONDS)[SITE]  # the trainer makes its update, which nobody takes
    assert isinstance(answer, SiteUpdate), answer
    # Asked again under a new seal, and answered from what was kept: one charge, one release.
    assert len((hospital.folder / "seals.jsonl").read_text().splitlines()) == 2
    assert charged(hospital) == [1]
    assert outcomes(hospital) == ["released"]
    assert hospital.pid("node") != node
    assert hospital.pid("trainer") == trainer
    assert "ended the session that an earlier process left open" in hospital.log("node")
    assert hospital.stop() == 0


def test_doctor_asks_a_true_coordinator_and_joins_nothing(
    hospital: Hospital, wire: Wire, tmp_path: Path
) -> None:
    def found(folder: Path) -> dict[str, str]:
        return {one.name: one.verdict for one in examine(folder)}

    never_joined = found(hospital.folder)
    assert "bad" not in never_joined.values()
    assert {never_joined["tls"], never_joined["clock"], never_joined["key"]} == {"ok"}
    [node] = wire.link.nodes()
    assert wire.link.nodes()[node].seen is None
    (hospital.folder / NODE_ID).write_text(f"{node}\n")  # as one that had joined before
    assert found(hospital.folder)["key"] == "ok"
    stranger = make_hospital(tmp_path / "stranger", name="stranger", card=card_of(wire))
    assert found(stranger.folder)["key"] == "bad"


def test_a_node_whose_session_ended_while_it_was_away_joins_again(
    hospital: Hospital, wire: Wire
) -> None:
    card = card_of(wire)
    key, context = load_node_key(hospital.folder / NODE_KEY), tls_context(card, None)
    with Fleet(card.address, key=key, context=context) as fleet:
        node = fleet.activate()
        assert fleet.deactivate(node)
        assert not fleet.deactivate(node)  # as after a minute without a heartbeat
        assert fleet.activate() == node


def test_a_key_that_is_not_enrolled_is_told_at_once(wire: Wire, tmp_path: Path) -> None:
    stranger = make_hospital(tmp_path / "stranger", name="stranger", card=card_of(wire)).start()
    assert stranger.ended(seconds=SECONDS) == 2
    told = stranger.errors()
    assert "is site.card enrolled there?" in told
    assert "Traceback" not in told


def test_a_supervisor_that_is_killed_takes_both_with_it(hospital: Hospital, wire: Wire) -> None:
    hospital.start().connected()
    wire.ask(timeout=SECONDS)
    pids = [hospital.pid(name) for name in ("node", "trainer")]
    assert hospital.process is not None
    hospital.process.kill()
    hospital.ended()
    deadline = time.monotonic() + SECONDS
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
