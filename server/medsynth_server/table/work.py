"""What the workers of an evaluation are given, and what each makes of that, once."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from medsynth_common.allocator import keep_freed_memory
from medsynth_common.learning.volumes import Volume
from medsynth_common.scoring.measured import Measured
from medsynth_server.config import RunConfig, Table
from medsynth_server.model import Model
from medsynth_server.progress_bar import counted
from medsynth_server.record import Arm
from medsynth_server.simulated_sites import SimulatedSite
from medsynth_server.table.cohorts import Cache, Painting
from medsynth_server.workers import worker_pool


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that a worker needs; it travels to it once.

    Attributes:
        config: of the run.
        settings: of the table.
        sites: the run's hospitals.
        models: of each training whose generator paints.
        seed: the run's public one.
        prepared: the folder of the sites' folders.
        cache: of volumes.

    """

    config: RunConfig
    settings: Table
    sites: Sequence[SimulatedSite]
    models: Mapping[Arm, Model]
    seed: int
    prepared: Path
    cache: Cache

    @property
    def real(self) -> int:
        """How many patients the sites train on."""
        return sum(site.declared for site in self.sites)

    @property
    def synthetic(self) -> int:
        """Volumes of each generator."""
        return self.real if self.settings.synthetic is None else self.settings.synthetic

    def pool(self) -> AbstractContextManager[Executor]:
        """Start workers, in each of which `here()` is this work."""
        return worker_pool(self.config.workers, _begin, self)

    def painting(self, arm: Arm) -> Painting:
        """What one generator paints."""
        names = [site.name for site in self.sites]
        return Painting(self.models[arm], names, self.config, seed=self.seed)


def make_volumes(work: Work) -> None:
    """Prepare held-out patients and paint synthetic volumes, all that are not there yet."""
    held_out = [(site, number) for site in work.sites for number in range(len(site.held_out))]
    painted = [(arm, number) for arm in work.models for number in range(work.synthetic)]
    with work.pool() as pool:
        jobs = [pool.submit(_keep_held_out, site, number) for site, number in held_out]
        jobs += [pool.submit(_keep_synthetic, arm, number) for arm, number in painted]
        for job in counted(as_completed(jobs), "volumes", done=0, total=len(jobs)):
            job.result()


class Here:
    """A worker's own view of the work: volumes are mapped and generators built when asked for."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._paintings: dict[Arm, Painting] = {}

    @cached_property
    def real(self) -> Mapping[str, Sequence[Volume]]:
        """Every site's training patients, as the site prepared them."""
        work = self.work
        return {
            site.name: site.load_training(work.config, cache=work.prepared / site.name / "prepared")
            for site in work.sites
        }

    @cached_property
    def held_out(self) -> Mapping[str, Sequence[Measured]]:
        """Every site's held-out patients."""
        return self.work.cache.held_out(self.work.sites)

    @cached_property
    def synthetic(self) -> Mapping[Arm, Sequence[Volume]]:
        """Every generator's volumes."""
        work = self.work
        return {arm: work.cache.synthetic(arm, work.synthetic) for arm in work.models}

    def painting(self, arm: Arm) -> Painting:
        """One generator, ready to paint."""
        if arm not in self._paintings:
            self._paintings[arm] = self.work.painting(arm)
        return self._paintings[arm]


class _Process:
    """One worker process's own: what a pool runs there must find it without arguments."""

    here: Here


def here() -> Here:
    """Give, in a worker of `Work.pool`, that worker's view."""
    return _Process.here


def _begin(work: Work) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    torch.use_deterministic_algorithms(True, warn_only=True)
    _Process.here = Here(work)


def _keep_held_out(site: SimulatedSite, number: int) -> None:
    here().work.cache.keep_held_out(site, number, here().work.config)


def _keep_synthetic(arm: Arm, number: int) -> None:
    here().work.cache.keep_synthetic(arm, number, here().painting(arm))
