"""`medsynth-server run`: a federation with real hospitals, from its folder to its results.

    1. open        serve the sites; they may come and go from now on
    2. public      pre-training on phantoms; costs no privacy
    3. private     the stages, round by round, whenever a quorum of sites is in touch
    4. state       what the sites told of their privacy
    5. synthesize  weights and synthetic set
    6. report      without a patient's picture: there is none here

Killed at any moment, the same command goes on from the last finished round.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import torch

from medsynth_common.identity import SigningKey
from medsynth_common.logs import LogFormat, log_to
from medsynth_common.synthetic_set import add_to_dataset
from medsynth_server.arm import ArmTraining, choose_device
from medsynth_server.budget import accounting, check_budget
from medsynth_server.coordinator.enrolment import Enrolment
from medsynth_server.coordinator.folder import FederationFolder, Settings
from medsynth_server.coordinator.logged import LoggedProgress
from medsynth_server.coordinator.opening import Attendance, Premises, opened
from medsynth_server.coordinator.pki import check_server, split_address
from medsynth_server.coordinator.renewal import ends_soon
from medsynth_server.coordinator.status import StatusBoard
from medsynth_server.coordinator.told_privacy import state_told_privacy
from medsynth_server.engines.flower import FlowerGrid
from medsynth_server.progress import Progress, make_progress
from medsynth_server.public_training import train_publicly
from medsynth_server.record import Arm, RunLog
from medsynth_server.report import build_report
from medsynth_server.results import write_results
from medsynth_server.run_folder import RunFolder, open_run


def run_federation(path: Path, *, log_format: LogFormat = "text") -> Path:
    """Run, or go on with, the federation in a folder; gives the report.

    What happens is logged in the folder's `logs/coordinator.log`; with `log_format="json"` its
    lines go to standard error too, in place of the progress that a person looks at.

    Raises:
        BadConfig: settings, keys, certificate or cards cannot be used.
        BadInput: another coordinator serves the folder.
        ConnectionFailed: the address cannot be bound.
        TimedOut: a quorum of sites was not in touch, or did not answer, in time.
        Stopped: `medsynth-server stop` asked for it.

    """
    folder = FederationFolder(path)
    settings = folder.load()
    with ExitStack() as ending:
        ending.enter_context(folder.serving())
        # What asked an earlier process to stop has had its way.
        folder.stop.unlink(missing_ok=True)
        _check(folder, settings)
        to_stderr = log_format == "json"
        ending.callback(
            log_to(
                path,
                "coordinator",
                package="medsynth_server",
                format=log_format,
                echo=to_stderr,
            )
        )
        meaning = accounting(settings.run)
        watching: list[Progress] = [LoggedProgress(meaning)]
        if not to_stderr:
            watching.append(make_progress(accounting=meaning))
        run, seed = ending.enter_context(open_run(folder.run, settings.run))
        running = _Running(folder=folder, settings=settings, run=run, seed=seed, watching=watching)
        running.work()
        return build_report(run.path)


def ask_to_stop(folder: FederationFolder) -> bool:
    """Ask a running coordinator to end after its round; tells whether there is one."""
    if not folder.running:
        return False
    folder.stop.touch()
    return True


@dataclass(frozen=True, kw_only=True)
class _Running:
    folder: FederationFolder
    settings: Settings
    run: RunFolder
    seed: int
    watching: Sequence[Progress]

    def work(self) -> None:
        """Do what is not done yet."""
        config, coordinator = self.settings.run, self.settings.coordinator
        torch.set_num_threads(config.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        stopping: Callable[[], bool] = self.folder.stop.exists
        board = StatusBoard(
            self.folder.status,
            *self.watching,
            federation=coordinator.name,
            quorum=coordinator.quorum,
        )
        enrolment = Enrolment(self.folder.sites)
        premises = Premises(
            database=self.folder.database,
            listen=coordinator.listen,
            certificate=self.folder.server_certificate,
            key=self.folder.server_key,
        )
        attendance = Attendance(
            quorum=coordinator.quorum,
            join_deadline=coordinator.join_deadline,
            tell=board.note,
            stopping=stopping,
        )
        key = SigningKey.load(self.folder.signing_key)
        with (
            board,
            opened(premises, enrolment.cards, key, attendance, on_pulse=board.look) as (grid, _),
        ):
            enrolled = len(enrolment.cards())
            board.note(f"serving at {coordinator.listen}, {enrolled} hospitals enrolled")
            if warning := ends_soon(self.folder):
                board.note(warning)
            self._train(grid, board, sites=list(enrolment.cards()), stopping=stopping)
            board.finished()

    def _train(
        self,
        grid: FlowerGrid,
        board: StatusBoard,
        *,
        sites: list[str],
        stopping: Callable[[], bool],
    ) -> None:
        config = self.settings.run
        record = RunLog(self.run.metrics)
        public = train_publicly(config, self.run, seed=self.seed, log=record, progress=board)
        training = ArmTraining(
            arm=Arm.PRIVATE,
            config=config,
            folder=self.run,
            sites=sites,
            seed=self.seed,
            engine=lambda: nullcontext(grid),
            log=record,
            progress=board,
            quorum=self.settings.coordinator.quorum,
            repeats=self.settings.coordinator.repeats,
            stopping=stopping,
        )
        model = training.run(public)
        state_told_privacy(self.run, config, public, log=record)
        board.set(phase="synthesizing")
        write_results(
            model,
            model.styled_sites or sites,
            config,
            self.run,
            self.run.synthetic,
            seed=self.seed,
            progress=board,
        )
        add_to_dataset(self.run.synthetic, {"release_check": _NOT_CHECKED})


#: What travels with a set that only hospitals can compare with patients.
_NOT_CHECKED: Final = {
    "verdict": "not made",
    "reasons": [
        "No patient is at the coordinator to compare with. Each hospital can compare the set with "
        "its own: medsynth-client release-check."
    ],
}


def _check(folder: FederationFolder, settings: Settings) -> None:
    """Tell now what would otherwise end the run late, or keep every hospital out."""
    host, _ = split_address(settings.coordinator.address)
    name = str(folder.server_certificate)
    check_server(folder.server(), host, name=name, now=datetime.now(UTC))
    SigningKey.load(folder.signing_key)
    Enrolment(folder.sites).cards()
    choose_device(settings.run.device)
    check_budget(settings.run)
