"""What `run` needs, keeps and shows beside its processes; those are in tests/federation."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from federation.hospital import make_hospital
from medsynth_client.doctor import examine
from medsynth_client.hash_chain import exclusive
from medsynth_client.isolation import cannot_isolate
from medsynth_client.logs import start_logging
from medsynth_client.status_command import site_status, status_text
from medsynth_client.status_file import StatusFile, read_status
from medsynth_client.supervisor import Child, run_site
from medsynth_client.trainer import run_trainer
from medsynth_common.errors import BadConfig
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard
from tiny import NewSite


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    key = SigningKey.generate().public.text
    card = CoordinatorCard(federation="f", address="127.0.0.1:9", signing_key=key)
    return make_hospital(tmp_path / "site", name="site-a", card=card).folder


@pytest.fixture
def _own_logging() -> Iterator[None]:
    """As it was, afterwards."""
    logger = logging.getLogger("medsynth_client")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def start(folder: Path) -> None:
    run_site(folder, device="cpu", threads=1, log_format="text")


def test_a_site_that_runs_already_is_not_run_twice(folder: Path) -> None:
    with exclusive(folder / "run", timeout=0.0), pytest.raises(BadConfig, match="runs already"):
        start(folder)


@pytest.mark.parametrize("name", ["site.toml", "coordinator.card", "keys/node.key"])
def test_what_is_missing_is_told_before_anything_starts(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BadConfig, match=Path(name).name):
        start(folder)
    assert read_status(folder) == {}


def test_a_site_without_a_coordinator_s_key_is_not_run(folder: Path) -> None:
    file = folder / "site.toml"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if not line.startswith("coordinator_key")))
    with pytest.raises(BadConfig, match="coordinator_key: got nothing"):
        start(folder)


def test_a_hospital_s_noise_is_no_seed_s(folder: Path) -> None:
    file = folder / "site.toml"
    file.write_text("simulation_seed = 7\n" + file.read_text())
    for begin in (start, begin_trainer):
        with pytest.raises(BadConfig, match="simulation_seed: got 7, wanted no seed"):
            begin(folder)
    assert "simulation_seed" in {one.name for one in examine(folder) if one.verdict == "bad"}


def begin_trainer(folder: Path) -> None:
    run_trainer([folder], folder / "t.sock", device="cpu", threads=1, watch_parent=True)


def test_a_child_is_started_again_later_each_time() -> None:
    child = Child(name="node", command=[sys.executable, "-c", "raise SystemExit(7)"])
    waits = []
    for _ in range(3):
        child.start()
        assert child.process is not None
        child.process.wait()
        before = child.wait_until
        assert child.ended() == 7
        assert not child.due
        waits.append(child.wait_until - before)
    assert child.ends == 3
    child.wait_until = 0.0
    assert child.due
    child.stop()  # nothing runs: nothing to end


def test_sections_of_the_status_are_their_own(tmp_path: Path) -> None:
    node, run = StatusFile(tmp_path, "node"), StatusFile(tmp_path, "run")
    node.begin(phase="connecting")
    run.begin(phase="running")
    node.set(phase="waiting", round=3)
    run.set(trainer_died="signal SIGKILL")
    told = read_status(tmp_path)
    assert (told["node"]["phase"], told["node"]["round"]) == ("waiting", 3)
    assert told["run"]["phase"] == "running"
    node.begin(phase="connecting")
    assert "round" not in read_status(tmp_path)["node"]
    (tmp_path / "status.json").write_text("{torn")
    assert read_status(tmp_path) == {}


def test_the_status_of_a_site_that_never_ran(folder: Path) -> None:
    facts = site_status(folder)
    assert (facts["phase"], facts["running"], facts["epsilon"]) == ("stopped", False, 0.0)
    assert (facts["releases_today"], facts["last_error"]) == (0, "")
    text = status_text(facts)
    assert "site-a: stopped" in text
    assert "epsilon 0.000 of 8 at delta 0.001, unit: patient" in text


def test_the_status_tells_why_it_waits(folder: Path) -> None:
    StatusFile(folder, "node").begin(
        phase="reconnecting", reason="no route", error="Unreachable", connected_since=0.0
    )
    StatusFile(folder, "run").begin(trainer_died="signal SIGSEGV", trainer_restarts=2)
    with exclusive(folder / "run", timeout=0.0):
        text = status_text(site_status(folder))
    assert "site-a: reconnecting" in text
    assert "because: no route" in text
    assert "last error: Unreachable" in text
    assert "trainer died 2 times, last: signal SIGSEGV" in text
    assert "not serving" in text


@pytest.mark.usefixtures("_own_logging")
@pytest.mark.parametrize("format", ["text", "json"])
def test_logs_go_to_a_file_of_the_process(tmp_path: Path, format: str) -> None:
    (tmp_path / "site.toml").touch()
    start_logging(tmp_path, "node", format=format)  # type: ignore[arg-type] # both are
    log = logging.getLogger("medsynth_client.node")
    log.warning("no connection", extra={"round": 3, "patient": "anna"})
    try:
        raise ValueError("anna-1970")
    except ValueError:
        log.exception("failed") if format == "json" else log.error("failed")
    text = (tmp_path / "logs" / "node.log").read_text()
    assert "no connection" in text
    assert "anna" not in text
    if format == "json":
        first, second = map(json.loads, text.splitlines())
        assert (first["process"], first["level"], first["round"]) == ("node", "warning", 3)
        assert second["error"] == "ValueError"


def test_a_mistyped_folder_is_told_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="no such file"):
        start_logging(tmp_path / "mistyped", "run", format="text")
    assert list(tmp_path.iterdir()) == []


def test_a_socket_in_a_folder_that_others_can_enter_is_refused(
    new_site: NewSite, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    with pytest.raises(BadConfig, match="mode 0755"):
        run_trainer([new_site()], shared / "t.sock", device="cpu", threads=1, watch_parent=False)


def test_a_group_may_call_when_it_is_named_and_nobody_else(
    new_site: NewSite, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can be other users")
    script = (
        "import os, socket, sys\n"
        "nobody, groups = 65534, [int(group) for group in sys.argv[2:]]\n"
        "os.setgroups(groups), os.setgid(nobody), os.setuid(nobody)\n"
        "socket.socket(socket.AF_UNIX).connect(sys.argv[1])\n"
    )
    members = 61_234

    def calls(*groups: int) -> bool:
        call = [sys.executable, "-c", script, str(socket), *map(str, groups)]
        return subprocess.run(call, capture_output=True, check=False).returncode == 0

    found: list[bool] = []

    def look() -> bytes:
        assert socket.stat().st_mode & 0o777 == 0o660
        found.append(calls(members))
        found.append(calls())
        return b""

    parent = SimpleNamespace(buffer=SimpleNamespace(read=look))  # read until the parent ends
    monkeypatch.setattr(sys, "stdin", parent)
    started = partial(
        run_trainer, [new_site()], socket, device="cpu", threads=1, watch_parent=True, group=members
    )
    with pytest.raises(BadConfig, match="that only its own user and group 61234 can enter"):
        started()
    os.chown(socket.parent, -1, members)
    socket.parent.chmod(0o770)
    with pytest.raises(BadConfig, match="mode 0770"):
        started()
    socket.parent.chmod(0o750)
    started()
    assert found == [True, False]


def test_a_process_that_left_the_network_reaches_nothing(tmp_path: Path) -> None:
    if reason := cannot_isolate():
        pytest.skip(f"this system allows no network namespace: {reason}")
    mine = tmp_path / "mine"
    mine.write_text("x")
    script = (
        "import os, socket, sys\n"
        "from pathlib import Path\n"
        "from medsynth_client.isolation import leave_network\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(server.getsockname()).close()\n"
        "before = os.getuid(), os.readlink('/proc/self/ns/net')\n"
        "leave_network()\n"
        "assert before[0] == os.getuid()\n"
        "assert before[1] != os.readlink('/proc/self/ns/net')\n"
        "assert Path(sys.argv[1]).stat().st_uid == os.getuid()\n"
        "try:\n"
        "    socket.create_connection(server.getsockname(), timeout=5)\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(mine)],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert ended.stdout.strip() == "Network is unreachable", ended.stderr
