"""A federation as it is run: the two commands, three machines' worth of processes, one loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import tomli_w
from benchmarks.crash_matrix import SETTINGS, WEIGHTS, Undisturbed

from medsynth_client.node_key import make_node_key, public_line
from medsynth_client.privacy_command import status as privacy_status
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard, SiteCard, read_card
from medsynth_server.coordinator.folder import FederationFolder
from medsynth_server.coordinator.run import ask_to_stop
from medsynth_server.record import Arm, RoundEvent, read_events, read_privacy

SITES = ("site-1", "site-2")
PROGRAM = (sys.executable, "-m")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def server(*words: object) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, "medsynth_server", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@contextmanager
def running(command: Sequence[object], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [*PROGRAM, *map(str, command)], stdout=stream, stderr=stream, start_new_session=True
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def make_hospital(folder: Path, like: Path, card: Path) -> None:
    """A hospital with the patients, policy and seed of a simulated one, and keys of its own."""
    folder.mkdir()
    key = read_card(card, CoordinatorCard).signing_key
    text = f'coordinator_key = "{key}"\n' + (like / "site.toml").read_text()
    (folder / "site.toml").write_text(text)
    (folder / "coordinator.card").write_bytes(card.read_bytes())
    signing = SigningKey.generate()
    signing.save(folder / "keys" / "signing.key")
    node = make_node_key(folder / "keys" / "node.key")
    made = SiteCard(site=folder.name, node_key=public_line(node), signing_key=signing.public.text)
    made.write(folder / "site.card")


@pytest.fixture
def federation(undisturbed: Undisturbed, tmp_path: Path) -> Path:
    """A founded federation with two enrolled hospitals beside it."""
    study = tmp_path / "study"
    assert server("init", study, "--address", f"127.0.0.1:{free_port()}").returncode == 0
    settings = (study / "federation.toml").read_text().partition("[run]")[0]
    tiny = tomli_w.dumps({"run": tomllib.loads(SETTINGS)})
    (study / "federation.toml").write_text(settings + tiny)
    for name in SITES:
        hospital = tmp_path / name
        make_hospital(hospital, undisturbed.folder / "sites" / name, study / "coordinator.card")
        shown = read_card(hospital / "site.card", SiteCard).fingerprint
        card = hospital / "site.card"
        added = server("sites", "add", study, name, "--card", card, "--fingerprint", shown)
        assert added.returncode == 0, added.stderr
    return study


def wait_for(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while text not in (log.read_text() if log.exists() else ""):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.mark.slow
def test_a_federation_that_is_stopped_and_killed_ends_with_the_weights_of_a_simulation(
    federation: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    log = tmp_path / "run.log"
    with ExitStack() as held:
        with running(["medsynth_server", "run", federation], log) as first:
            wait_for(log, "waiting for sites", first)
            assert server("run", federation).returncode == 4  # one coordinator a federation
            hospitals = [
                held.enter_context(
                    running(
                        ["medsynth_client", "run", tmp_path / name, "--rehearsal"],
                        tmp_path / f"{name}.log",
                    )
                )
                for name in SITES
            ]
            wait_for(log, "moments 1/2", first)
            assert ask_to_stop(FederationFolder(federation))  # a command takes a round to start
            assert first.wait(120) == 0
        told = json.loads(server("status", federation, "--format", "json").stdout)
        assert (told["phase"], told["running"]) == ("stopped", False)
        assert told["rounds_finished"] < 1 + 2 + 3 + 2
        assert "the same command goes on" in log.read_text()
        assert set(told["sites"]) == set(SITES)

        log = tmp_path / "again.log"
        with running(["medsynth_server", "run", federation], log) as second:
            wait_for(log, "segment 2/3", second)
            os.kill(second.pid, signal.SIGKILL)  # round 3 is on its way
            second.wait(60)

        finished = server("run", federation, "--format", "json")
        assert finished.returncode == 0, finished.stderr
        assert all(hospital.poll() is None for hospital in hospitals)
    run = federation / "run"
    for name in WEIGHTS:
        ours, simulated = (f / "weights" / name for f in (run, undisturbed.folder))
        assert ours.read_bytes() == simulated.read_bytes(), name
    assert (run / "synthetic" / "dataset.json").is_file()
    assert (run / "report.html").is_file()
    assert not (run / "samples.safetensors").exists()
    statement = read_privacy(run / "privacy.json")
    assert statement is not None
    assert statement.seeded  # as the hospitals say themselves
    for name in SITES:
        # Told by the site, and what its ledger says: nothing was charged twice.
        said = statement.arms[Arm.PRIVATE].sites[name]
        assert said.epsilon == privacy_status(tmp_path / name)["epsilon"]
        assert said.epsilon == privacy_status(undisturbed.folder / "sites" / name)["epsilon"]
        assert {m.name for m in said.mechanisms} == {"level", "spread", "segmenter", "critic"}
    rounds = [e for e in read_events(run / "metrics.jsonl") if isinstance(e, RoundEvent)]
    assert all(event.refused == {} for event in rounds)
    text = server("status", federation).stdout
    assert "finished" in text
    assert "site-1: away" in text
