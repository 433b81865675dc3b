"""`medsynth-client privacy status` and `audit`: a hospital asks its own records."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medsynth_client.audit import AuditEvent, AuditLog, verify
from medsynth_client.charge import Charge
from medsynth_client.hash_chain import exclusive
from medsynth_client.policy import plan_problems
from medsynth_client.retention import TRAINER, tidy
from medsynth_client.site_file import SiteFile
from medsynth_client.site_record import SiteRecord, read_site
from medsynth_client.spending import EVERYONE, Spent, StatementLine, epsilon_of, fits
from medsynth_common.errors import BadInput, Problem
from medsynth_common.plan import PlanHeader, parse


def status(folder: Path, plan: PlanHeader | None = None) -> dict[str, Any]:
    """What a site has spent, and what `plan` would add: epsilon with delta, unit, mechanisms.

    `epsilon` is of the patients that the site's file names now, `epsilon_ever` of all that ever
    were; null where unbounded.
    """
    record = read_site(folder)
    return spent_by(record) | ({} if plan is None else {"plan": plan_cost(record, plan)})


def spent_by(record: SiteRecord) -> dict[str, Any]:
    """What was spent, in all and per project and mechanism."""
    policy, spending = record.file.policy, record.ledger.spending
    spent = spending.worst(epsilon_of, policy.delta, record.dataset)
    capped = math.isfinite(policy.epsilon_cap)
    return {
        "site": record.file.name,
        "unit": "patient",
        "epsilon": _bounded(spent),
        "epsilon_ever": _bounded(spending.worst(epsilon_of, policy.delta, EVERYONE)),
        "cap": _bounded(policy.epsilon_cap),
        "left": max(0.0, policy.epsilon_cap - spent) if capped else None,
        "delta": policy.delta,
        "data_sets": record.datasets,
        "patients": record.patients,
        "projects": [_project(record, project) for project in spending.projects],
    }


def plan_cost(record: SiteRecord, plan: PlanHeader) -> dict[str, Any]:
    """What a plan would cost, and whether the site's policy and cap allow it."""
    policy, spending = record.file.policy, record.ledger.spending
    charges = [Charge.of(mechanism) for mechanism in plan.mechanisms]
    before = spending.worst(epsilon_of, policy.delta, record.dataset)
    after = spending.worst(epsilon_of, policy.delta, record.dataset, charges)
    problems = plan_problems(
        policy,
        stage=plan.stage,
        round=plan.round,
        mechanisms=plan.mechanisms,
        patients=record.file.declared_patients,
        grid=plan.grid,
    )
    if plan.site != record.file.name:
        problems.append(Problem(name="site", value=plan.site, wanted=record.file.name))
    answered = record.ledger.answered(plan.run, plan.stage)
    if plan.round <= answered:
        wanted = f"one after {answered}, which was answered"
        problems.append(Problem(name="round", value=str(plan.round), wanted=wanted))
    affordable = fits(policy.epsilon_cap, before=before, after=after)
    return {
        "project": plan.run,
        "stage": plan.stage.value,
        "round": plan.round,
        "mechanisms": [mechanism.name for mechanism in plan.mechanisms],
        "epsilon_after": _bounded(after),
        "cost": _bounded(after - before) if math.isfinite(before) else None,
        "fits_cap": affordable,
        "forbidden_by": [problem.name for problem in problems],
        "reasons": [str(problem) for problem in problems],
        "would_be_done": affordable and not problems,
    }


def read_plan(path: Path) -> PlanHeader:
    """Read a plan's header from JSON. Raises BadInput."""
    try:
        content = path.read_bytes()
    except OSError as error:
        value = error.strerror or type(error).__name__
        raise BadInput(Problem(name=str(path), value=value, wanted="a plan's header")) from error
    return parse(PlanHeader, content, name=path.name)


def tidy_site(folder: Path) -> list[Path]:
    """Remove caches and state that the site's policy keeps no longer, as a trainer's start does.

    Raises BadConfig where there is no site, TimedOut while its trainer runs.
    """
    policy = SiteFile.load(folder / "site.toml").policy
    with exclusive(folder / TRAINER, timeout=0.0):
        return tidy(folder, retention_days=policy.retention_days)


def verify_audit(folder: Path) -> Sequence[Problem]:
    """Check a site's audit log from its first line. Raises `BadConfig` where there is no site."""
    SiteFile.load(folder / "site.toml")
    return verify(folder / "audit.jsonl")


def read_audit(folder: Path) -> list[AuditEvent]:
    """Read what left a site, and what was refused. Raises `BadConfig` where there is no site."""
    SiteFile.load(folder / "site.toml")
    return AuditLog(folder / "audit.jsonl").read()


def _project(record: SiteRecord, project: str) -> dict[str, Any]:
    delta = record.file.policy.delta
    alone = record.ledger.spending.within(project)
    return {
        "project": project,
        "epsilon": _bounded(alone.worst(epsilon_of, delta, EVERYONE)),
        "mechanisms": [_line(line, delta) for line in alone.statement()],
    }


def _line(line: StatementLine, delta: float) -> dict[str, Any]:
    alone = Spent(
        noise_multiplier=line.noise_multiplier,
        sampling_rate=line.sampling_rate,
        steps=line.steps,
    )
    unprotected = line.noise_multiplier == 0
    return {
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
