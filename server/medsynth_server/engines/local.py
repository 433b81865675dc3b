"""The local engine: a Flower `Grid` whose nodes are sites held by trainer processes here.

Sites are dealt to `workers` resident processes, each the client's own `medsynth-client trainer`.
They keep what they hold (patients, critic, optimizers) from round to round. A process that dies
is started again and asked again; its site charges the repeated round or gives its stored answer.
"""

import itertools
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import grpc
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from medsynth_common.errors import (
    BadMessage,
    Problem,
    StorageFailed,
    TimedOut,
    TrainerDied,
)
from medsynth_common.plan import RoundPlan
from medsynth_common.update import SiteUpdate
from medsynth_common.wire.parts import plan_parts, update_from_parts
from medsynth_common.wire.records import plan_from_records, update_to_records
from medsynth_common.wire.trainer_rpc import TrainerClient
from medsynth_server.flower import (
    error_reply,
    give_message_id,
    reply,
    start_identity,
    train_message,
)

log = logging.getLogger(__name__)

#: How often a trainer may die within one answer before its site is given up for the round.
_TRIES = 3
#: The names under which a site says that it could not write.
_STORAGE = {OSError.__name__, StorageFailed.__name__}
_START_SECONDS = 120.0
_LOOK_SECONDS = 1.0
_STOP_SECONDS = 10.0
_FIRST_NODE = 1000


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How trainer processes are started.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:N`.
        threads: CPU threads of each; fixed, since sums change with the number of threads.
        logs: folder for what they print.
        shared: let several trainers hold the same sites, a plan at a time each.

    """

    device: str
    threads: int
    logs: Path
    shared: bool = False


class Worker:
    """One trainer process and the sites it holds; started when first asked."""

    def __init__(self, name: str, sites: Sequence[Path], settings: WorkerSettings) -> None:
        self.name, self._sites, self._settings = name, list(sites), settings
        self._process: subprocess.Popen[bytes] | None = None
        self._client: TrainerClient | None = None
        self._folder: Path | None = None
        self._log: IO[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process, when it is running."""
        return self._process.pid if self._process else None

    def carry(self, message: Message, *, timeout: float) -> Message:
        """Do as `ask` does, from message to message."""
        answer = self.ask(plan_from_records(message.content), timeout=timeout)
        if isinstance(answer, str):
            return error_reply(answer, message)
        return reply(update_to_records(answer), message)

    def ask(self, plan: RoundPlan, *, timeout: float) -> SiteUpdate | str:
        """Send one plan, wait for the answer; start the process as often as needed.

        Gives the update, or the name of an error.

        Raises:
            StorageFailed: the site could not write. Its disk is the run's own: to go on without
                the site would be to finish another experiment than was asked for.

        """
        for attempt in range(1, _TRIES + 1):
            try:
                client = self._running()
                answer = update_from_parts(client.carry(plan_parts(plan), timeout=timeout))
                if isinstance(answer, SiteUpdate):
                    return answer
            except grpc.RpcError as error:
                code = error.code()
                self.stop()
                if code is grpc.StatusCode.DEADLINE_EXCEEDED:
                    return TimedOut.__name__
                log.warning("trainer %s died (attempt %d): %s", self.name, attempt, code)
            except TrainerDied as error:
                self.stop()
                log.warning("trainer %s did not start (attempt %d): %s", self.name, attempt, error)
            except BadMessage as error:
                log.warning("trainer %s sent no usable update: %s", self.name, error)
                return BadMessage.__name__
            else:
                if answer in _STORAGE:
                    raise StorageFailed(str(self._no_room(plan.header.site)))
                return answer
        return TrainerDied.__name__

    def stop(self) -> None:
        """End the process; it notices that its standard input closed."""
        if self._client is not None:
            self._client.close()
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._log is not None:
            self._log.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._process = self._client = self._log = self._folder = None

    def _running(self) -> TrainerClient:
        if self._client is not None:
            return self._client
        # A Unix socket's path holds about 100 characters, and a run's folder may be deep.
        self._folder = Path(tempfile.mkdtemp(prefix="medsynth-"))
        socket = self._folder / "trainer.sock"
        self._settings.logs.mkdir(parents=True, exist_ok=True)
        self._log = (self._settings.logs / f"{self.name}.log").open("ab")
        command = [
            *(sys.executable, "-m", "medsynth_client", "trainer"),
            *(argument for site in self._sites for argument in ("--site", str(site))),
            *("--socket", str(socket)),
            *("--device", self._settings.device),
            *("--threads", str(self._settings.threads)),
            "--watch-parent",
            *(("--shared",) if self._settings.shared else ()),
        ]
        threads = str(self._settings.threads)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        )
        self._client = TrainerClient(socket)
        self._wait_until_up(self._client, self._process)
        return self._client

    def _no_room(self, site: str) -> Problem:
        return Problem(
            name=site,
            value="a disk that takes no more",
            wanted="a disk with room",
            mend=f"where it failed is in {self._settings.logs / self.name}.log",
        )

    def _wait_until_up(self, client: TrainerClient, process: subprocess.Popen[bytes]) -> None:
        """Wait for the first answer, but not for one that a dead process cannot give."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                client.describe(timeout=_LOOK_SECONDS)
            except grpc.RpcError as error:
                if (status := process.poll()) is not None:
                    raise TrainerDied(f"exit status {status}, see {self.name}.log") from error
                late = time.monotonic() > deadline
                if late or error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
            else:
                return


class LocalGrid(Grid):  # type: ignore[misc] # flwr ships no types that mypy follows
    """A Flower grid of sites on this machine. Use it as a context manager."""

    def __init__(self, sites: Sequence[Path], *, workers: int, settings: WorkerSettings) -> None:
        folders = sorted(sites)
        hands = min(workers, len(folders))
        self.workers = [
            Worker(f"trainer-{index}", folders[index::hands], settings) for index in range(hands)
        ]
        self._nodes = {_FIRST_NODE + index: folder.name for index, folder in enumerate(folders)}
        self._worker_of = {
            node: self.workers[index % hands] for index, node in enumerate(sorted(self._nodes))
        }
        # One thread a worker: it works on one plan at a time.
        self._hands = {worker.name: ThreadPoolExecutor(1) for worker in self.workers}
        self._waiting: dict[str, Future[Message]] = {}
        self._numbers = itertools.count(1)
        self._timeout = 3600.0
        self._run = start_identity(run_id=1)

    def __enter__(self) -> "LocalGrid":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # All at once: each takes a second or two to end. Not by their own hands, which may wait for
        # an answer that only the end cuts short.
        with ThreadPoolExecutor(len(self.workers)) as stopping:
            list(stopping.map(Worker.stop, self.workers))
        for hand in self._hands.values():
            hand.shutdown(wait=True, cancel_futures=True)

    def set_run(self, run: Any) -> None:
        """Take the run's identity."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run's identity."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Address a plan to a site."""
        return train_message(content, dst_node_id)

    def get_node_ids(self) -> Iterable[int]:
        """Every site's node."""
        return list(self._nodes)

    def site_of(self, node: int) -> str:
        """The name of a node's site."""
        return self._nodes[node]

    def ask(
        self, plans: Mapping[int, RoundPlan], *, timeout: float
    ) -> Iterator[tuple[int, SiteUpdate | str]]:
        """Ask sites, in order; gives each one's update, or the name of an error in its place.

        Plans go to the trainers as they are: as messages they would be packed and unpacked once
        more on their way down, and updates on their way up.
        """
        asked = {
            node: self._hands[(worker := self._worker_of[node]).name].submit(
                worker.ask, plan, timeout=timeout
            )
            for node, plan in plans.items()
        }
        for node in list(asked):
            yield node, asked.pop(node).result()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the sites' workers."""
        names = []
        for message in messages:
            name = f"message-{next(self._numbers)}"
            give_message_id(message, name)
            worker = self._worker_of[message.metadata.dst_node_id]
            self._waiting[name] = self._hands[worker.name].submit(
                worker.carry, message, timeout=self._timeout
            )
            names.append(name)
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Give the answers that are there."""
        for name in [name for name in message_ids if name in self._waiting]:
            if self._waiting[name].done():
                yield self._waiting.pop(name).result()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Ask and wait; answers come in the order of the questions, so that sums repeat."""
        self._timeout = timeout if timeout is not None else self._timeout
        for name in list(self.push_messages(messages)):
            yield self._waiting.pop(name).result()
