"""A Flower grid whose sites are objects of this process: no trainer, no socket, the same rounds."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import torch
from flwr.app import Message
from torch import Tensor

from medsynth_client.site import Site
from medsynth_common.errors import MedsynthError
from medsynth_common.plan import RoundPlan
from medsynth_common.wire.records import plan_from_records, update_to_records
from medsynth_server.arm import ArmTraining
from medsynth_server.checkpoint import Checkpoint
from medsynth_server.config import RunConfig
from medsynth_server.engines.by_messages import ByMessages
from medsynth_server.federation import Federation, SiteGrid
from medsynth_server.flower import error_reply, reply, start_identity
from medsynth_server.progress import LineProgress
from medsynth_server.record import Arm, Event, RunLog, read_events
from medsynth_server.run_folder import RunFolder
from medsynth_server.simulated_arm import SimulatedArm
from medsynth_server.simulated_sites import phantom_sites
from tiny_run import SEED, public_model


@dataclass
class InProcessGrid(ByMessages):
    """Sites in this process, asked one after the other, in the order of their names."""

    folders: Sequence[Path]
    before: Callable[[RoundPlan], None] = lambda plan: None
    after: Callable[[RoundPlan], None] = lambda plan: None
    sites: dict[str, Site] = field(init=False)

    def __post_init__(self) -> None:
        start_identity(run_id=1)
        sites = [Site(folder, device=torch.device("cpu")) for folder in sorted(self.folders)]
        self.sites = {site.file.name: site for site in sites}

    def get_node_ids(self) -> Iterable[int]:
        return [1000 + index for index in range(len(self.sites))]

    def site_of(self, node: int) -> str:
        return list(self.sites)[node - 1000]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        for message in messages:
            plan = plan_from_records(message.content)
            self.before(plan)
            try:
                update = self.sites[plan.header.site].carry(plan)
            except MedsynthError as error:
                yield error_reply(type(error).__name__, message)
            else:
                self.after(plan)
                yield reply(update_to_records(update), message)


@dataclass(frozen=True)
class SmallFederation:
    """The federated part of a tiny run, from a public model that all tests share."""

    path: Path
    config: RunConfig

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def sites(self) -> list[Path]:
        return [self.folder.sites("private") / name for name in ("site-1", "site-2")]

    @property
    def events(self) -> tuple[Event, ...]:
        return read_events(self.folder.metrics)

    def begin(self) -> ArmTraining:
        """Write the sites' files; gives the training."""
        simulated = SimulatedArm(
            arm=Arm.PRIVATE,
            config=self.config,
            folder=self.folder,
            sites=phantom_sites(self.config, seed=SEED),
        )
        simulated.write_sites()
        return simulated.training(
            seed=SEED, log=RunLog(self.folder.metrics), progress=LineProgress(StringIO())
        )

    def train(self, grid: SiteGrid | None = None) -> Mapping[str, Tensor]:
        """Train, or go on; in this process unless another grid is given."""
        training = self.begin()
        federation = Federation(
            arm=Arm.PRIVATE,
            stages=training.stages(public_model()),
            grid=grid if grid is not None else InProcessGrid(self.sites),
            checkpoint=Checkpoint(self.folder.checkpoint("private")),
            log=training.log,
            progress=training.progress,
            deadline=600.0,
        )
        return federation.run(public_model()).tensors
