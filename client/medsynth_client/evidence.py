"""`medsynth-client evidence`: one page, and the same as JSON, for whoever must answer for a site.

Every statement is made from the site's record as it stands, none from memory: what left, what
was refused, what it cost, under which policy, and what checking the record found.
"""

import hashlib
import json
import math
import platform
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from medsynth_client.audit import AuditEvent
from medsynth_client.hash_chain import canonical
from medsynth_client.policy import SitePolicy
from medsynth_client.privacy_command import spent_by
from medsynth_client.site_record import SiteRecord, read_site
from medsynth_client.verification import Verification, verify_record
from medsynth_common import __version__
from medsynth_common.durable import write_bytes
from medsynth_common.errors import (
    AlreadyAnswered,
    BadInput,
    BadMessage,
    BadRecord,
    BadSignature,
    BudgetExhausted,
    ClockWentBack,
    Expired,
    NotCharged,
    PolicyRefusal,
    Problem,
    Replayed,
    StorageFailed,
    TimedOut,
    UnsafeRelease,
    WrongAddress,
)

#: What an evidence pack says that it is: in the page's head, and in the JSON.
KIND: Final = "medsynth evidence"
_MARK: Final = f'<meta name="generator" content="{KIND}">'
_MARK_WITHIN: Final = 1000  # bytes
_PACKAGES: Final = ("opacus", "dp-accounting", "torch", "numpy", "scipy", "cryptography")

_REASONS: Final = (
    PolicyRefusal,
    BudgetExhausted,
    AlreadyAnswered,
    NotCharged,
    UnsafeRelease,
    ClockWentBack,
    BadSignature,
    Expired,
    Replayed,
    WrongAddress,
    BadMessage,
    BadRecord,
    StorageFailed,
    TimedOut,
)


def make_evidence(folder: Path, page: Path) -> Verification:
    """Write a site's evidence to `page`, and as JSON beside it; give what checking found.

    Both are replaced whole or not at all, and only where nothing stands or an earlier pack.
    Raises BadInput for a `page` that is something else, BadConfig where there is no site,
    BadRecord for records that do not read: of them nothing can be stated.
    """
    data = page.with_suffix(".json")
    _check_may_replace(page, data)
    record = read_site(folder)
    found = verify_record(record)
    facts = evidence(record, found, made=datetime.now(UTC))
    write_bytes(data, (json.dumps(facts, indent=2, allow_nan=False) + "\n").encode())
    write_bytes(page, _page(facts, data.name).encode())
    return found


def evidence(record: SiteRecord, found: Verification, *, made: datetime) -> dict[str, Any]:
    """Gather the facts; all that the page says follows from them."""
    released = [_event(event) for event in record.events if event.outcome == "released"]
    refused = [_event(event) for event in record.events if event.outcome == "refused"]
    ledger = record.ledger
    return {
        "kind": KIND,
        "made": made.isoformat(timespec="seconds"),
        "site": record.file.name,
        "rehearsal": record.file.simulation_seed is not None,
        "spent": spent_by(record),
        "releases": [event | {"charged": _charges(record, event)} for event in released],
        "refusals": refused,
        "policy": _policy(record.file.policy),
        "policy_sha256": hashlib.sha256(
            canonical(_policy(record.file.policy)).encode()
        ).hexdigest(),
        "checks": found.facts(),
        "witness": {"ledger_rows": ledger.last.count, "ledger_digest": ledger.last.digest},
        "versions": _versions(),
    }


def _event(event: AuditEvent) -> dict[str, Any]:
    return event.model_dump(mode="json")


def _charges(record: SiteRecord, event: Mapping[str, Any]) -> list[str]:
    """What was charged for a release, by mechanism."""
    charged = {digest: body.charge for digest, body in record.ledger.reservations.values()}
    return [charged[receipt].name for receipt in event["receipts"] if receipt in charged]


def _policy(policy: SitePolicy) -> dict[str, Any]:
    values = policy.model_dump(mode="json")
    return {key: None if value == math.inf else value for key, value in values.items()}


def _versions() -> dict[str, str]:
    found = {
        "medsynth": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _check_may_replace(page: Path, data: Path) -> None:
    """Raise BadInput unless both paths are free, or an earlier pack's."""
    problems = []
    if page.suffix != ".html":
        wanted = "a name that ends in .html: the JSON is written beside it"
        problems.append(Problem(name="--out", value=page.name, wanted=wanted))
    problems += [
        Problem(
            name=str(path),
            value="something that is no evidence pack",
            wanted="an earlier evidence pack, or nothing",
            mend="move it away, or give another --out",
        )
        for path, is_one in ((page, _is_page), (data, _is_data))
        if path.exists() and not is_one(path)
    ]
    if problems:
        raise BadInput(problems)


def _is_page(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return _MARK.encode() in stream.read(_MARK_WITHIN)


def _is_data(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        facts = json.loads(path.read_bytes())
    except ValueError:
        return False
    return isinstance(facts, dict) and facts.get("kind") == KIND


# The page.


def _page(facts: Mapping[str, Any], data: str) -> str:
    environment = Environment(
        loader=PackageLoader("medsynth_client", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"when": _when, "in_bytes": _in_bytes, "figure": _figure}
    template = environment.get_template("evidence.html.j2")
    return template.render(
        facts,
        mark=_MARK,
        data=data,
        summary=_by_stage(facts["releases"]),
        reasons={error.__name__: error.__doc__ for error in _REASONS},
        surest=_surest(facts["spent"]["epsilon_ever"]),
    )


def _by_stage(releases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add up what left per project and stage."""

    def of(event: Mapping[str, Any]) -> tuple[str, str]:
        return event["project"], event["stage"]

    rows = []
    for (project, stage), group in groupby(sorted(releases, key=of), key=of):
        events = list(group)
        rows.append(
            {
                "project": project,
                "stage": stage,
                "count": len(events),
                "bytes": sum(event["bytes"] for event in events),
                "first": min(event["when"] for event in events),
                "last": max(event["when"] for event in events),
            }
        )
    return rows


def _surest(epsilon: float | None) -> str | None:
    """How sure an observer may become who held it even odds that a patient took part.

    At most e^epsilon / (1 + e^epsilon), but for a probability of about delta.
    """
    if epsilon is None:
        return None
    return f"{math.floor(1e3 / (1 + math.exp(-epsilon)) + 1) / 10:.1f} %"


def _when(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _in_bytes(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    power = min(int(math.log10(count)) // 3, 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB')[power]}"


def _figure(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.3f}"
