"""The local engine: the same rounds by trainer processes, and what it makes of broken ones."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from torch import Tensor

from federation.in_process import SmallFederation
from medsynth_common.plan import MomentsSettings, Stage
from medsynth_common.wire.records import plan_to_records
from medsynth_server.engines import local
from medsynth_server.engines.local import LocalGrid, Worker, WorkerSettings
from medsynth_server.flower import train_message
from medsynth_server.stages.asking import Asking
from tiny_run import same_tensors, tiny_config

#: Rounded updates: what is rounded must be the same to the last bit, too.
CONFIG = tiny_config({"federation": {"update_bits": 4}})


@contextmanager
def _grid(sites: Sequence[Path], logs: Path, *, workers: int) -> Iterator[LocalGrid]:
    settings = WorkerSettings(device="cpu", threads=1, logs=logs)
    with LocalGrid(sites, workers=workers, settings=settings) as grid:
        yield grid


@pytest.fixture
def federation(tmp_path: Path) -> SmallFederation:
    federation = SmallFederation(tmp_path / "run", CONFIG)
    federation.begin()
    return federation


def _question(site: str, node: int) -> Message:
    """A plan that the site refuses at once: it lacks what its stage needs."""
    plan = Asking(run="test", config=tiny_config(), public_seed=1).plan(
        stage=Stage.MOMENTS,
        round=1,
        site=site,
        settings=MomentsSettings(),
        mechanisms=[],
        weights={},
    )
    return train_message(plan_to_records(plan), node)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tensor]:
    """What this process alone makes of the same settings."""
    return SmallFederation(tmp_path_factory.mktemp("here"), CONFIG).train()


def test_a_trainer_for_each_site_gives_the_weights_that_one_process_gives(
    federation: SmallFederation, wanted: Mapping[str, Tensor], tmp_path: Path
) -> None:
    with _grid(federation.sites, tmp_path / "logs", workers=5) as grid:
        assert len(grid.workers) == 2  # not more than there are sites
        assert same_tensors(federation.train(grid), wanted)


def test_one_trainer_for_all_sites_gives_the_same_weights_and_survives_its_own_death(
    federation: SmallFederation,
    wanted: Mapping[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with _grid(federation.sites, tmp_path / "logs", workers=1) as grid:
        (worker,) = grid.workers
        assert worker.pid is None  # it is started when it is first asked
        assert same_tensors(federation.train(grid), wanted)
        first = worker.pid
        assert first is not None
        _check_answers(grid)
        _check_flowers_other_way_to_ask(grid)
        assert worker.pid == first

        # A trainer that is killed is started again and asked again.
        os.kill(first, signal.SIGKILL)
        (answer,) = grid.send_and_receive([_question("site-1", 1000)])
        assert answer.error.reason == "BadMessage"
        second = worker.pid
        assert second not in (None, first)

        # One that is too late is ended, and its site is out of the round.
        monkeypatch.setattr(local, "_STOP_SECONDS", 0.1)
        assert second is not None
        os.kill(second, signal.SIGSTOP)
        (late,) = grid.send_and_receive([_question("site-1", 1000)], timeout=0.5)
        assert late.error.reason == "TimedOut"
        assert worker.pid is None
        assert not Path(f"/proc/{second}").exists()


def _check_answers(grid: LocalGrid) -> None:
    """Each site is asked by its node, and answers come in the order of the questions."""
    nodes = list(grid.get_node_ids())
    assert [grid.site_of(node) for node in nodes] == ["site-1", "site-2"]
    backwards = [_question(grid.site_of(node), node) for node in reversed(nodes)]
    answers = list(grid.send_and_receive(backwards))
    assert [answer.metadata.src_node_id for answer in answers] == [*reversed(nodes)]
    assert [answer.error.reason for answer in answers] == ["BadMessage", "BadMessage"]


def _check_flowers_other_way_to_ask(grid: LocalGrid) -> None:
    """Hand over, look, look again."""
    node = list(grid.get_node_ids())[1]
    (name,) = grid.push_messages([_question("site-2", node)])
    assert list(grid.pull_messages(["message-none"])) == []
    pulled: list[Message] = []
    while not pulled:
        pulled = list(grid.pull_messages([name]))
    assert pulled[0].metadata.src_node_id == node
    assert list(grid.pull_messages([name])) == []
    message = grid.create_message(RecordDict(), "train", node, "1")
    assert message.metadata.dst_node_id == node
    grid.set_run(grid.run)
    assert grid.run.run_id == 1


def test_trainers_end_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2, timeout=30)  # raises where one has to wait for the other
    monkeypatch.setattr(Worker, "stop", lambda _: together.wait())
    with _grid([tmp_path / "site-1", tmp_path / "site-2"], tmp_path, workers=2) as grid:
        assert len(grid.workers) == 2


def test_a_trainer_that_cannot_start_is_not_waited_for(
    federation: SmallFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_TRIES", 1)
    (federation.sites[0] / "site.toml").write_text("name = 3")
    with _grid(federation.sites[:1], tmp_path / "logs", workers=1) as grid:
        (answer,) = grid.send_and_receive([_question("site-1", 1000)])
        assert answer.error.reason == "TrainerDied"
        assert grid.workers[0].pid is None
    assert "site.toml" in (tmp_path / "logs" / "trainer-0.log").read_text()
