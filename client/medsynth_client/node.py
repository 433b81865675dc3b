"""The node: the one process of a hospital that talks to the outside. It holds no patients.

It asks the coordinator for plans over HTTPS, hands each to the trainer, looks again at what the
trainer gives back, and sends that. It runs no code that it was sent, and opens no port.
"""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from flwr.app import RecordDict

from medsynth_client.connection import load_card, tls_context
from medsynth_client.flower import PLAN, Fleet, Question, RunEnded
from medsynth_client.node_key import NODE_ID, NODE_KEY, load_node_key
from medsynth_client.recheck import TrainerRefused, check_again
from medsynth_client.site_file import SiteFile
from medsynth_client.status_file import StatusFile
from medsynth_client.trainer_link import TrainerLink
from medsynth_client.watching import end_with_parent
from medsynth_common.durable import write_bytes
from medsynth_common.errors import (
    CodeRefused,
    ConnectionFailed,
    MedsynthError,
    UnknownWork,
    Unreachable,
)
from medsynth_common.plan import RoundPlan
from medsynth_common.update import SiteUpdate
from medsynth_common.wire.records import plan_from_records, update_to_records

log = logging.getLogger(__name__)

#: How long the first connection of a run is tried for, seconds.
FIRST_PATIENCE: Final = 6.0
#: Between two questions for work, seconds: short after an answer, when the next round may be near,
#: then longer by this factor each time, so that a node that has long waited asks once a second.
_FIRST_POLL: Final = 0.05
_POLL_GROWTH: Final = 1.15
_LONGEST_POLL: Final = 1.0
_BEAT_SECONDS: Final = 20.0
#: Longer than a coordinator takes to notice that a node has left.
_RELEASE_SECONDS: Final = 2.0
_LONGEST_WAIT: Final = 60.0
#: How often one request's answer is sent, before the node joins anew and is asked again.
_PUSH_TRIES: Final = 8


class Trainer(Protocol):
    """What carries plans out."""

    def carry(self, plan: RoundPlan, *, timeout: float) -> SiteUpdate | str:
        """Give the update, or the name of an error."""


class Node:
    """One site's node.

    Args:
        folder: the site's.
        fleet: the connection.
        trainer: whom plans are handed to.
        sleep: waits; a test's does not.

    """

    def __init__(
        self,
        folder: Path,
        fleet: Fleet,
        trainer: Trainer,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._folder = folder
        self._site = SiteFile.load(folder / "site.toml")
        self._fleet = fleet
        self._trainer = trainer
        self._sleep = sleep
        self._status = StatusFile(folder, "node")
        self._lost = threading.Event()
        self._poll = _FIRST_POLL

    def serve(self, *, keep_trying: bool) -> None:
        """Join, then answer for ever. Ends by SystemExit, or as `join` does."""
        self._status.begin(phase="connecting")
        node = self.join(patience=None if keep_trying else FIRST_PATIENCE)
        with self._beating():
            try:
                while True:
                    self._turn()
            finally:
                # A second signal must not keep the coordinator from learning that we leave.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                self._leave(node)

    def join(self, *, patience: float | None) -> int:
        """Join the federation; gives the node's id.

        Args:
            patience: how long to try, seconds; None to go on for ever.

        Raises:
            ConnectionFailed: the time is over, or, with a `patience`, trying again is no use.

        """
        began, wait = time.monotonic(), 1.0
        while True:
            try:
                node = self._join_once()
            except ConnectionFailed as error:
                over = patience is not None and (
                    not isinstance(error, Unreachable)
                    or time.monotonic() + wait - began >= patience
                )
                if over:
                    self._status.set(phase="stopped", error=type(error).__name__, reason=str(error))
                    raise
                self._trouble(error, wait)
                self._sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            else:
                self._lost.clear()
                log.info("connected to the coordinator as node %d", node)
                self._status.set(phase="waiting", connected_since=time.time(), reason="")
                return node

    def _join_once(self) -> int:
        path = self._folder / NODE_ID
        # What an earlier process of ours left open would be held for a minute, and its lost message
        # awaited for the whole round.
        if path.exists() and self._fleet.deactivate(int(path.read_text())):
            log.info("ended the session that an earlier process left open")
            self._sleep(_RELEASE_SECONDS)
        node = self._fleet.activate()
        write_bytes(path, f"{node}\n".encode())
        return node

    def _turn(self) -> None:
        """Take one message and answer it; wait a moment when there is none."""
        try:
            if self._lost.is_set():
                raise Unreachable("the coordinator does not know this node any more")
            question = self._fleet.pull()
        except ConnectionFailed as error:
            # A message may have been lost on its way here. To leave and to join says so.
            self._trouble(error, 0.0)
            self.join(patience=None)
            return
        if question is None:
            self._sleep(self._poll)
            self._poll = min(_LONGEST_POLL, _POLL_GROWTH * self._poll)
            return
        self._poll = _FIRST_POLL
        try:
            self._answer(question)
        except RunEnded:
            log.info("the coordinator has ended the run; its message is dropped")
        except ConnectionFailed as error:
            # The trainer keeps its answer: asked again, it gives the same without a new charge.
            log.warning("an answer was not delivered: %s", error)
            self.join(patience=None)
        self._status.set(phase="waiting")

    def _answer(self, question: Question) -> None:
        answer: RecordDict | str
        try:
            answer = update_to_records(self._carry(question))
        except (ConnectionFailed, RunEnded):
            raise
        except MedsynthError as error:
            answer = self._refusal(question, error)
        except Exception as error:
            # The edge: the node must stay up, and only a name may leave.
            answer = self._refusal(question, error)
        self._status.set(phase="sending")
        self._send(question, answer)

    def _carry(self, question: Question) -> SiteUpdate:
        if question.kind != PLAN:
            raise UnknownWork(f"a message of kind {question.kind[:40]!r}, wanted {PLAN!r}")
        if self._fleet.brings_code(question):
            raise CodeRefused("the run has an app (FAB); this site runs what it installed")
        plan = plan_from_records(self._fleet.content(question))
        header = plan.header
        known = {"run": header.run, "stage": str(header.stage), "round": header.round}
        log.info("%s: %s round %d asked", header.run, header.stage, header.round, extra=known)
        self._status.set(phase="training", **known)
        answer = self._trainer.carry(plan, timeout=max(1.0, question.expires - time.time()))
        update = check_again(answer, plan, self._site)
        log.info("%s: %s round %d done", header.run, header.stage, header.round, extra=known)
        self._status.set(
            error="", epsilon=update.header.epsilon, cap=update.header.cap, answered=time.time()
        )
        return update

    def _refusal(self, question: Question, error: Exception) -> str:
        name = error.name if isinstance(error, TrainerRefused) else type(error).__name__
        log.warning("not answered: %s", error if isinstance(error, MedsynthError) else name)
        self._status.set(error=name)
        return str(name)

    def _send(self, question: Question, answer: RecordDict | str) -> None:
        for attempt in range(_PUSH_TRIES):
            try:
                return self._fleet.answer(question, answer)
            except Unreachable as error:
                if attempt == _PUSH_TRIES - 1:
                    raise
                wait = min(2.0**attempt, _LONGEST_WAIT)
                self._trouble(error, wait)
                self._sleep(wait)
        return None

    def _trouble(self, error: ConnectionFailed, wait: float) -> None:
        log.warning("no connection, trying again in %.0f s: %s", wait, error)
        self._status.set(phase="reconnecting", error=type(error).__name__, reason=str(error))

    def _leave(self, node: int) -> None:
        try:
            self._fleet.deactivate(node)
        except ConnectionFailed as error:
            log.info("left without saying so: %s", error)
        self._status.set(phase="stopped")
        log.info("disconnected")

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Tell the coordinator that this node lives, however long a plan takes."""
        done = threading.Event()

        def beat() -> None:
            wait = _BEAT_SECONDS
            while not done.wait(wait):
                try:
                    if not self._fleet.heartbeat():
                        self._lost.set()
                    wait = _BEAT_SECONDS
                except ConnectionFailed:
                    wait = _BEAT_SECONDS / 4  # the main loop says why

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()


def run_node(folder: Path, socket: Path, *, keep_trying: bool, watch_parent: bool) -> None:
    """Serve the site in `folder` until SIGTERM or, with `watch_parent`, the parent's end."""
    site = SiteFile.load(folder / "site.toml")
    card = load_card(folder)
    key = load_node_key(folder / NODE_KEY)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if watch_parent:
        end_with_parent()
    context = tls_context(card, site.connection.extra_ca)
    with Fleet(card.address, key=key, context=context) as fleet:
        Node(folder, fleet, TrainerLink(socket)).serve(keep_trying=keep_trying)
