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

from medsynth_common.durable import write_bytes
from medsynth_common.release_check.decision import checked_reason
from medsynth_common.tensors import pack
from medsynth_server.arm import ArmTraining, choose_device
from medsynth_server.budget import check_budget
from medsynth_server.checkpoint import Checkpoint
from medsynth_server.config import RunConfig
from medsynth_server.federation import Federation
from medsynth_server.measure import Measuring
from medsynth_server.model import Model
from medsynth_server.privacy_statement import state_privacy
from medsynth_server.progress import Progress, make_progress
from medsynth_server.public_pool import draw_pools
from medsynth_server.record import Arm, RunLog
from medsynth_server.release import release_set
from medsynth_server.report import build_report
from medsynth_server.run_folder import RunFolder, open_run
from medsynth_server.simulated_sites import (
    SimulatedSite,
    check_delta,
    folder_sites,
    phantom_sites,
)
from medsynth_server.stages.pretrain import PretrainStage
from medsynth_server.synthetic_set import write_synthetic_set

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Where a finished run left its results."""

    folder: RunFolder
    report: Path


def simulate(
    config: RunConfig, out: Path, *, data: Path | None, release_anyway: str = ""
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
    checked = folder_sites(data, config) if data is not None else None
    _check_settings(config, checked)
    with open_run(out, config) as (folder, seed):
        sites = checked if checked is not None else phantom_sites(config, seed=seed)
        with make_progress(accounting=_accounting(config)) as progress:
            _Simulation(
                config=config,
                folder=folder,
                seed=seed,
                sites=sites,
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
    progress: Progress
    release_anyway: str

    def run(self) -> None:
        torch.set_num_threads(self.config.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        record = RunLog(self.folder.metrics)
        arms = {Arm.PRIVATE: self.config}
        if self.config.privacy != "off" and self.config.evaluation.reference:
            arms[Arm.REFERENCE] = self.config.model_copy(update={"privacy": "off"})
        trainings = {
            arm: ArmTraining(
                arm=arm,
                config=config,
                folder=self.folder,
                sites=self.sites,
                seed=self.seed,
                log=record,
                progress=self.progress,
            )
            for arm, config in arms.items()
        }
        for training in trainings.values():
            training.write_sites()
        public = self._pretrain(record)
        models = {arm: training.run(public) for arm, training in trainings.items()}
        state_privacy(self.folder, trainings, seeded=self.config.seed is not None)
        if not self.folder.finished("synthesize"):
            self._save(models[Arm.PRIVATE])
            self.folder.finish("synthesize")
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

    def _pretrain(self, record: RunLog) -> Model:
        """Train on public phantoms; every arm starts from the result."""
        settings = self.config.pretrain
        checkpoint = Checkpoint(self.folder.checkpoint("public"))
        start = Model.fresh(self.config.networks, seed=self.seed % 2**63)
        model, done = checkpoint.load(start)
        if done.covers(PretrainStage.name, settings.rounds):
            return model
        self.progress.note("drawing public phantoms of randomised scanners")
        pools = draw_pools(
            seed=self.seed,
            scanners=settings.scanners,
            phantoms=settings.phantoms,
            grid=self.config.grid,
            workers=self.config.workers,
        )
        device = choose_device(self.config.device)
        stage = PretrainStage(settings, pools, crop=self.config.crop, seed=self.seed, device=device)
        return Federation(
            arm=Arm.PRIVATE,
            stages=[stage],
            grid=None,
            checkpoint=checkpoint,
            log=record,
            progress=self.progress,
            deadline=self.config.federation.deadline,
        ).run(start)

    def _save(self, model: Model) -> None:
        """Write the final weights and the synthetic set."""
        self.progress.note("making the synthetic set")
        for part in ("generator", "segmenter"):
            write_bytes(self.folder.weights / f"{part}.safetensors", pack(model.part(part)))
        styles = {name: t for name, t in model.tensors.items() if name.startswith("style.")}
        write_bytes(self.folder.weights / "styles.safetensors", pack(styles))
        write_synthetic_set(
            model,
            [site.name for site in self.sites],
            self.folder.unchecked,
            count=self.config.evaluation.synthetic,
            grid=self.config.grid,
            seed=self.seed,
            device=choose_device(self.config.device),
        )


def _check_settings(config: RunConfig, checked: Sequence[SimulatedSite] | None) -> None:
    """Tell now what would otherwise end the run after its public training."""
    choose_device(config.device)
    if config.privacy == "off":
        return
    sizes = {site.name: site.declared for site in checked or ()}
    check_delta(config.privacy.delta, sizes or {"every site": config.federation.patients})
    check_budget(config)


def _accounting(config: RunConfig) -> str:
    if config.privacy == "off":
        return ""  # there is none: every site says so in its own line
    names = ["level", "spread"] if config.moments.enabled else []
    names += ["segmenter"] if config.segment.enabled else []
    names += ["critic"] if config.adversarial.enabled else []
    names += ["paired"] if config.adversarial.enabled and config.adversarial.paired_weight else []
    names += ["metrics"] if config.metrics.enabled else []
    return f"delta {config.privacy.delta:g}, unit: patient, Gaussian mechanisms: {', '.join(names)}"
