"""What an audit says: bars while it runs, then its figures as text or as JSON."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import ROUND_FLOOR, Decimal
from io import StringIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from medsynth_server.audit_dp.audit import Audit, Finding, Progress
from medsynth_server.audit_dp.targets import Target
from medsynth_server.record import epsilon_words


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Show on stderr how many trainings of each target are done."""
    columns = (
        TextColumn("audit {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks = {}

        def show(target: Target, done: int, of: int) -> None:
            if target not in tasks:
                tasks[target] = bars.add_task(target, total=of)
            bars.update(tasks[target], completed=done)

        yield show


def tell(audit: Audit, *, as_json: bool) -> str:
    """Give an audit's figures and its verdict."""
    if as_json:
        return json.dumps({**audit.model_dump(mode="json"), "violated": audit.violated}, indent=2)
    screen = Console(file=StringIO(), width=100)
    screen.print(_table(audit))
    lines = [
        *(f"claim: {finding.claim}" for finding in audit.findings),
        f"All lower bounds hold together with {100 * audit.confidence:g} % confidence, after "
        f"{audit.runs} trainings of each target, half of them with the canary.",
        "Noise: seeded; this audit can be repeated."
        if audit.seeded
        else "Noise: the operating system's, as in real releases.",
        _verdict(audit),
    ]
    for line in lines:
        screen.print(line, soft_wrap=True, highlight=False)
    written = screen.file
    assert isinstance(written, StringIO)
    return written.getvalue().rstrip()


def _table(audit: Audit) -> Table:
    table = Table(title="Epsilon per patient, claimed and found", title_justify="left")
    table.add_column("target")
    table.add_column("claimed", justify="right")
    table.add_column("Gaussian fit", justify="right")
    table.add_column("Clopper-Pearson", justify="right")
    table.add_column("Clopper-Pearson at best", justify="right")
    for finding in audit.findings:
        table.add_row(
            finding.target,
            f"at most {epsilon_words(finding.claim.epsilon)}",
            f"at least {_floor(finding.gaussian)}",
            f"at least {_floor(finding.clopper_pearson)}",
            _floor(finding.clopper_pearson_ceiling),
        )
    return table


def _floor(bound: float) -> str:
    """Two decimals, rounded down: never more than was found."""
    return str(Decimal(repr(bound)).quantize(Decimal("0.01"), rounding=ROUND_FLOOR))


def _verdict(audit: Audit) -> str:
    if not audit.violated:
        return "verdict: no claim was refuted (a test that can fail, not a proof)"
    refuted = [_refuted(finding) for finding in audit.findings if finding.violated]
    return f"verdict: VIOLATED: {', '.join(refuted)}"


def _refuted(finding: Finding) -> str:
    return f"{finding.target} leaks more than epsilon {epsilon_words(finding.claim.epsilon)}"
