"""The cluster engine: Flower's simulation runtime, whose actors Ray spreads over machines.

An actor is Flower's and holds nothing. What trains is the client's own `medsynth-client trainer`,
started by each actor for itself as in the local engine, and resident; since the runtime gives a
node's message to whichever actor is free, a trainer here holds a site for one plan at a time, and
what must last is in the site's folder. On a cluster that folder is on a disk that all machines see.
"""

import functools
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from medsynth_common.errors import StorageFailed, TimedOut, TrainerDied
from medsynth_server.engines.by_messages import ByMessages
from medsynth_server.engines.local import Worker, WorkerSettings
from medsynth_server.flower import error_reply, start_identity
from medsynth_server.flower.simulation import simulation_grid

log = logging.getLogger(__name__)

_POLL: Final = 0.05
#: What an error of ours is called; the runtime's own errors come with a text.
_ERROR_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9]{0,63}")


@contextmanager
def ray_grid(
    sites: Sequence[Path], *, workers: int, gpus: int, settings: WorkerSettings
) -> Iterator["RayGrid"]:
    """Start the runtime; gives the grid of the sites, for as long as the block.

    Args:
        sites: their folders.
        workers: actors on this machine, each with a trainer.
        gpus: on this machine, shared by all actors; none for training on CPUs.
        settings: of the trainers.

    """
    folders = sorted(site.resolve() for site in sites)
    hands = min(workers, len(folders))
    app = _app(tuple(folders), replace(settings, shared=True, logs=settings.logs.resolve()))
    share = min(1.0, gpus / hands)
    with simulation_grid(app, nodes=len(folders), actors=hands, gpus=share) as grid:
        yield RayGrid(grid, [folder.name for folder in folders])


def _app(folders: tuple[Path, ...], settings: WorkerSettings) -> ClientApp:
    """What a node does in an actor: hand the plan to the actor's trainer."""
    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator] # flwr ships no types that mypy follows
    def train(message: Message, context: Any) -> Message:
        start_identity(message.metadata.run_id)
        left = message.metadata.created_at + message.metadata.ttl - time.time()
        try:
            return _worker(folders, settings).carry(message, timeout=max(1.0, left))
        except StorageFailed as error:
            log.error("%s", error)
            return error_reply(StorageFailed.__name__, message)

    return app


@functools.cache
def _worker(folders: tuple[Path, ...], settings: WorkerSettings) -> Worker:
    """This actor's trainer, which ends with it."""
    return Worker(f"trainer-{os.getpid()}", folders, settings)


class RayGrid(ByMessages):
    """Sites behind the runtime's nodes."""

    def __init__(self, grid: Grid, sites: Sequence[str]) -> None:
        self._grid = grid
        # Any node will do for any site: whose plan it is stands in the plan.
        self._sites: dict[int, str] = dict(zip(sorted(grid.get_node_ids()), sites, strict=True))

    def get_node_ids(self) -> Iterable[int]:
        """Every site's node."""
        return list(self._sites)

    def site_of(self, node: int) -> str:
        """The name of a node's site."""
        return self._sites[node]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Ask, and give answers as they come; whoever has not answered in time is `TimedOut`.

        Raises:
            StorageFailed: a site could not write, as in the local engine.

        """
        end = time.monotonic() + timeout if timeout is not None else float("inf")
        questions: dict[str, Message] = {}
        for message in messages:
            (name,) = self._grid.push_messages([message])
            questions[name] = message
        while questions and time.monotonic() < end:
            for answer in self._grid.pull_messages(list(questions)):
                question = questions.pop(answer.metadata.reply_to_message_id)
                yield _usable(answer, question)
            time.sleep(_POLL)
        for question in questions.values():
            yield error_reply(TimedOut.__name__, question)


def _usable(answer: Message, question: Message) -> Message:
    if not answer.has_error():
        return answer
    reason = str(answer.error.reason)
    if reason == StorageFailed.__name__:
        raise StorageFailed("a site's folder takes no more: its trainer's log says where")
    if _ERROR_NAME.fullmatch(reason):
        return error_reply(reason, question)
    log.warning("an actor failed: %s", reason)
    return error_reply(TrainerDied.__name__, question)
