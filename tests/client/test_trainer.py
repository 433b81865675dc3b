"""The trainer over a real Unix socket: what goes in, and all that comes out."""

import json
import logging
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import torch

from medsynth_client.audit import AuditLog
from medsynth_client.site_record import read_site
from medsynth_client.stages import WORK
from medsynth_client.trainer import Trainer, choose_device, run_trainer
from medsynth_common import __version__
from medsynth_common.errors import BadConfig, BadData, PolicyRefusal, Problem, StorageFailed
from medsynth_common.plan import RoundPlan, Stage
from medsynth_common.update import SiteUpdate
from medsynth_common.wire.parts import plan_parts, update_from_parts
from medsynth_common.wire.site_pb2 import PlanPart
from medsynth_common.wire.trainer_rpc import TrainerClient, serve
from tiny import SITE, NewSite, gaussian, plan, unprotected

SECRET = "anna-1970-03-02"
SECONDS = 60.0


@pytest.fixture
def client(new_site: NewSite, socket: Path) -> Iterator[TrainerClient]:
    """A caller of a trainer that holds two sites."""
    trainer = Trainer([new_site(), new_site("site-b")], device=torch.device("cpu"))
    server = serve(trainer, socket)
    caller = TrainerClient(socket)
    yield caller
    caller.close()
    server.stop(grace=None).wait()


def answer(client: TrainerClient, asked: RoundPlan) -> SiteUpdate | str:
    return update_from_parts(client.carry(plan_parts(asked), timeout=SECONDS))


def test_it_tells_its_sites_and_nothing_else(client: TrainerClient) -> None:
    described = client.describe(timeout=SECONDS)
    assert list(described.sites) == [SITE, "site-b"]
    assert described.version == __version__
    assert len(described.ListFields()) == 2


def test_each_site_answers_its_own_plan(client: TrainerClient) -> None:
    for site in (SITE, "site-b"):
        asked = plan(Stage.SEGMENT, site=site)
        update = answer(client, asked)
        assert isinstance(update, SiteUpdate)
        assert update.header.site == site
        assert update.header.plan_digest == asked.digest()


def test_two_callers_take_turns(client: TrainerClient) -> None:
    plans = [plan(site=site) for site in (SITE, "site-b")]
    found: dict[int, SiteUpdate | str] = {}

    def ask(k: int) -> None:
        found[k] = answer(client, plans[k])

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert all(isinstance(update, SiteUpdate) for update in found.values())
    assert len(found) == 2


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (plan(site="site-z"), "WrongAddress"),
        (plan(Stage.SEGMENT, mechanisms=(gaussian("x"),)), "BadMessage"),
        (plan(mechanisms=(unprotected("level"),)), "PolicyRefusal"),
        (plan(mechanisms=(gaussian("level", noise_multiplier=0.5, steps=99),)), "BudgetExhausted"),
    ],
)
def test_a_refusal_comes_as_a_name(client: TrainerClient, asked: RoundPlan, name: str) -> None:
    assert answer(client, asked) == name
    assert isinstance(answer(client, plan()), SiteUpdate)  # and the trainer is still up


def told(folder: Path) -> list[str]:
    """What the site's audit log says came of each message."""
    return [event.error or event.outcome for event in AuditLog(folder / "audit.jsonl").read()]


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [PlanPart(chunk=b"x")],
        [PlanPart(header=b"{}")],
        [PlanPart(header=b"\xff")],
        [PlanPart(header=b"[" * 60_000)],
        [PlanPart(header=b'{"a":' * 10_000)],
        [PlanPart(header=b"9" * (1 << 20))],
    ],
    ids=["nothing", "no header", "empty", "no text", "deep list", "deep table", "too long"],
)
def test_what_is_no_plan_is_a_bad_message(
    client: TrainerClient, parts: list[PlanPart], tmp_path: Path
) -> None:
    assert update_from_parts(client.carry(parts, timeout=SECONDS)) == "BadMessage"
    assert client.describe(timeout=SECONDS).sites
    # Nobody knows for which site it was meant, so each of them has it in its log.
    assert told(tmp_path / SITE) == told(tmp_path / "site-b") == ["BadMessage"]


def spoilt(path: tuple[str | int, ...], value: str) -> list[PlanPart]:
    """The parts of a good plan whose header says something else in one place, unchecked."""
    head, *chunks = plan_parts(plan(Stage.SEGMENT))
    fields = json.loads(head.header)
    *outer, last = path
    place = fields
    for key in outer:
        place = place[key]
    place[last] = "here"
    return [PlanPart(header=json.dumps(fields).replace('"here"', value).encode()), *chunks]


MECHANISM = ("mechanisms", 0)
BAD_HEADERS = {
    "sigma 0": ((*MECHANISM, "noise_multiplier"), "0.0", "BadMessage"),
    "sigma NaN": ((*MECHANISM, "noise_multiplier"), "NaN", "BadMessage"),
    "sigma too small": ((*MECHANISM, "noise_multiplier"), "1e-9", "PolicyRefusal"),
    "clip NaN": ((*MECHANISM, "clip"), "NaN", "BadMessage"),
    "clip without end": ((*MECHANISM, "clip"), "1e400", "BadMessage"),
    "clip too large": ((*MECHANISM, "clip"), "1e8", "PolicyRefusal"),
    "negative steps": ((*MECHANISM, "steps"), "-1", "BadMessage"),
    "no steps": ((*MECHANISM, "steps"), "0", "BadMessage"),
    "ten million steps": ((*MECHANISM, "steps"), "10000000", "PolicyRefusal"),
    "everybody twice": ((*MECHANISM, "sampling_rate"), "2.0", "BadMessage"),
    "a billion rounds": (("round",), "1000000000", "BadMessage"),
    "a million rounds": (("round",), "1000000", "PolicyRefusal"),
    "unknown stage": (("stage",), '"exfiltrate"', "BadMessage"),
    "another stage's settings": (("stage",), '"moments"', "BadMessage"),
    "a stage that is no site's": (("stage",), '"pretrain"', "BadMessage"),
    "a key nobody knows": (("seed",), "1", "BadMessage"),
    "a huge grid": (("grid",), "[512, 512, 512]", "PolicyRefusal"),
}


@pytest.mark.parametrize("what", BAD_HEADERS)
def test_bad_input_is_a_typed_refusal_in_the_log_and_nothing_leaves(
    client: TrainerClient, what: str, tmp_path: Path
) -> None:
    path, value, name = BAD_HEADERS[what]
    parts = list(client.carry(spoilt(path, value), timeout=SECONDS))
    assert [part.failure.name for part in parts] == [name]
    assert told(tmp_path / SITE) == [name]
    assert read_site(tmp_path / SITE).ledger.spending.statement() == []
    assert isinstance(answer(client, plan(Stage.SEGMENT)), SiteUpdate)  # it is still up
    assert told(tmp_path / SITE) == [name, "released"]


def test_a_plan_that_comes_twice_gets_the_same_bytes_for_nothing(
    client: TrainerClient, tmp_path: Path
) -> None:
    asked = plan(Stage.SEGMENT)
    first, second = (
        [part.SerializeToString() for part in client.carry(plan_parts(asked), timeout=SECONDS)]
        for _ in range(2)
    )
    assert first == second
    assert told(tmp_path / SITE) == ["released"]
    assert [line.releases for line in read_site(tmp_path / SITE).ledger.spending.statement()] == [1]


def test_an_old_plan_is_refused(client: TrainerClient, tmp_path: Path) -> None:
    old, new = plan(Stage.SEGMENT, round=1), plan(Stage.SEGMENT, round=2)
    assert isinstance(answer(client, old), SiteUpdate)
    assert isinstance(answer(client, new), SiteUpdate)
    assert answer(client, old) == "AlreadyAnswered"
    assert told(tmp_path / SITE) == ["released", "released", "AlreadyAnswered"]
    assert [line.releases for line in read_site(tmp_path / SITE).ledger.spending.statement()] == [2]


def test_a_log_that_cannot_be_written_leaves_the_error_s_name_too(
    client: TrainerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way out of an error must not be a way out for its text."""

    def full(*_: object) -> None:
        raise StorageFailed(SECRET)

    monkeypatch.setattr(AuditLog, "append", full)
    unheard = plan_parts(plan(mechanisms=()))  # refused first, and that is what is told
    for parts, name in (([], "StorageFailed"), (list(unheard), "BadMessage")):
        (part,) = client.carry(parts, timeout=SECONDS)
        assert part.failure.name == name


class Anna1970(Exception):
    """An error of a class nobody foresaw."""


FAILURES: dict[str, Exception] = {
    "ValueError": ValueError(SECRET),
    "Anna1970": Anna1970(SECRET),
    "MemoryError": MemoryError(SECRET),
    "BadData": BadData(Problem(name=SECRET, value=SECRET, wanted="a patient")),
    "RuntimeError": RuntimeError("outer"),
}
FAILURES["RuntimeError"].__cause__ = ValueError(SECRET)


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_s_text_stays_at_the_site(
    client: TrainerClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    def fail(_: Any) -> Any:
        raise FAILURES[name]

    monkeypatch.setitem(WORK, Stage.MOMENTS, fail)
    with caplog.at_level(logging.DEBUG):
        parts = list(client.carry(plan_parts(plan()), timeout=SECONDS))
    assert [part.failure.name for part in parts] == [name]
    assert not any(SECRET.encode() in part.SerializeToString() for part in parts)
    assert SECRET not in caplog.text  # a log may be sent to whoever helps
    assert f"{name} at " in caplog.text
    assert "test_trainer.py:" in caplog.text  # where it came from can be told


def test_a_refusal_s_reason_is_in_the_site_s_log(
    client: TrainerClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert answer(client, plan(mechanisms=(unprotected("level"),))) == PolicyRefusal.__name__
    assert "allow_unprotected: got mechanism level without noise" in caplog.text


def test_the_socket_is_its_owner_s_alone(new_site: NewSite, socket: Path) -> None:
    before = os.umask(0)
    try:
        server = serve(Trainer([new_site()], device=torch.device("cpu")), socket)
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert os.umask(0) == 0  # as it was
        server.stop(grace=None).wait()
    finally:
        os.umask(before)


def test_two_folders_of_one_site_are_a_mistake(new_site: NewSite, tmp_path: Path) -> None:
    first = new_site()
    shutil.copytree(first, tmp_path / "copy")
    with pytest.raises(BadConfig, match="each name once"):
        Trainer([first, tmp_path / "copy"], device=torch.device("cpu"))


def test_a_device_is_known_or_told() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda")
    with pytest.raises(BadConfig, match="device: got abacus, wanted auto, cpu"):
        choose_device("abacus")


@pytest.fixture
def _as_before() -> Iterator[None]:
    """The trainer sets how its process computes; these tests share one."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_as_before")
def test_it_serves_until_its_parent_goes(
    new_site: NewSite, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    def parent() -> bytes:
        """The end of standard input, which the trainer waits for."""
        caller = TrainerClient(socket)
        found.extend(caller.describe(timeout=SECONDS).sites)
        found.append(torch.are_deterministic_algorithms_enabled())
        caller.close()
        return b""

    stdin = SimpleNamespace(buffer=SimpleNamespace(read=parent))
    monkeypatch.setattr("sys.stdin", stdin)
    run_trainer([new_site()], socket, device="cpu", threads=1, watch_parent=True)
    assert found == [SITE, True]
    assert not socket.exists()


@pytest.mark.usefixtures("_as_before")
def test_a_parent_that_goes_in_the_middle_of_a_plan_ends_it_at_once(
    new_site: NewSite, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended, codes = threading.Event(), threading.Event(), list[int]()

    def endless(_: Any) -> Any:
        begun.set()
        ended.wait(SECONDS)
        raise ValueError

    def ask() -> None:
        with pytest.raises(grpc.RpcError):
            answer(caller, plan())

    def parent() -> bytes:
        asking.start()
        assert begun.wait(SECONDS)
        return b""

    caller, asking = TrainerClient(socket), threading.Thread(target=ask)
    monkeypatch.setitem(WORK, Stage.MOMENTS, endless)
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=SimpleNamespace(read=parent)))
    folder = new_site()
    (folder / ".part-left").touch()  # by a crash before
    run_trainer([folder], socket, device="cpu", threads=1, watch_parent=True)
    ended.set()
    asking.join(SECONDS)
    caller.close()
    assert codes == [1]
    assert not (folder / ".part-left").exists()
