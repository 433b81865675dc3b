"""`status.json`: what a running coordinator tells of itself, and `medsynth-server status`."""

import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from medsynth_common.durable import write_json
from medsynth_common.errors import BadRecord, Problem
from medsynth_server.coordinator.folder import FederationFolder
from medsynth_server.engines.flower import FlowerGrid
from medsynth_server.progress import Progress
from medsynth_server.record import RoundEvent, epsilon_words, read_events
from medsynth_server.run_folder import RunFolder

#: What is known of a site before it was asked; bytes are of this process, since it was started.
_BLANK: Final[Mapping[str, Any]] = {
    "phase": "",
    "error": "",
    "epsilon": None,
    "cap": None,
    "answered": None,
    "bytes_down": 0,
    "bytes_up": 0,
}


class StatusBoard:
    """A run's progress, passed on to all who watch and kept in a file."""

    def __init__(self, path: Path, *watching: Progress, federation: str, quorum: int) -> None:
        self._path, self._watching = path, watching
        self._watched = ExitStack()
        # Written by the run, and by the pulse that looks at who is in touch.
        self._lock = threading.RLock()
        self._sites: dict[str, dict[str, Any]] = {}
        self._state: dict[str, Any] = {
            "federation": federation,
            "pid": os.getpid(),
            "phase": "starting",
            "stage": None,
            "round": 0,
            "rounds": 0,
            "quorum": quorum,
            "note": "",
        }

    def __enter__(self) -> Self:
        for one in self._watching:
            self._watched.enter_context(one)
        self.set(phase="starting")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.set(phase="stopped", note=kind.__name__)
        self._watched.__exit__(kind, error, trace)

    def set(self, **changes: Any) -> None:
        """Change some fields and write the file."""
        with self._lock:
            self._state |= changes
            write_json(
                self._path, {**self._state, "updated": time.time(), "sites": dict(self._sites)}
            )

    def look(self, grid: FlowerGrid) -> None:
        """Note who is in touch."""
        nodes = grid.nodes()
        with self._lock:
            self._sites = {
                site: {
                    **self._sites.get(site, _BLANK),
                    "online": node.online,
                    "seen": node.seen,
                }
                for site, node in nodes.items()
            }
            self.set()

    def stage(self, name: str, rounds: int) -> None:
        """Begin a stage."""
        self.set(phase="training", stage=name, round=0, rounds=rounds)
        for one in self._watching:
            one.stage(name, rounds)

    def round_started(self, n: int) -> None:
        """Begin a round."""
        self.set(round=n)
        for one in self._watching:
            one.round_started(n)

    def site_asked(self, site: str, *, size: int) -> None:
        """Note that a site has work."""
        with self._lock:
            row = self._row(site)
            row["phase"] = "asked"
            row["bytes_down"] += size
            self.set()
        for one in self._watching:
            one.site_asked(site, size=size)

    def site_done(
        self,
        site: str,
        *,
        seconds: float,
        epsilon: float | None,
        cap: float | None,
        error: str | None,
        size: int = 0,
    ) -> None:
        """Note a site's answer, or the name of its last error."""
        with self._lock:
            row = self._row(site)
            row["error"], row["phase"] = error or "", "failed" if error else "answered"
            row["bytes_up"] += size
            if error is None:
                row |= {"epsilon": epsilon, "cap": cap, "answered": time.time()}
            self.set()
        for one in self._watching:
            one.site_done(site, seconds=seconds, epsilon=epsilon, cap=cap, error=error, size=size)

    def _row(self, site: str) -> dict[str, Any]:
        return self._sites.setdefault(site, {**_BLANK, "online": True, "seen": None})

    def round_done(self, n: int, losses: Mapping[str, float]) -> None:
        """End a round."""
        self.set(round=n)
        for one in self._watching:
            one.round_done(n, losses)

    def note(self, text: str) -> None:
        """Say something."""
        self.set(note=text)
        for one in self._watching:
            one.note(text)

    def finished(self) -> None:
        """End the run."""
        self.set(phase="finished", note="")
        for one in self._watching:
            one.finished()


def read_status(folder: FederationFolder) -> dict[str, Any]:
    """Tell where a federation stands: what its coordinator last wrote, and what its record says."""
    status = _read(folder.status)
    running = folder.running
    if not running and status.get("phase") not in ("finished", None):
        status["phase"] = "stopped"
    events = read_events(RunFolder(folder.run).metrics)
    rounds = [event for event in events if isinstance(event, RoundEvent)]
    return {
        "running": running,
        **status,
        "rounds_finished": len(rounds),
        "bytes_up": sum(event.bytes_up for event in rounds),
        "bytes_down": sum(event.bytes_down for event in rounds),
    }


def status_text(status: Mapping[str, Any], *, now: float) -> str:
    """The same for a person."""
    if "phase" not in status:
        return "never run: medsynth-server run"
    place = f", {status['stage']} round {status['round']} of {status['rounds']}"
    lines = [
        f"{status['federation']}: {status['phase']}{place if status['stage'] else ''}",
        f"{status['rounds_finished']} rounds finished, {status['bytes_down']} bytes down, "
        f"{status['bytes_up']} up; quorum {status['quorum']}",
    ]
    if status["note"]:
        lines.append(status["note"])
    for name, site in sorted(status["sites"].items()):
        cap = f" of {site['cap']:g}" if site.get("cap") else ""
        spent = f", epsilon {epsilon_words(site['epsilon'])}{cap}" if site.get("answered") else ""
        touch = "in touch" if status["running"] and site["online"] else "away"
        seen = f", last seen {now - site['seen']:.0f} s ago" if site["seen"] else ", never seen"
        error = f", last error {site['error']}" if site.get("error") else ""
        did = f", {site['phase']}" if site.get("phase") and status["running"] else ""
        sent = f", {site['bytes_down']} bytes down, {site['bytes_up']} up" if did else ""
        lines.append(f"  {name}: {touch}{seen}{did}{sent}{spent}{error}")
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        problem = Problem(name=str(path), value="no JSON", wanted="what a coordinator wrote")
        raise BadRecord(problem) from error
    return values
