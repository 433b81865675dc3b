"""kill -9 at random moments: does a small run go on, finish, and keep its promises?

Every row of the table is a fresh run of the same seeded settings in which one process, a trainer
or the coordinator, is killed once; after a coordinator's death the same command is given again.
Then the run is compared with an undisturbed one. `python -m benchmarks.crash_matrix --kills 10`.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from rich.console import Console
from rich.table import Table

from medsynth_client.audit import AuditEvent, AuditLog
from medsynth_client.privacy_command import verify_audit
from medsynth_client.verification import verify_site
from medsynth_common.durable import write_json
from medsynth_server.record import Event, RoundEvent, read_events, read_privacy

#: The smallest run that has every stage. Steps without sampling keep the accountant quick.
SETTINGS: Final = """\
name = "tiny"
grid = [24, 24, 24]
crop = [16, 16, 16]
seed = 1
workers = 1
threads = 1

[networks]
generator_channels = [4, 8]
detail_channels = 4
critic_channels = 4
segmenter_channels = [4, 8]

[federation]
sites = 2
patients = 3
test_patients = 1

[pretrain]
rounds = 1
steps = 1
batch = 2
scanners = 2
phantoms = 2

[segment]
rounds = 2
steps = 2
free_steps = 0
directions = 2
sampling_rate = 1.0

[adversarial]
rounds = 2
generator_steps = 2
label_bank = 2
batch = 2

[evaluation]
synthetic = 2
steps = 1
reference = false
"""
WEIGHTS: Final = (
    "generator.safetensors",
    "segmenter.safetensors",
    "styles.safetensors",
    "variation.safetensors",
)
Victim = Literal["trainer", "coordinator"]

_FIRST_ASKED, _AFTER_THE_ROUNDS = "moments: 2 rounds", "note: making the synthetic set"
_ROOTS: Final = ("common", "client", "server")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When to kill: after so many lines of progress and seconds, at the next line at the latest.

    Lines and not only seconds, so that a moment is the same place on a slower machine.
    """

    lines: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """A run that nobody killed.

    Attributes:
        folder: the run's.
        lines: its progress, each line with the seconds since the start.

    """

    folder: Path
    lines: Sequence[tuple[float, str]]

    def draw(self, victim: Victim, draw: random.Random) -> Moment:
        """Draw a moment, uniform over the time in which the victim lives and works."""
        first, last = 0.0, self.lines[-1][0]
        if victim == "trainer":
            asked = [line for _, line in self.lines].index(_FIRST_ASKED)
            made = [line for _, line in self.lines].index(_AFTER_THE_ROUNDS)
            first, last = self.lines[asked][0], self.lines[made - 1][0]
        chosen = draw.uniform(first, last)
        before = [at for at, _ in self.lines if at <= chosen]
        return Moment(lines=len(before), seconds=chosen - (before[-1] if before else 0.0))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a run that was disturbed.

    Attributes:
        kills: who was killed, and when.
        after: the line of progress before the last of them.
        broken: the promises that were not kept; empty when all is well.

    """

    kills: Sequence[tuple[Victim, Moment]]
    after: str
    broken: Sequence[str]


class Running:
    """A simulation as a process, with its progress read line by line."""

    def __init__(self, settings: Path, folder: Path) -> None:
        command = (sys.executable, "-m", "medsynth_server", "simulate", str(settings))
        self._process = subprocess.Popen(
            [*command, "--out", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=_environment(),
        )
        self._began = time.monotonic()
        self._news = threading.Condition()
        self._ended = False
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, moment: Moment) -> str:
        """Sleep until the moment, or the line after it; gives the last line before it."""
        with self._news:
            self._news.wait_for(lambda: self._ended or len(self.lines) >= moment.lines)
            last = self.lines[: moment.lines][-1][1] if moment.lines and self.lines else "the start"
            self._news.wait_for(
                lambda: self._ended or len(self.lines) > moment.lines, timeout=moment.seconds
            )
        return last

    def kill(self) -> list[int]:
        """Kill the coordinator; gives the processes that it leaves behind."""
        left = list(_descendants(self._process.pid))
        self._process.kill()
        self._process.wait()
        return left

    def kill_trainer(self) -> bool:
        """Kill a trainer that is there or about to be; False when the run ended first."""
        while self._process.poll() is None:
            for pid in _descendants(self._process.pid):
                if " trainer " in _command_of(pid):
                    os.kill(pid, signal.SIGKILL)
                    return True
            time.sleep(0.01)
        return False

    def finish(self) -> int:
        """Wait for the end; gives the exit code."""
        code = self._process.wait()
        self._reader.join()
        return code

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._news:
                self.lines.append((time.monotonic() - self._began, line.rstrip()))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()
        self._process.stderr.close()


def run_undisturbed(settings: Path, folder: Path) -> Undisturbed:
    """Run once without killing anything. Raises RuntimeError when even that fails."""
    running = Running(settings, folder)
    if running.finish():
        raise RuntimeError("\n".join(line for _, line in running.lines))
    return Undisturbed(folder=folder, lines=running.lines)


def disturb(
    settings: Path, folder: Path, kills: Sequence[tuple[Victim, Moment]], *, like: Undisturbed
) -> Outcome:
    """Run with kills, one after the other; then hold the run to its promises.

    A coordinator that was killed is started again, and later moments are counted from then.
    """
    broken: list[str] = []
    running = Running(settings, folder)
    after = ""
    for victim, moment in kills:
        after = running.wait_for(moment)
        if victim == "trainer":
            if not running.kill_trainer():
                broken.append("the run ended before a trainer could be killed")
            continue
        broken += [f"process {pid} lives on" for pid in _still_there(running.kill())]
        running = Running(settings, folder)
    if code := running.finish():
        told = "; ".join(line for _, line in running.lines[-3:])
        broken.append(f"exit code {code}: {told}")
    else:
        broken += broken_promises(folder, like.folder)
    return Outcome(kills=kills, after=after, broken=broken)


def broken_promises(folder: Path, undisturbed: Path) -> list[str]:
    """Compare a finished run with an undisturbed one; empty when it kept every promise."""
    checks: Sequence[Callable[[Path, Path], Iterator[str]]] = (
        _weights,
        _rounds,
        _half_written,
        _released,
        _spent,
    )
    found = [problem for check in checks for problem in check(folder, undisturbed)]
    for site in sorted((folder / "sites").iterdir()):
        found += [f"{site.name}: {problem}" for problem in uncharged(site)]
    return found


def uncharged(site: Path) -> list[str]:
    """List what a site's audit log says was released without a reservation in the ledger."""
    problems = [str(problem) for problem in (*verify_site(site).problems, *verify_audit(site))]
    steps = _reserved_steps(site / "ledger.db")
    released = [e for e in AuditLog(site / "audit.jsonl").read() if e.outcome == "released"]
    used = Counter(receipt for event in released for receipt in event.receipts)
    problems += [f"a receipt was used {times} times" for times in used.values() if times > 1]
    for event in released:
        problems += _unpaid(event, steps)
    if sum(steps.values()) < sum(steps.get(receipt, 0) for receipt in used):
        problems.append("fewer steps were reserved than released")
    return problems


def _unpaid(event: AuditEvent, steps: Mapping[str, int]) -> Iterator[str]:
    where = f"{event.stage} round {event.round}"
    if not event.receipts:
        yield f"{where} was released without a receipt"
    for receipt in event.receipts:
        if receipt not in steps:
            yield f"{where} was released on a receipt that the ledger does not hold"


def _reserved_steps(ledger: Path) -> dict[str, int]:
    """Steps of each reservation, by its row's digest; read past the ledger's own code."""
    connection = sqlite3.connect(f"{ledger.resolve().as_uri()}?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT digest, body FROM entries WHERE kind = 'reservation'")
        return {digest: json.loads(body)["charge"]["steps"] for digest, body in rows}
    finally:
        connection.close()


def _weights(folder: Path, undisturbed: Path) -> Iterator[str]:
    for name in WEIGHTS:
        if (folder / "weights" / name).read_bytes() != (
            undisturbed / "weights" / name
        ).read_bytes():
            yield f"weights/{name} differs from the undisturbed run's"


def _rounds(folder: Path, undisturbed: Path) -> Iterator[str]:
    mine, theirs = (_told(read_events(f / "metrics.jsonl")) for f in (folder, undisturbed))
    if mine != theirs:
        yield f"rounds recorded: {mine}; undisturbed: {theirs}"


def _told(events: Sequence[Event]) -> list[tuple[str, ...]]:
    return [
        (*event.identity, *event.sites, *map(str, event.refused.items()))
        for event in events
        if isinstance(event, RoundEvent)
    ]


def _half_written(folder: Path, _undisturbed: Path) -> Iterator[str]:
    for part in folder.rglob(".part-*"):
        yield f"{part.relative_to(folder)} was left half-written"


def _released(folder: Path, undisturbed: Path) -> Iterator[str]:
    """The set is where its check says, the same to the byte, and nowhere else."""
    for name in ("unchecked", "withheld", "synthetic", "release-check.json"):
        mine, theirs = (_files_of(f / name) for f in (folder, undisturbed))
        if mine != theirs:
            yield f"{name} differs from the undisturbed run's"


def _files_of(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def _spent(folder: Path, undisturbed: Path) -> Iterator[str]:
    mine, theirs = (read_privacy(f / "privacy.json") for f in (folder, undisturbed))
    assert mine is not None
    assert theirs is not None
    for arm, statement in theirs.arms.items():
        for name, site in statement.sites.items():
            spent = mine.arms[arm].sites[name].epsilon
            if spent is None or site.epsilon is None or spent < site.epsilon:
                yield f"{name} states epsilon {spent}, undisturbed {site.epsilon}"


def _descendants(pid: int) -> Iterator[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for thread in Path(f"/proc/{pid}/task").iterdir():
            if thread.name != str(pid):  # a worker is started by a thread of its own
                children += (thread / "children").read_text().split()
    except OSError:
        return  # it ended meanwhile
    for child in map(int, children):
        yield child
        yield from _descendants(child)


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _still_there(pids: Sequence[int], seconds: float = 60.0) -> list[int]:
    """Wait until the processes are gone; gives those that are not."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if _command_of(pid)]:
        if time.monotonic() > deadline:
            return left
        time.sleep(0.05)
    return []


def _environment() -> dict[str, str]:
    house = Path(__file__).resolve().parents[1]
    paths = [*(str(house / root) for root in _ROOTS), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def main(
    kills: int = 10, *, seed: int = 1, out: Path = Path("runs/bench/crash_matrix.json")
) -> bool:
    """Kill `kills` trainers and as many coordinators, print a table; whether all was kept."""
    draw = random.Random(seed)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="medsynth-crashes-") as name:
        folder = Path(name)
        settings = folder / "tiny.toml"
        settings.write_text(SETTINGS)
        undisturbed = run_undisturbed(settings, folder / "undisturbed")
        victims: Sequence[Victim] = ("trainer", "coordinator")
        for victim in victims:
            for _ in range(kills):
                kill = victim, undisturbed.draw(victim, draw)
                disturbed = folder / "disturbed"
                outcomes.append(disturb(settings, disturbed, [kill], like=undisturbed))
                shutil.rmtree(disturbed)
    write_json(
        out,
        {
            "kills": kills,
            "seed": seed,
            "outcomes": [
                {
                    "kills": [(victim, asdict(moment)) for victim, moment in outcome.kills],
                    "after": outcome.after,
                    "broken": list(outcome.broken),
                }
                for outcome in outcomes
            ],
        },
    )
    Console().print(_table(outcomes))
    return not any(outcome.broken for outcome in outcomes)


def _table(outcomes: Sequence[Outcome]) -> Table:
    kept = sum(not outcome.broken for outcome in outcomes)
    table = Table(title=f"Killed at random moments: {kept} of {len(outcomes)} runs as undisturbed")
    for heading in ("killed", "after this line", "and seconds", "broken promises"):
        table.add_column(heading)
    for outcome in outcomes:
        (victim, moment), *_ = outcome.kills
        broken = "\n".join(outcome.broken) or "none"
        table.add_row(victim, outcome.after[:60], f"{moment.seconds:.2f}", broken)
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crash_matrix", description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="of a trainer, and as many again")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    given = parser.parse_args()
    raise SystemExit(not main(given.kills, seed=given.seed))
