"""Whole hospitals over loopback, and Ray's actors: the weights that one process gives."""

import os
import subprocess
import sys
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pytest
from torch import Tensor

from federation.in_process import SmallFederation
from medsynth_common.command_line import QUIET
from medsynth_common.errors import BadConfig
from medsynth_common.identity.cards import CoordinatorCard, read_card
from medsynth_server.checkpoint import Checkpoint
from medsynth_server.config import RunConfig
from medsynth_server.progress import LineProgress
from medsynth_server.record import Arm, RoundEvent, RunLog, read_events
from medsynth_server.rehearsal import coordinator_key
from medsynth_server.run_folder import RunFolder
from medsynth_server.simulate import simulate
from medsynth_server.simulated_arm import EngineName, SimulatedArm
from medsynth_server.simulated_sites import phantom_sites
from tiny_run import SEED, public_model, same_tensors, tiny_config

SMALL = tiny_config({"workers": 2, "segment": {"rounds": 1}, "adversarial": {"rounds": 1}})


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tensor]:
    """What this process alone makes of the same settings."""
    return SmallFederation(tmp_path_factory.mktemp("here"), SMALL).train()


def _simulated(folder: RunFolder, config: RunConfig, engine: EngineName) -> SimulatedArm:
    arm = SimulatedArm(
        arm=Arm.PRIVATE,
        config=config,
        folder=folder,
        sites=phantom_sites(config, seed=SEED),
        engine=engine,
    )
    arm.write_sites()
    return arm


def main() -> None:
    """Train by Ray in a process of its own: it leaves processes and files for its end to clean."""
    train(RunFolder(Path(sys.argv[1])), "ray")


def train(folder: RunFolder, engine: EngineName) -> None:
    """Train a tiny arm by an engine; its checkpoint holds what came of it."""
    arm = _simulated(folder, SMALL, engine)
    log = RunLog(folder.metrics)
    arm.training(seed=SEED, log=log, progress=LineProgress(StringIO())).run(public_model())


def _rounds(folder: RunFolder) -> set[tuple[str, ...]]:
    """Which sites took part in the rounds; none, in those that are the coordinator's alone."""
    events = read_events(folder.metrics)
    return {event.sites for event in events if isinstance(event, RoundEvent)}


@pytest.mark.slow
def test_rays_actors_give_the_weights_that_one_process_gives(
    tmp_path: Path, wanted: Mapping[str, Tensor]
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (the extra of that name)")
    folder = RunFolder(tmp_path / "run")
    script = "from federation.test_rehearsal import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", script, str(folder.path)],
        env={**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found, _ = Checkpoint(folder.checkpoint("private")).load(public_model())
    assert same_tensors(found.tensors, wanted)
    assert _rounds(folder) == {("site-1", "site-2"), ()}


def test_ray_that_is_not_installed_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsynth_server.flower.simulation.find_spec", lambda name: None)
    with pytest.raises(BadConfig, match=r"medsynth-federated\[ray\]"):
        simulate(tiny_config(), tmp_path / "run", data=None, engine="ray")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_whole_hospitals_over_the_network_give_the_weights_that_one_process_gives(
    tmp_path: Path, wanted: Mapping[str, Tensor]
) -> None:
    folder = RunFolder(tmp_path / "run")
    train(folder, "flower")
    found, _ = Checkpoint(folder.checkpoint("private")).load(public_model())
    assert same_tensors(found.tensors, wanted)
    assert _rounds(folder) == {("site-1", "site-2"), ()}
    for site in ("site-1", "site-2"):
        card = read_card(folder.sites("private") / site / "coordinator.card", CoordinatorCard)
        assert card.signing_key == coordinator_key(folder)
