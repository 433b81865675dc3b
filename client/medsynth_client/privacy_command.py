"""`medsynth-client privacy` and `medsynth-client audit`: a hospital asks its own records."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsynth_client.audit import AuditEvent, AuditLog, verify
from medsynth_client.ledger import Ledger
from medsynth_client.site_file import SiteFile
from medsynth_client.spending import Spent, StatementLine, epsilon_of
from medsynth_common.errors import BadRecord, Problem


def open_ledger(folder: Path) -> Ledger:
    """Open a site's ledger with the site's own cap and delta."""
    site = SiteFile.load(folder / "site.toml")
    ledger = Ledger(
        folder / "ledger.db",
        cap=site.policy.epsilon_cap,
        delta=site.policy.delta,
        epsilon=epsilon_of,
    )
    ledger.register_dataset(site.source.names())
    return ledger


def status(folder: Path) -> dict[str, Any]:
    """What a site has spent: epsilon with delta, unit and mechanisms; null where unbounded."""
    ledger = open_ledger(folder)
    lines = ledger.statement()
    cap, spent = ledger.cap, ledger.spent()
    return {
        "site": SiteFile.load(folder / "site.toml").name,
        "unit": "patient",
        "epsilon": _bounded(spent),
        "cap": _bounded(cap),
        "left": _bounded(cap - spent) if math.isfinite(cap) else None,
        "delta": ledger.delta,
        "mechanisms": [_line(line, ledger.delta) for line in lines],
    }


def verify_ledger(folder: Path) -> list[Problem]:
    """Check a site's ledger from its first row."""
    try:
        return open_ledger(folder).verify()
    except BadRecord as error:  # found on opening it already
        return list(error.problems)


def verify_audit(folder: Path) -> Sequence[Problem]:
    """Check a site's audit log from its first line."""
    return verify(folder / "audit.jsonl")


def read_audit(folder: Path) -> list[AuditEvent]:
    """Read what left a site, and what was refused. Raises `BadConfig` where there is no site."""
    SiteFile.load(folder / "site.toml")
    return AuditLog(folder / "audit.jsonl").read()


def _line(line: StatementLine, delta: float) -> dict[str, Any]:
    alone = Spent(
        noise_multiplier=line.noise_multiplier,
        sampling_rate=line.sampling_rate,
        steps=line.steps,
    )
    unprotected = line.noise_multiplier == 0
    return {
        "project": line.project,
        "name": line.name,
        "clip": line.clip,
        "noise_multiplier": line.noise_multiplier,
        "sampling_rate": line.sampling_rate,
        "steps": line.steps,
        "releases": line.releases,
        "epsilon_alone": None if unprotected else _bounded(epsilon_of([alone], delta)),
    }


def _bounded(value: float) -> float | None:
    return value if math.isfinite(value) else None
