"""One training of a run: its sites, its engine, its stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medsynth_common.errors import BadConfig, Problem
from medsynth_server.budget import plan_budget
from medsynth_server.checkpoint import Checkpoint
from medsynth_server.config import RunConfig
from medsynth_server.engines.local import LocalGrid, WorkerSettings
from medsynth_server.federation import FederatedStage, Federation
from medsynth_server.model import Model
from medsynth_server.progress import Progress
from medsynth_server.record import Arm, RunLog
from medsynth_server.run_folder import RunFolder
from medsynth_server.simulated_sites import SimulatedSite, write_site
from medsynth_server.stages.adversarial import AdversarialStage
from medsynth_server.stages.asking import Asking
from medsynth_server.stages.metrics import MetricsStage
from medsynth_server.stages.moments import MomentsStage
from medsynth_server.stages.segment import SegmentStage

#: A trainer's threads are fixed: sums change with their number, and so would the weights.
_TRAINER_THREADS = 1


def choose_device(name: str) -> torch.device:
    """Turn `auto` into the GPU where there is one, else the CPU.

    Raises:
        BadConfig: a GPU is asked for by name, and there is none.

    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise BadConfig(Problem(name="device", value=name, wanted=f"one of the {gpus} GPUs here"))
    return device


@dataclass(frozen=True, kw_only=True)
class ArmTraining:
    """The federated part of one arm.

    Attributes:
        arm: private or reference.
        config: its settings; the reference differs in privacy alone.
        folder: the run's.
        sites: the simulated hospitals.
        seed: of what is public.
        log: the run's record.
        progress: what a person sees.

    """

    arm: Arm
    config: RunConfig
    folder: RunFolder
    sites: Sequence[SimulatedSite]
    seed: int
    log: RunLog
    progress: Progress

    @property
    def protected(self) -> bool:
        """Whether this arm trains with privacy."""
        return self.config.privacy != "off"

    def site_folder(self, site: str) -> Path:
        """Where a site of this arm keeps what is its own."""
        return self.folder.sites(self.arm) / site

    def write_sites(self) -> None:
        """Write every site's own file.

        Raises:
            BadData: a site has one already, and it speaks of other patients or another policy.

        """
        for site in self.sites:
            write_site(self.site_folder(site.name), site, self.config)

    def run(self, public: Model) -> Model:
        """Train from the public model, or go on from the last finished round."""
        settings = WorkerSettings(
            device=self.config.device,
            threads=_TRAINER_THREADS,
            logs=self.folder.logs / self.arm,
        )
        folders = [self.site_folder(site.name) for site in self.sites]
        with LocalGrid(folders, workers=self.config.workers, settings=settings) as grid:
            return Federation(
                arm=self.arm,
                stages=self.stages(public),
                grid=grid,
                checkpoint=Checkpoint(self.folder.checkpoint(self.arm)),
                log=self.log,
                progress=self.progress,
                deadline=self.config.federation.deadline,
            ).run(public)

    def stages(self, public: Model) -> list[FederatedStage]:
        """Make the enabled stages, in order; `public` says what clips were measured."""
        budget = plan_budget(self.config, public)
        asking = Asking(
            run=f"{self.config.name}-{self.arm}", config=self.config, public_seed=self.seed
        )
        names = [site.name for site in self.sites]
        device = choose_device(self.config.device)
        stages: list[FederatedStage] = []
        if self.config.moments.enabled:
            stages.append(MomentsStage(asking, budget))
        if self.config.segment.enabled:
            stages.append(SegmentStage(asking, budget, sites=names, device=device))
        if self.config.adversarial.enabled:
            stages.append(AdversarialStage(asking, budget))
        if self.config.metrics.enabled:
            stages.append(MetricsStage(asking, budget))
        return stages
