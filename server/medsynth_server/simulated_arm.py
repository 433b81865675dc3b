"""One arm of a simulation: its hospitals' folders here, and the engine that asks them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from medsynth_server.arm import ArmTraining, Engine, choose_device
from medsynth_server.config import RunConfig
from medsynth_server.engines.local import LocalGrid, WorkerSettings
from medsynth_server.federation import SiteGrid
from medsynth_server.progress import Progress
from medsynth_server.record import Arm, RunLog
from medsynth_server.run_folder import RunFolder
from medsynth_server.simulated_sites import SimulatedSite, write_site

EngineName = Literal["local", "flower", "ray"]

#: How often a site that has not answered is asked again, where it is a network or a cluster away.
_REPEATS = 3
#: A trainer's threads are fixed: sums change with their number, and so would the weights.
TRAINER_THREADS = 1


@dataclass(frozen=True, kw_only=True)
class SimulatedArm:
    """The hospitals of one arm.

    Attributes:
        arm: private or reference.
        config: its settings; the reference differs in privacy alone.
        folder: the run's.
        sites: the simulated hospitals.
        engine: trainers alone, whole hospitals behind a network on loopback, or Ray's actors.

    """

    arm: Arm
    config: RunConfig
    folder: RunFolder
    sites: Sequence[SimulatedSite]
    engine: EngineName = "local"

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
        coordinator = None
        if self.engine == "flower":
            from medsynth_server.rehearsal import coordinator_key

            coordinator = coordinator_key(self.folder)
        for site in self.sites:
            write_site(self.site_folder(site.name), site, self.config, coordinator=coordinator)

    def training(self, *, seed: int, log: RunLog, progress: Progress) -> ArmTraining:
        """The arm's training, from `seed` for all that is public."""
        engines: dict[EngineName, Engine] = {
            "local": self._trainers,
            "flower": lambda: self._rehearsal(progress),
            "ray": self._actors,
        }
        return ArmTraining(
            arm=self.arm,
            config=self.config,
            folder=self.folder,
            sites=[site.name for site in self.sites],
            seed=seed,
            engine=engines[self.engine],
            log=log,
            progress=progress,
            # Compared with the local engine, in which a site that was not refused answers:
            # whoever was slow or restarted is asked again.
            quorum=1 if self.engine == "local" else len(self.sites),
            repeats=0 if self.engine == "local" else _REPEATS,
        )

    @property
    def _folders(self) -> list[Path]:
        return [self.site_folder(site.name) for site in self.sites]

    @property
    def _settings(self) -> WorkerSettings:
        return WorkerSettings(
            device=self.config.device,
            threads=TRAINER_THREADS,
            logs=self.folder.logs / self.arm,
        )

    def _trainers(self) -> LocalGrid:
        return LocalGrid(self._folders, workers=self.config.workers, settings=self._settings)

    def _actors(self) -> AbstractContextManager[SiteGrid]:
        from medsynth_server.engines.ray import ray_grid

        gpus = 0 if choose_device(self.config.device).type == "cpu" else torch.cuda.device_count()
        return ray_grid(
            self._folders, workers=self.config.workers, gpus=gpus, settings=self._settings
        )

    def _rehearsal(self, progress: Progress) -> AbstractContextManager[SiteGrid]:
        from medsynth_server.rehearsal import rehearse

        return rehearse(
            self.folder,
            self._folders,
            logs=self.folder.logs / self.arm,
            device=self.config.device,
            tell=progress.note,
        )
