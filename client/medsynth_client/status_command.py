"""`medsynth-client status`: what a site is doing, and what its patients have spent."""

import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from medsynth_client.hash_chain import exclusive
from medsynth_client.privacy_command import read_audit
from medsynth_client.privacy_command import status as privacy_status
from medsynth_client.status_file import read_status
from medsynth_common.errors import TimedOut
from medsynth_common.wire.trainer_rpc import TrainerClient

_HEALTH_SECONDS: Final = 2.0


def site_status(folder: Path) -> dict[str, Any]:
    """Gather from the running processes, the ledger and the audit log.

    Raises BadConfig where there is no site, BadRecord when a record of it was tampered with.
    """
    privacy = privacy_status(folder)
    told = read_status(folder)
    run, node, trainer = (told.get(name, {}) for name in ("run", "node", "trainer"))
    running = is_running(folder)
    today = datetime.now().astimezone().date()
    events = [event for event in read_audit(folder) if event.when.astimezone().date() == today]
    return {
        "site": privacy["site"],
        "running": running,
        "phase": node.get("phase", "connecting") if running else "stopped",
        "connected_since": node.get("connected_since") if running else None,
        "reason": node.get("reason", ""),
        "run": node.get("run"),
        "stage": node.get("stage"),
        "round": node.get("round"),
        "step": {name: told.get("step", {}).get(name) for name in ("of", "step", "steps")},
        "last_error": node.get("error", ""),
        "epsilon": privacy["epsilon"],
        "cap": privacy["cap"],
        "delta": privacy["delta"],
        "releases_today": sum(event.outcome == "released" for event in events),
        "refusals_today": sum(event.outcome == "refused" for event in events),
        "trainer_serving": running and _serving(run.get("socket", "")),
        "trainer_isolated": trainer.get("isolated"),
        "trainer_restarts": run.get("trainer_restarts", 0),
        "trainer_died": run.get("trainer_died", ""),
        "node_restarts": run.get("node_restarts", 0),
    }


def is_running(folder: Path) -> bool:
    """Whether a `medsynth-client run` holds this folder."""
    try:
        with exclusive(folder / "run", timeout=0.0):
            return False
    except TimedOut:
        return True


def status_text(facts: dict[str, Any]) -> str:
    """For a person."""
    spent = "unbounded (no privacy)" if facts["epsilon"] is None else f"{facts['epsilon']:.3f}"
    cap = "none" if facts["cap"] is None else f"{facts['cap']:g}"
    lines = [f"{facts['site']}: {facts['phase']}"]
    if facts["reason"]:
        lines.append(f"  because: {facts['reason']}")
    if facts["connected_since"]:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(facts["connected_since"]))
        lines.append(f"  connected since {since}")
    if facts["run"]:
        lines.append(f"  last asked: {facts['run']} {facts['stage']} round {facts['round']}")
    if facts["running"] and facts["step"]["step"]:
        lines.append("  at work: {of}, step {step} of {steps}".format(**facts["step"]))
    if facts["last_error"]:
        lines.append(f"  last error: {facts['last_error']}")
    lines.append(f"  epsilon {spent} of {cap} at delta {facts['delta']:g}, unit: patient")
    lines.append(f"  today: {facts['releases_today']} releases, {facts['refusals_today']} refusals")
    if facts["running"]:
        health = "serving" if facts["trainer_serving"] else "not serving (starting, or gone)"
        network = {True: "no network", False: "this machine's network", None: "not known yet"}
        lines.append(f"  trainer: {health}; {network[facts['trainer_isolated']]}")
    if facts["trainer_died"]:
        restarts = facts["trainer_restarts"]
        lines.append(f"  trainer died {restarts} times, last: {facts['trainer_died']}")
    return "\n".join(lines)


def _serving(socket: str) -> bool:
    if not socket:
        return False
    client = TrainerClient(Path(socket))
    try:
        return client.serving(timeout=_HEALTH_SECONDS)
    finally:
        client.close()
