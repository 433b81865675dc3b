"""What `medsynth-client privacy status` shows to a person."""

from collections.abc import Mapping
from typing import Any, Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from medsynth_common.wording import counted

#: Where the output is no terminal, tables are this wide and no line is folded.
_WIDTH: Final = 120
_UNBOUNDED: Final = "unbounded (no privacy)"


def show_status(status: Mapping[str, Any]) -> None:
    """Print what `privacy_command.status` found on standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(_page(status))


def _page(status: Mapping[str, Any]) -> RenderableType:
    cap, left = status["cap"], status["left"]
    lines = [
        f"{status['site']}: epsilon {_epsilon(status['epsilon'])} of "
        f"{'none' if cap is None else f'{cap:g}'} at delta {status['delta']:g}, unit: patient",
        f"left {'without end' if left is None else f'{left:.3f}'}; of any patient ever "
        f"{_epsilon(status['epsilon_ever'])}; {counted(status['patients'], 'patient')} "
        f"in {counted(status['data_sets'], 'data set')}",
    ]
    parts: list[RenderableType] = [Text("\n".join(lines))]
    if status["projects"]:
        parts.append(_table(status))
    if "plan" in status:
        parts.append(Text(_plan(status["plan"])))
    return Group(*parts)


def _table(status: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("project", "mechanism"):
        table.add_column(heading, overflow="fold")
    for heading in ("noise", "rate", "clip", "steps", "releases", "epsilon"):
        table.add_column(heading, justify="right")
    for project in status["projects"]:
        for line in project["mechanisms"]:
            table.add_row(
                Text(project["project"]),
                Text(line["name"]),
                f"{line['noise_multiplier']:.3f}",
                f"{line['sampling_rate']:g}",
                "-" if line["clip"] is None else f"{line['clip']:g}",
                str(line["steps"]),
                str(line["releases"]),
                _short(line["epsilon_alone"]),
            )
        together = _short(project["epsilon"])
        table.add_row(
            Text(project["project"]), "together", "", "", "", "", "", together, end_section=True
        )
    return table


def _plan(plan: Mapping[str, Any]) -> str:
    asked = f"the plan ({plan['project']}, {plan['stage']} round {plan['round']})"
    cost = "" if plan["cost"] is None else f"would cost {plan['cost']:.3f} more: "
    lines = [f"{asked} {cost}epsilon {_epsilon(plan['epsilon_after'])} after it"]
    lines += [f"  forbidden by {reason}" for reason in plan["reasons"]]
    if not plan["fits_cap"]:
        lines.append("  past the cap")
    verdict = "would be done" if plan["would_be_done"] else "would be refused"
    return "\n".join([*lines, f"  it {verdict}"])


def _epsilon(value: float | None) -> str:
    return _UNBOUNDED if value is None else f"{value:.3f}"


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
