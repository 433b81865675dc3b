"""The trainer: the process that holds patients and GPU, and no network.

It serves its sites on a Unix socket until its parent goes away. One plan at a time: sites that
share a machine take turns.
"""

import grp
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import torch

from medsynth_client.hash_chain import exclusive
from medsynth_client.retention import TRAINER, tidy
from medsynth_client.site import Site
from medsynth_client.site_file import SiteFile
from medsynth_client.status_file import forget_step
from medsynth_common import __version__
from medsynth_common.allocator import keep_freed_memory
from medsynth_common.durable import sweep
from medsynth_common.errors import BadConfig, BadMessage, Problem, Refused, WrongAddress
from medsynth_common.update import SiteUpdate
from medsynth_common.wire.parts import (
    failure_part,
    plan_from_parts,
    update_parts,
)
from medsynth_common.wire.site_pb2 import Description, PlanPart, UpdatePart
from medsynth_common.wire.trainer_rpc import serve

log = logging.getLogger(__name__)

_TAKE_OVER_SECONDS: Final = 60.0


class Trainer:
    """Several sites behind one socket (one, at a hospital).

    Args:
        folders: the sites'.
        device: to train on.
        shared: open a site for one plan at a time, so that other trainers may hold it between.

    """

    def __init__(
        self, folders: Sequence[Path], *, device: torch.device, shared: bool = False
    ) -> None:
        names = [SiteFile.load(folder / "site.toml").name for folder in folders]
        self._folders = dict(zip(names, folders, strict=True))
        if len(self._folders) < len(folders):
            raise BadConfig(
                Problem(name="sites", value=str(sorted(names)), wanted="each name once")
            )
        self._device = device
        held = {} if shared else self._folders
        self._held = {name: Site(folder, device=device) for name, folder in held.items()}
        self._turn = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether a plan is being carried out."""
        return self._turn.locked()

    def describe(self) -> Description:
        """Tell which sites are here."""
        return Description(sites=sorted(self._folders), version=__version__)

    def carry(self, parts: Iterable[PlanPart]) -> Iterator[UpdatePart]:
        """Carry out one plan; whatever goes wrong leaves as the error's name alone."""
        try:
            yield from update_parts(self._answer(parts))
        except (BadMessage, Refused) as error:
            # These speak of plans and limits, never of a patient.
            log.warning("%s: %s", type(error).__name__, error)
            yield failure_part(error)
        except Exception as error:
            # The edge: the trainer must stay up, and no log may hold a patient's name either.
            log.error("a plan could not be carried out: %s", _without_text(error))
            yield failure_part(error)

    def _answer(self, parts: Iterable[PlanPart]) -> SiteUpdate:
        try:
            plan = plan_from_parts(parts)
            self._require_here(plan.header.site)
        except (BadMessage, WrongAddress) as error:
            # It names no site here, so it may have been meant for any: each writes it down.
            with self._turn:
                for name in self._folders:
                    with self._opened(name) as site:
                        site.refuse(error)
            raise
        with self._turn, self._opened(plan.header.site) as site:
            return site.carry(plan)

    def _require_here(self, name: str) -> None:
        if name not in self._folders:
            wanted = f"one of {sorted(self._folders)}"
            raise WrongAddress(str(Problem(name="plan: site", value=name, wanted=wanted)))

    @contextmanager
    def _opened(self, name: str) -> Iterator[Site]:
        """A site that is held anyway, or opened for as long as the block."""
        if name in self._held:
            yield self._held[name]
            return
        folder = self._folders[name]
        with exclusive(folder / TRAINER, timeout=_TAKE_OVER_SECONDS):
            sweep(folder)
            yield Site(folder, device=self._device)


def _without_text(error: Exception) -> str:
    """Tell an error's name and where it came from, not what it says."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__} at {places}"


def choose_device(name: str) -> torch.device:
    """Turn `auto` into the GPU where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        wanted = "auto, cpu, cuda or cuda:N"
        raise BadConfig(Problem(name="device", value=name, wanted=wanted)) from error


def _require_private(folder: Path, group: int | None) -> None:
    """Raise `BadConfig` unless this user alone, or with it `group`, can enter the socket's folder.

    gRPC does not say which user calls. The kernel does not let another one call: to connect, the
    socket's folder must be entered (0700) and the socket be written to (0600). Root may, as
    everywhere. A group is for a node that runs as another user: then they are 0750 and 0660.
    """
    found = folder.stat()
    others = 0o077 if group is None else 0o027
    ours = found.st_uid == os.getuid() and group in (None, found.st_gid)
    if ours and not found.st_mode & others:
        return
    whose = "the trainer's own user" if group is None else f"its own user and group {group}"
    mode = "700" if group is None else "750"
    problem = Problem(
        name=str(folder),
        value=f"mode {found.st_mode & 0o777:04o}, owner {found.st_uid}, group {found.st_gid}",
        wanted=f"a folder that only {whose} can enter",
        mend=f"mkdir -m {mode} a folder for the socket alone, as user {os.getuid()}",
    )
    raise BadConfig(problem)


def group_of(name: str) -> int:
    """Give the id of a group of this system. Raises `BadConfig` when there is none."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        wanted = "a group of this system"
        raise BadConfig(Problem(name="--socket-group", value=name, wanted=wanted)) from error


def run_trainer(
    folders: Sequence[Path],
    socket: Path,
    *,
    device: str,
    threads: int,
    watch_parent: bool,
    group: int | None = None,
    shared: bool = False,
    rehearsal: bool = False,
) -> None:
    """Serve until told to stop; with `watch_parent`, until standard input closes.

    `group` may call too, besides this user: a node of another user's. `shared` sites are held for
    one plan at a time. In a `rehearsal` a hospital's noise may be a seed's.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    # Which kernel runs must not depend on what ran before: the same plan, the same weights.
    torch.use_deterministic_algorithms(True, warn_only=True)
    with ExitStack() as held:
        for folder in () if shared else folders:
            site = SiteFile.load(folder / "site.toml")  # a mistyped folder is told, not made
            if not rehearsal and (problem := site.rehearsal_problem):
                raise BadConfig(problem)
            # One trainer a site: one whose parent died may still be ending.
            held.enter_context(exclusive(folder / TRAINER, timeout=_TAKE_OVER_SECONDS))
            sweep(folder)
            forget_step(folder)
            for removed in tidy(folder, retention_days=site.policy.retention_days):
                log.info("removed, unused for %s days: %s", site.policy.retention_days, removed)
        _require_private(socket.parent, group)
        trainer = Trainer(folders, device=choose_device(device), shared=shared)
        server = serve(trainer, socket, group=group)
        try:
            if watch_parent:
                # The parent holds the other end; however it dies, this read returns.
                sys.stdin.buffer.read()
            else:
                server.wait_for_termination()
        finally:
            server.stop(grace=None)
            socket.unlink(missing_ok=True)
        if trainer.busy:
            # Nobody waits for this plan's answer any more. Whoever asks again must not find the
            # site taken until it is done, and a site is built to survive a sudden end.
            os._exit(1)
