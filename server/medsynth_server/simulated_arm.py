"""One arm of a simulation: its hospitals' folders here, and the engine that asks them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medsynth_server.arm import ArmTraining, Engine
from medsynth_server.config import RunConfig
from medsynth_server.engines.local import LocalGrid, WorkerSettings
from medsynth_server.progress import Progress
from medsynth_server.record import Arm, RunLog
from medsynth_server.run_folder import RunFolder
from medsynth_server.simulated_sites import SimulatedSite, write_site

EngineName = Literal["local", "flower"]

#: How often a rehearsal asks a site again that has not answered.
_REHEARSAL_REPEATS = 3
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
        engine: trainers alone, or whole hospitals behind a network on loopback.

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
        rehearsed = self.engine == "flower"
        return ArmTraining(
            arm=self.arm,
            config=self.config,
            folder=self.folder,
            sites=[site.name for site in self.sites],
            seed=seed,
            engine=self._rehearsal(progress) if rehearsed else self._trainers,
            log=log,
            progress=progress,
            # A rehearsal is compared with the local engine, in which every site answers or the
            # run ends: whoever was slow or restarted is asked again.
            quorum=len(self.sites) if rehearsed else 1,
            repeats=_REHEARSAL_REPEATS if rehearsed else 0,
        )

    def _trainers(self) -> LocalGrid:
        settings = WorkerSettings(
            device=self.config.device,
            threads=TRAINER_THREADS,
            logs=self.folder.logs / self.arm,
        )
        folders = [self.site_folder(site.name) for site in self.sites]
        return LocalGrid(folders, workers=self.config.workers, settings=settings)

    def _rehearsal(self, progress: Progress) -> Engine:
        from medsynth_server.rehearsal import rehearse

        folders = [self.site_folder(site.name) for site in self.sites]
        return lambda: rehearse(
            self.folder,
            folders,
            logs=self.folder.logs / self.arm,
            device=self.config.device,
            tell=progress.note,
        )
