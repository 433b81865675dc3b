"""Whole hospitals over loopback, and Ray's actors: the weights that one process gives."""

import os
import sys
from io import StringIO
from pathlib import Path

import pytest

from federation.in_process import SmallFederation
from medsynth_common.errors import BadConfig
from medsynth_common.identity.cards import CoordinatorCard, read_card
from medsynth_server.config import RunConfig
from medsynth_server.progress import LineProgress
from medsynth_server.record import Arm, RoundEvent, RunLog, read_events
from medsynth_server.rehearsal import coordinator_key
from medsynth_server.run_folder import RunFolder
from medsynth_server.simulate import simulate
from medsynth_server.simulated_arm import EngineName, SimulatedArm
from medsynth_server.simulated_sites import phantom_sites
from tiny_run import SEED, public_model, same_tensors, tiny_config


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


@pytest.mark.slow
def test_rays_actors_give_the_weights_that_one_process_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (the extra of that name)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # Flower adds to it, for actors
    config = tiny_config({"workers": 2, "segment": {"rounds": 1}, "adversarial": {"rounds": 1}})
    folder = RunFolder(tmp_path / "run")
    arm = _simulated(folder, config, "ray")
    log = RunLog(folder.metrics)
    training = arm.training(seed=SEED, log=log, progress=LineProgress(StringIO()))
    found = training.run(public_model())
    wanted = SmallFederation(tmp_path / "here", config).train()
    assert same_tensors(found.tensors, wanted)
    rounds = [event for event in read_events(folder.metrics) if isinstance(event, RoundEvent)]
    assert {event.sites for event in rounds} == {("site-1", "site-2"), ()}


def test_ray_that_is_not_installed_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsynth_server.flower.simulation.find_spec", lambda name: None)
    with pytest.raises(BadConfig, match=r"medsynth-federated\[ray\]"):
        simulate(tiny_config(), tmp_path / "run", data=None, engine="ray")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_whole_hospitals_over_the_network_give_the_weights_that_one_process_gives(
    tmp_path: Path,
) -> None:
    config = tiny_config({"segment": {"rounds": 1}, "adversarial": {"rounds": 1}})
    folder = RunFolder(tmp_path / "run")
    arm = _simulated(folder, config, "flower")
    log = RunLog(folder.metrics)
    training = arm.training(seed=SEED, log=log, progress=LineProgress(StringIO()))
    found = training.run(public_model())
    wanted = SmallFederation(tmp_path / "here", config).train()
    assert same_tensors(found.tensors, wanted)
    rounds = [event for event in read_events(folder.metrics) if isinstance(event, RoundEvent)]
    assert {event.sites for event in rounds} == {("site-1", "site-2"), ()}
    for site in ("site-1", "site-2"):
        card = read_card(arm.site_folder(site) / "coordinator.card", CoordinatorCard)
        assert card.signing_key == coordinator_key(folder)
