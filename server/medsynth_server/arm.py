"""One training of a run: its sites, its engine, its stages."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from medsynth_common.errors import BadConfig, Problem
from medsynth_server.budget import plan_budget
from medsynth_server.checkpoint import Checkpoint
from medsynth_server.config import RunConfig
from medsynth_server.federation import FederatedStage, Federation, SiteGrid
from medsynth_server.model import Model
from medsynth_server.progress import Progress
from medsynth_server.record import Arm, RunLog
from medsynth_server.run_folder import RunFolder
from medsynth_server.stages.adversarial import AdversarialStage
from medsynth_server.stages.asking import Asking
from medsynth_server.stages.metrics import MetricsStage
from medsynth_server.stages.moments import MomentsStage
from medsynth_server.stages.segment import SegmentStage

#: Opens the way to the sites, for as long as they are asked.
Engine = Callable[[], AbstractContextManager[SiteGrid]]


def choose_device(name: str) -> torch.device:
    """Turn `auto` into the GPU where there is one, else the CPU.

    Raises:
        BadConfig: a GPU is asked for by name, and there is none; or it is no device's name.

    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        wanted = "auto, cpu, cuda or cuda:N"
        raise BadConfig(Problem(name="device", value=name, wanted=wanted)) from error
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
        sites: the names of those that take part.
        seed: of what is public.
        engine: how they are reached.
        log: the run's record.
        progress: what a person sees.
        quorum: how many sites must answer a round.
        repeats: how often a round without a quorum is asked again.
        stopping: whether to end after the round.

    """

    arm: Arm
    config: RunConfig
    folder: RunFolder
    sites: Sequence[str]
    seed: int
    engine: Engine
    log: RunLog
    progress: Progress
    quorum: int = 1
    repeats: int = 0
    stopping: Callable[[], bool] = lambda: False

    def run(self, public: Model) -> Model:
        """Train from the public model, or go on from the last finished round."""
        with self.engine() as grid:
            return Federation(
                arm=self.arm,
                stages=self.stages(public),
                grid=grid,
                checkpoint=Checkpoint(self.folder.checkpoint(self.arm)),
                log=self.log,
                progress=self.progress,
                deadline=self.config.federation.deadline,
                quorum=self.quorum,
                repeats=self.repeats,
                stopping=self.stopping,
            ).run(public)

    def stages(self, public: Model) -> list[FederatedStage]:
        """Make the enabled stages, in order; `public` says what clips were measured."""
        budget = plan_budget(self.config, public)
        asking = Asking(
            run=f"{self.config.name}-{self.arm}", config=self.config, public_seed=self.seed
        )
        device = choose_device(self.config.device)
        stages: list[FederatedStage] = []
        if self.config.moments.enabled:
            stages.append(MomentsStage(asking, budget))
        if self.config.segment.enabled:
            stages.append(SegmentStage(asking, budget, sites=self.sites, device=device))
        if self.config.adversarial.enabled:
            stages.append(AdversarialStage(asking, budget))
        if self.config.metrics.enabled:
            stages.append(MetricsStage(asking, budget))
        return stages
