"""How soon a command answers: `--help` of both commands, and the demo's first round."""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks import results
from benchmarks.results import Cell, Goal

HELP_BAR: Final = 0.5
ROUND_BAR: Final = 15.0
ROUNDS: Final = 5
#: The demo is given up on after so many seconds.
_PATIENCE: Final = 180.0


def _help(package: str) -> float:
    began = time.perf_counter()
    command = [sys.executable, "-m", package, "--help"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def first_round(folder: Path) -> float | None:
    """Seconds from `simulate` with the demo's settings to its first round's start on screen."""
    began = time.monotonic()
    command = [sys.executable, "-m", "medsynth_server", "simulate", "--out", str(folder / "demo")]
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, start_new_session=True, env=_PLAIN
        )
        try:
            while time.monotonic() - began < _PATIENCE and process.poll() is None:
                if "moments: " in log.read_text(errors="replace"):
                    return time.monotonic() - began
                time.sleep(0.05)
            return None
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


_PLAIN: Final = {**os.environ, "TERM": "dumb"}


def main() -> bool:
    """Measure; whether each is soon enough."""
    packages = ("medsynth_client", "medsynth_server")
    found = {name: statistics.median(_help(name) for _ in range(ROUNDS)) for name in packages}
    with tempfile.TemporaryDirectory(prefix="medsynth-start-") as name:
        first = first_round(Path(name))
    rows: list[dict[str, Cell]] = [
        {"command": f"{name.replace('_', '-')} --help", "wall s": taken}
        for name, taken in found.items()
    ]
    rows.append({"command": "medsynth-server simulate, to its first round", "wall s": first})
    return results.record(
        "start",
        title="How soon a command answers",
        about=f"Wall time with Python's start; medians of {ROUNDS}, the demo once.",
        rows=rows,
        goals=[
            *(
                Goal(what=f"{name.replace('_', '-')} --help", figure=taken, bar=HELP_BAR, unit="s")
                for name, taken in found.items()
            ),
            Goal(what="the demo's first round starts", figure=first, bar=ROUND_BAR, unit="s"),
        ],
    )
