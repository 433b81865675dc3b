"""`medsynth-server simulate`: a whole private federation on one machine, from nothing to a report.

    1. sites      simulated hospitals: phantoms, or patients of a data folder
    2. public     pre-training on phantoms; costs no privacy
    3. private    the federation: moments, segment, adversarial
    4. reference  the same without privacy, as the upper bound
    5. synthesize the synthetic set
    6. release    the set, when it is free of copies and of signs of who was trained on
    7. evaluate   on held-out patients
    8. report

Every step remembers that it is done: the same command goes on where an earlier one stopped.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medsynth_common.allocator import keep_freed_memory
from medsynth_common.errors import BadConfig, Problem
from medsynth_common.release_check.decision import checked_reason
from medsynth_server.arm import choose_device
from medsynth_server.budget import accounting, check_budget
from medsynth_server.config import RunConfig
from medsynth_server.flower.simulation import require_ray
from medsynth_server.measure import Measuring
from medsynth_server.privacy_statement import state_privacy
from medsynth_server.progress import Progress, make_progress
from medsynth_server.public_training import train_publicly
from medsynth_server.record import Arm, RunLog
from medsynth_server.release import release_set
from medsynth_server.report import build_report
from medsynth_server.results import write_results
from medsynth_server.run_folder import RunFolder, open_run
from medsynth_server.simulated_arm import EngineName, SimulatedArm
from medsynth_server.simulated_sites import (
    SimulatedSite,
    check_delta,
    folder_sites,
    phantom_sites,
    require_same_sites,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Where a finished run left its results."""

    folder: RunFolder
    report: Path


def simulate(
    config: RunConfig,
    out: Path,
    *,
    data: Path | None,
    engine: EngineName = "local",
    release_anyway: str = "",
) -> Finished:
    """Run, or go on with, a simulation in the folder `out`.

    Args:
        config: the settings.
        out: the run's folder, new or one to go on with.
        data: real patients; None for phantoms.
        release_anyway: why the synthetic set is released even if its check fails; recorded.

    Raises:
        BadConfig: the settings cannot be kept, or `out` holds something else or another run.
        BadData: the data folder has problems; all are told, and nothing was trained.

    """
    reason = checked_reason(release_anyway, flag="--release-anyway")
    if engine == "ray":
        require_ray()
    checked = folder_sites(data, config) if data is not None else None
    _check_settings(config, checked)
    with open_run(out, config) as (folder, seed):
        sites = checked if checked is not None else phantom_sites(config, seed=seed)
        with make_progress(accounting=accounting(config)) as progress:
            _Simulation(
                config=config,
                folder=folder,
                seed=seed,
                sites=sites,
                engine=engine,
                progress=progress,
                release_anyway=reason,
            ).run()
        return Finished(folder=folder, report=build_report(folder.path))


@dataclass(frozen=True, kw_only=True)
class _Simulation:
    config: RunConfig
    folder: RunFolder
    seed: int
    sites: Sequence[SimulatedSite]
    engine: EngineName
    progress: Progress
    release_anyway: str

    def run(self) -> None:
        torch.set_num_threads(self.config.threads)
        keep_freed_memory()
        torch.use_deterministic_algorithms(True, warn_only=True)
        record = RunLog(self.folder.metrics)
        arms = {Arm.PRIVATE: self.config}
        if self.config.privacy != "off" and self.config.evaluation.reference:
            arms[Arm.REFERENCE] = self.config.model_copy(update={"privacy": "off"})
        simulated = {
            arm: SimulatedArm(
                arm=arm, config=config, folder=self.folder, sites=self.sites, engine=self.engine
            )
            for arm, config in arms.items()
        }
        require_same_sites(self.folder.sites(Arm.PRIVATE), self.sites)
        for one in simulated.values():
            one.write_sites()
        public = train_publicly(
            self.config, self.folder, seed=self.seed, log=record, progress=self.progress
        )
        models = {
            arm: one.training(seed=self.seed, log=record, progress=self.progress).run(public)
            for arm, one in simulated.items()
        }
        state_privacy(self.folder, simulated, seeded=self.config.seed is not None)
        write_results(
            models[Arm.PRIVATE],
            [site.name for site in self.sites],
            self.config,
            self.folder,
            self.folder.unchecked,
            seed=self.seed,
            progress=self.progress,
        )
        release_set(
            self.folder,
            self.sites,
            self.config,
            seed=self.seed,
            anyway=self.release_anyway,
            progress=self.progress,
        )
        if not self.folder.finished("evaluate"):
            Measuring(
                config=self.config,
                folder=self.folder,
                sites=self.sites,
                seed=self.seed,
                log=record,
                progress=self.progress,
            ).run(public, models)
            self.folder.finish("evaluate")
        self.progress.finished()


def _check_settings(config: RunConfig, checked: Sequence[SimulatedSite] | None) -> None:
    """Tell now what would otherwise end the run after its public training."""
    choose_device(config.device)
    if config.privacy == "off":
        return
    sizes = {site.name: site.declared for site in checked or ()}
    check_delta(config.privacy.delta, sizes or {"every site": config.federation.patients})
    check_budget(config)
    if config.privacy.lifetime_cap < config.privacy.epsilon:
        raise BadConfig(
            Problem(
                name="privacy.cap",
                value=f"{config.privacy.lifetime_cap:g}",
                wanted=f"at least privacy.epsilon, {config.privacy.epsilon:g}",
                mend="raise the cap, lower epsilon, or leave the cap out",
            )
        )
