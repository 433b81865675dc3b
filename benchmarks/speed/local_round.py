"""What a round costs beyond the training: plans, ledgers, gates, answers, sums.

Eight sites take private steps with no patient sampled, which is noise and one step of Adam. The
same work is timed alone, in as many processes at once as there are trainers; what a round takes
beyond its share of that is overhead.
Beside the local engine runs Flower's simulation runtime on Ray, with the same trainers.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Final

import torch

from benchmarks import results
from benchmarks.results import Cell, Goal
from medsynth_client.order import Order
from medsynth_client.stages import WORK
from medsynth_common.allocator import keep_freed_memory
from medsynth_common.networks import NetworkSettings
from medsynth_common.plan import Stage
from medsynth_common.privacy.mechanism import Gaussian
from medsynth_common.privacy.randomness import SystemRandomness
from medsynth_server.budget import Budget
from medsynth_server.checkpoint import Checkpoint
from medsynth_server.config import RunConfig, parse_config
from medsynth_server.engines.local import LocalGrid, WorkerSettings
from medsynth_server.engines.ray import ray_grid
from medsynth_server.federation import Federation, SiteGrid
from medsynth_server.model import Model
from medsynth_server.progress import LineProgress
from medsynth_server.record import Arm, RunLog
from medsynth_server.simulated_sites import phantom_sites, write_site
from medsynth_server.stages.asking import Asking
from medsynth_server.stages.segment import SegmentStage

SITES: Final = 8
WORKERS: Final = 2
ENGINES: Final = ("local", "ray")
ROUNDS: Final = 6
#: Megabytes of weights -> the segmenter's channels, and the seconds a round may take besides.
SIZES: Final[Mapping[int, tuple[tuple[int, ...], float]]] = {
    1: ((16, 32, 64), 0.05),
    50: ((128, 256, 352), 0.4),
}
#: So seldom that nobody is; the step is taken all the same.
_RATE: Final = 1e-9


class _Watch(LineProgress):
    """Notes when each round was done."""

    def __init__(self) -> None:
        super().__init__(StringIO())
        self.done: list[float] = []

    def round_done(self, n: int, losses: Mapping[str, float]) -> None:
        """Look at the clock."""
        self.done.append(time.monotonic())


def configured(*, sites: int, rounds: int, channels: tuple[int, ...], patients: int) -> RunConfig:
    """A federation with nothing but the segmenter's private rounds."""
    off = {"enabled": False}
    return parse_config(
        {
            "grid": [24, 24, 24],
            "crop": [24, 24, 24],
            "networks": {"segmenter_channels": list(channels)},
            "federation": {"sites": sites, "patients": patients},
            "privacy": {"epsilon": 8.0, "delta": 1e-3},
            "segment": {"rounds": rounds, "steps": 1, "free_steps": 0, "directions": 0},
            "moments": off,
            "adversarial": off,
            "metrics": off,
        },
        name="benchmark",
    )


def rounds_of(
    config: RunConfig, folder: Path, mechanism: Gaussian, *, workers: int, engine: str = "local"
) -> list[float]:
    """Seconds of each of the sites' rounds; the first one starts engine and trainers too."""
    torch.set_num_threads(1)
    sites = phantom_sites(config, seed=1)
    for site in sites:
        write_site(folder / site.name, site, config)
    budget = Budget(mechanisms={"segmenter": mechanism})
    asking = Asking(run="benchmark", config=config, public_seed=1)
    names = [site.name for site in sites]
    stage = SegmentStage(asking, budget, sites=names, device=torch.device("cpu"))
    settings = WorkerSettings(device="cpu", threads=1, logs=folder / "logs")
    watch = _Watch()
    whole = Model.fresh(config.networks, seed=1)
    start = Model(networks=config.networks, tensors=whole.part("segmenter"))
    began = time.monotonic()
    with _grid(engine, [folder / name for name in names], workers, settings) as grid:
        Federation(
            arm=Arm.PRIVATE,
            stages=[stage],
            grid=grid,
            checkpoint=Checkpoint(folder / "model.safetensors"),
            log=RunLog(folder / "metrics.jsonl"),
            progress=watch,
            deadline=600.0,
            quorum=len(names),
        ).run(start)
    # Round 1 is the coordinator's own, of which there is nothing here.
    done = [began, *watch.done[1:]]
    return [after - before for before, after in pairwise(done)]


def _grid(
    engine: str, folders: Sequence[Path], workers: int, settings: WorkerSettings
) -> AbstractContextManager[SiteGrid]:
    if engine == "local":
        return LocalGrid(folders, workers=workers, settings=settings)
    return ray_grid(folders, workers=workers, gpus=0, settings=settings)


def training(networks: NetworkSettings, mechanism: Gaussian) -> float:
    """Seconds of one site's training, while every trainer's process trains.

    Two that share a core's parts take longer than one does alone.
    """
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        begun = [pool.apply_async(_train, (networks, mechanism)) for _ in range(WORKERS)]
        return statistics.median(one.get() for one in begun)


def _train(networks: NetworkSettings, mechanism: Gaussian) -> float:
    torch.set_num_threads(1)
    keep_freed_memory()  # as a trainer does
    config = configured(sites=1, rounds=1, channels=networks.segmenter_channels, patients=2)
    weights = Model.fresh(networks, seed=1).part("segmenter")
    asking = Asking(run="benchmark", config=config, public_seed=1)
    names = ["alone"]
    stage = SegmentStage(
        asking,
        Budget(mechanisms={"segmenter": mechanism}),
        sites=names,
        device=torch.device("cpu"),
    )
    plan = stage.plan(Model(networks=networks, tensors=weights), "alone", 2)
    assert plan is not None
    seconds = []
    state: Mapping[str, torch.Tensor] = {}
    for _ in range(ROUNDS):
        began = time.perf_counter()
        outcome = WORK[Stage.SEGMENT](
            Order(
                plan=plan.header,
                weights=plan.weights,
                patients=(),
                declared=2,
                state=state,
                randomness=SystemRandomness(),
                device=torch.device("cpu"),
            )
        )
        seconds.append(time.perf_counter() - began)
        state = outcome.state
    return statistics.median(seconds[1:])


def measure(megabytes: int) -> list[dict[str, Cell]]:
    """A row for each engine: the median round, its training, and what is left."""
    channels, _ = SIZES[megabytes]
    mechanism = Gaussian(
        name="segmenter", clip=1.0, noise_multiplier=8.0, sampling_rate=_RATE, steps=1
    )
    config = configured(sites=SITES, rounds=ROUNDS, channels=channels, patients=2)
    alone = training(config.networks, mechanism) * SITES / WORKERS
    rows: list[dict[str, Cell]] = []
    for engine in ENGINES:
        with tempfile.TemporaryDirectory(prefix="medsynth-round-") as name:
            first, *others = rounds_of(
                config, Path(name), mechanism, workers=WORKERS, engine=engine
            )
        median = statistics.median(others)
        rows.append(
            {
                "engine": engine,
                "MB of weights": megabytes,
                "first round s": first,
                "round s": median,
                "training s": alone,
                "overhead s": median - alone,
            }
        )
    return rows


def main() -> bool:
    """Measure all sizes."""
    rows = [row for megabytes in SIZES for row in measure(megabytes)]
    ours = [row for row in rows if row["engine"] == "local"]
    return results.record(
        "local_round",
        title="A round beyond its training",
        about=f"{SITES} sites on {WORKERS} trainer processes, one thread each; medians of "
        f"{ROUNDS - 1} rounds. Every round is charged, noised, checked, kept and audited on disk. "
        "`ray` is Flower's simulation runtime; the first round starts engine and trainers.",
        rows=rows,
        goals=[
            Goal(
                what=f"overhead of a round at {row['MB of weights']} MB",
                figure=float(row["overhead s"] or 0),
                bar=bar,
                unit="s",
            )
            for row, (_, bar) in zip(ours, SIZES.values(), strict=True)
        ],
    )
