"""`medsynth-client run`: a site's two processes, started, watched, and started again.

    NODE      network, no patients      either may be killed at any moment: the other goes on,
    TRAINER   patients, no network      and what was being asked costs one update, told by name

The trainer is under the node: its socket lies in a folder that this user alone can enter.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from medsynth_client.connection import load_card
from medsynth_client.credentials import SIGNING_KEY
from medsynth_client.hash_chain import exclusive
from medsynth_client.node_key import NODE_ID, NODE_KEY, load_node_key
from medsynth_client.site_file import SiteFile
from medsynth_client.status_file import StatusFile
from medsynth_common.errors import BadConfig, Problem, TimedOut
from medsynth_common.identity import SigningKey
from medsynth_common.logs import LogFormat

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.2
_STOP_SECONDS: Final = 15.0
_LONGEST_WAIT: Final = 60.0
#: After so long a life an end counts as the first, seconds.
_HEALTHY_SECONDS: Final = 600.0
#: Ends that another start would only repeat: no connection or key, bad input, refused.
_FINAL: Final = frozenset({2, 4, 5})


@dataclass(kw_only=True)
class Child:
    """One supervised process, which ends when its standard input does.

    Attributes:
        name: node or trainer.
        command: what to run.
        again: added to the command when it is started again.

    """

    name: str
    command: Sequence[str]
    again: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    ends: int = 0
    wait_until: float = field(default=0.0)

    def start(self, *, again: bool = False) -> None:
        """Start the process, in a session of its own: Ctrl-C is its parent's to handle."""
        self.process = subprocess.Popen(
            [*self.command, *(self.again if again else ())],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self.started = time.monotonic()

    def ended(self) -> int | None:
        """The exit status of a process that has just ended, negative for a signal; else None."""
        if self.process is None or (code := self.process.poll()) is None:
            return None
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process = None
        healthy = time.monotonic() - self.started > _HEALTHY_SECONDS
        self.ends = 1 if healthy else self.ends + 1
        self.wait_until = time.monotonic() + min(2.0 ** (self.ends - 1), _LONGEST_WAIT)
        return code

    @property
    def due(self) -> bool:
        """Whether it is down and its time to be started again has come."""
        return self.process is None and time.monotonic() >= self.wait_until

    def stop(self) -> None:
        """End it: the node says good-bye, a trainer may be cut off anywhere."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("the %s does not end; killed", self.name)
            self.process.kill()
            self.process.wait()
        self.process = None


def run_site(
    folder: Path, *, device: str, threads: int, log_format: LogFormat, rehearsal: bool = False
) -> None:
    """Run a site until SIGTERM or SIGINT; in a `rehearsal` its noise may be a seed's.

    Raises:
        BadConfig: the folder is no whole site, or the site runs already.
        SystemExit: a process ended for good, and has said why; with its exit code.

    """
    _check(folder, rehearsal=rehearsal)
    # Back to as it was: whoever starts us in the background may have had it ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    with _alone(folder), _socket_folder() as sockets:
        allowed = ("--rehearsal",) if rehearsal else ()
        children = _children(folder, sockets / "trainer.sock", device, threads, log_format, allowed)
        status = StatusFile(folder, "run")
        status.begin(phase="running", started=time.time(), socket=str(sockets / "trainer.sock"))
        try:
            for child in children:
                child.start()
            _watch(children, status, joined=folder / NODE_ID)
        finally:
            log.info("stopping")
            for child in reversed(children):  # the node first: it says good-bye
                child.stop()
            status.set(phase="stopped", socket="")


def _watch(children: Sequence[Child], status: StatusFile, *, joined: Path) -> None:
    began = time.time()
    while True:
        for child in children:
            code = child.ended()
            if code is not None:
                _note(child, code, status)
            if child.due:
                # Only a node that was in may try for days: at first, a fault should be seen.
                again = joined.exists() and joined.stat().st_mtime >= began
                child.start(again=again)
        time.sleep(_LOOK_SECONDS)


def _note(child: Child, code: int, status: StatusFile) -> None:
    if code in _FINAL:
        log.info("the %s ended with exit code %d", child.name, code)
        sys.exit(code)
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    wait = max(0.0, child.wait_until - time.monotonic())
    log.error("the %s died (%s); started again in %.0f s", child.name, how, wait)
    died = {f"{child.name}_died": how, f"{child.name}_restarts": child.ends}
    status.set(**died)


def _children(
    folder: Path,
    socket: Path,
    device: str,
    threads: int,
    log_format: LogFormat,
    allowed: Sequence[str],
) -> list[Child]:
    program = (sys.executable, "-m", "medsynth_client")
    common = ("--socket", str(socket), "--log-format", log_format, "--watch-parent")
    compute = ("--device", device, "--threads", str(threads))
    trainer = (*program, "trainer", "--site", str(folder), *common, *compute, *allowed, "--isolate")
    node = (*program, "node", str(folder), *common)
    return [
        Child(name="trainer", command=trainer),
        Child(name="node", command=node, again=("--keep-trying",)),
    ]


def _check(folder: Path, *, rehearsal: bool) -> None:
    """Tell what is missing or wrong before anything is started."""
    site = SiteFile.load(folder / "site.toml")
    if not rehearsal and (problem := site.rehearsal_problem):
        raise BadConfig(problem)
    if site.coordinator_key is None:
        wanted = "the key of the coordinator that this site obeys"
        mend = "make the site with `medsynth-client init`"
        name = "site.toml: coordinator_key"
        raise BadConfig(Problem(name=name, value="nothing", wanted=wanted, mend=mend))
    load_card(folder)
    load_node_key(folder / NODE_KEY)
    SigningKey.load(folder / SIGNING_KEY)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = exclusive(folder / "run", timeout=0.0)
    try:
        lock.__enter__()
    except TimedOut as error:
        problem = Problem(
            name=str(folder),
            value="a site that runs already",
            wanted="one `medsynth-client run` a folder",
            mend="`medsynth-client status` shows it",
        )
        raise BadConfig(problem) from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


@contextmanager
def _socket_folder() -> Iterator[Path]:
    """A folder of mode 0700, near the root: a Unix socket's path holds about 100 characters."""
    runtime = os.environ.get("RUNTIME_DIRECTORY") or os.environ.get("XDG_RUNTIME_DIR")
    parent = runtime if runtime and os.access(runtime, os.W_OK) else None
    made = Path(tempfile.mkdtemp(prefix="medsynth-", dir=parent))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
