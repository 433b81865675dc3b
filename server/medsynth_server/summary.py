"""What a finished run says on standard output: the Dice table, epsilon, where the report is."""

import json
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.table import Table

from medsynth_common.labels import Region
from medsynth_common.release_check import ReleaseCheck, Verdict
from medsynth_common.release_check.result import read_release_check
from medsynth_server.record import EvaluationEvent, NoteEvent, read_events, read_privacy
from medsynth_server.run_folder import RunFolder


def summarise(folder: RunFolder, report: Path, *, as_json: bool) -> str:
    """Tell the run's results, as text or JSON; every figure comes from the record."""
    events = read_events(folder.metrics)
    privacy = read_privacy(folder.privacy)
    assert privacy is not None
    scores = [event for event in events if isinstance(event, EvaluationEvent)]
    notes = [event.text for event in events if isinstance(event, NoteEvent)]
    check = read_release_check(folder.release_check)
    if as_json:
        return json.dumps(
            {
                "report": str(report),
                "evaluations": [event.model_dump(mode="json") for event in scores],
                "privacy": privacy.model_dump(mode="json"),
                "notes": notes,
                "release_check": None if check is None else check.model_dump(mode="json"),
                "synthetic": str(folder.synthetic) if folder.synthetic.exists() else None,
            },
            indent=2,
        )
    screen = Console(file=StringIO(), width=100)
    if scores:
        screen.print(_dice_table(scores))
    for arm, statement in privacy.arms.items():
        for name, site in statement.sites.items():
            mechanisms = ", ".join(one.name for one in site.mechanisms)
            spent = (
                "no privacy: nothing bounds what is known of a patient"
                if site.epsilon is None
                else f"epsilon {site.epsilon:.3f} at delta {site.delta:g}, unit: patient"
            )
            line = f"{arm} arm, {name}: {spent} ({mechanisms})"
            screen.print(line, soft_wrap=True, highlight=False)
    for note in notes:
        screen.print(note, soft_wrap=True)
    if check is not None:
        screen.print(_released(check, folder), soft_wrap=True, highlight=False)
    screen.print(f"report: {report}", soft_wrap=True, highlight=False)
    written = screen.file
    assert isinstance(written, StringIO)
    return written.getvalue().rstrip()


def _released(check: ReleaseCheck, folder: RunFolder) -> str:
    against = "" if check.verdict is Verdict.PASSED else f" {' '.join(check.reasons)}"
    where = folder.synthetic if check.released else folder.withheld
    line = f"release check: {check.verdict}; the synthetic set is in {where}.{against}"
    if check.override is not None:
        return f"{line} {check.override.who} released it: {check.override.reason}"
    if not check.released:
        return f'{line} To release it all the same: the same command, --release-anyway "REASON"'
    return line


def _dice_table(scores: list[EvaluationEvent]) -> Table:
    table = Table(title="Dice on held-out patients, mean ± SD", title_justify="left")
    table.add_column("segmenter")
    for region in Region:
        table.add_column(str(region), justify="right")
    rows = dict.fromkeys((event.arm, event.model) for event in scores)
    for arm, model in rows:
        mine = {e.region: e for e in scores if (e.arm, e.model) == (arm, model)}
        cells = [_cell(mine.get(region)) for region in Region]
        table.add_row(f"{model} ({arm})", *cells)
    return table


def _cell(event: EvaluationEvent | None) -> str:
    if event is None or event.dice_mean is None:
        return "-"
    return f"{event.dice_mean:.3f} ± {event.dice_sd or 0:.3f}"
