"""What a check found, told to a person or a program; both wings tell it the same way."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medsynth_common.dataset import check
from medsynth_common.dataset.finding import Examination, Finding, Level
from medsynth_common.wording import counted


def as_text(examination: Examination) -> str:
    """Tell every finding; patients with the same one share its line, errors first."""
    return "\n".join([*lines(examination, tuple(Level)), summary(examination)])


def lines(examination: Examination, levels: Sequence[Level]) -> list[str]:
    """Tell the findings of some levels, a line for each sort and one for its patients."""
    told: list[str] = []
    for level in levels:
        groups: dict[tuple[str, ...], list[Finding]] = defaultdict(list)
        for finding in examination.of(level):
            said = finding.problem
            groups[finding.kind, finding.role, said.value, said.wanted, said.mend].append(finding)
        for group in groups.values():
            told += _group(level, group)
    return told


def summary(examination: Examination) -> str:
    """Tell how many patients were looked at, and how much was found."""
    patients = sum(map(len, examination.patients.values()))
    counts = ", ".join(
        counted(len(examination.of(level)), str(level)) for level in (Level.ERROR, Level.WARNING)
    )
    sites = len(examination.patients)
    return f"{counted(patients, 'patient')} at {counted(sites, 'site')}: {counts}"


def as_json(examination: Examination) -> dict[str, Any]:
    """Give the patients and every finding as values that JSON knows."""
    return {
        "sites": {
            site: [{"patient": files.name, "sessions": files.sessions} for files in patients]
            for site, patients in examination.patients.items()
        },
        "errors": len(examination.of(Level.ERROR)),
        "warnings": len(examination.of(Level.WARNING)),
        "findings": [_row(finding) for finding in examination.findings],
    }


@contextmanager
def progress_bar() -> Iterator[check.Progress]:
    """Show on stderr how far a check has come, while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield tell


def _group(level: Level, group: Sequence[Finding]) -> Iterator[str]:
    first = group[0]
    said = first.problem
    mend = f" ({said.mend})" if said.mend else ""
    about = said.name if len(group) == 1 else (first.role or "patient")
    if level is Level.NOTE:
        yield f"{level}: {about}: {said.value}, {said.wanted}"
    else:
        yield f"{level}: {about}: got {said.value}, wanted {said.wanted}{mend}"
    if len(group) > 1:
        names = ", ".join(finding.patient or finding.problem.name for finding in group)
        yield f"    {len(group)} patients: {names}"


def _row(finding: Finding) -> dict[str, Any]:
    said = finding.problem
    return {
        "level": finding.level,
        "kind": finding.kind,
        "patient": finding.patient,
        "role": finding.role,
        "name": said.name,
        "value": said.value,
        "wanted": said.wanted,
        "mend": said.mend,
        "mendable": finding.mendable,
    }
