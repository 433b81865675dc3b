"""What the benchmarks found: one JSON file each, and `RESULTS.md` made of them all.

A benchmark calls `record` once, with its table's rows and its goals. `python -m benchmarks results`
renders the page from the files, so that no figure on it was ever typed by a person.
"""

import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch
from pydantic import Field
from rich.console import Console
from rich.table import Table

from medsynth_common.durable import write_bytes, write_json
from medsynth_common.privacy.mechanism import Value

FOLDER: Final = Path(__file__).parent / "results"
PAGE: Final = Path(__file__).parent / "RESULTS.md"
_PACKAGES: Final = ("torch", "monai", "opacus", "flwr", "numpy")
_HEAD: Final = """\
# What was measured

Made by `python -m benchmarks results` from `benchmarks/results/*.json`, which the benchmarks write.
Every goal is shown, met or missed.
"""

Cell = str | int | float | None


class Goal(Value):
    """One bar, and how far the figure is from it.

    Attributes:
        what: is measured.
        figure: what was found; None where this machine cannot measure it.
        bar: the most it may be, or the least where `least`.
        least: whether more is better.
        unit: of figure and bar; empty for a ratio.

    """

    what: str
    figure: float | None
    bar: float
    least: bool = False
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bar is met; None when nothing was measured."""
        if self.figure is None:
            return None
        return self.figure >= self.bar if self.least else self.figure <= self.bar

    @property
    def words(self) -> str:
        """The goal as a line of the page."""
        verdict = {True: "met", False: "**missed**", None: "not measured"}[self.met]
        figure, bar = _told_apart(self.figure, self.bar)
        wish = f"{'at least' if self.least else 'at most'} {bar} {self.unit}".strip()
        found = f": {figure} {self.unit}".rstrip() if figure else ""
        return f"- {verdict}{found}, wanted {wish}: {self.what}"


class Result(Value):
    """What one benchmark found, and where and when.

    Attributes:
        name: of the benchmark and its file.
        title: heading of its section.
        about: what was compared with what, in a sentence or two.
        rows: the table; all rows have the first one's columns.
        goals: what was wanted.
        notes: what a reader has to know besides.
        seeds: of each row and column, what each seed gave, in their order; not on the page.
        command: that gives these figures again.
        date: of the measurement, ISO 8601, UTC.
        machine: processor, cores, what they compute with, memory, GPU.
        load: processes that wanted a core when the benchmark ended, its own included.
        versions: of Python and the packages that matter.

    """

    name: str
    title: str
    about: str
    rows: tuple[dict[str, Cell], ...] = Field(min_length=1)
    goals: tuple[Goal, ...]
    notes: tuple[str, ...]
    seeds: Mapping[str, Mapping[str, tuple[float, ...]]] = Field(default_factory=dict)
    command: str
    date: str
    machine: str
    load: float
    versions: dict[str, str]


def record(
    name: str,
    *,
    title: str,
    about: str,
    rows: Sequence[Mapping[str, Cell]],
    goals: Sequence[Goal],
    notes: Sequence[str] = (),
    seeds: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    command: str | None = None,
    folder: Path = FOLDER,
) -> bool:
    """Write a benchmark's result and print its table; whether no goal was missed.

    `command` is `python -m benchmarks NAME` unless another gives the figures again.
    """
    result = Result(
        name=name,
        title=title,
        about=about,
        rows=tuple(dict(row) for row in rows),
        goals=tuple(goals),
        notes=tuple(notes),
        seeds={
            row: {column: tuple(values) for column, values in columns.items()}
            for row, columns in (seeds or {}).items()
        },
        command=command or f"python -m benchmarks {name}",
        date=datetime.now(UTC).isoformat(timespec="minutes"),
        machine=_machine(),
        load=round(os.getloadavg()[0], 1),
        versions={"python": platform.python_version()} | {p: version(p) for p in _PACKAGES},
    )
    write_json(folder / f"{name}.json", result.model_dump(mode="json"))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(_table(result))
    for line in [*(goal.words for goal in result.goals), *result.notes]:
        console.print(line, markup=False)
    return all(goal.met is not False for goal in result.goals)


def render(folder: Path = FOLDER, page: Path = PAGE) -> None:
    """Write the page anew from all results in `folder`."""
    found = [
        Result.model_validate_json(file.read_bytes()) for file in sorted(folder.glob("*.json"))
    ]
    sections = [_HEAD, *(_section(result) for result in found)]
    write_bytes(page, "\n".join(sections).encode())


def _section(result: Result) -> str:
    columns = list(result.rows[0])
    versions = ", ".join(f"{name} {number}" for name, number in result.versions.items())
    lines = [
        f"## {result.title}\n",
        f"{result.about}\n",
        _line(columns),
        _line("---" if _is_text(result, column) else "---:" for column in columns),
        *(_line(_written(row.get(column)) for column in columns) for row in result.rows),
        "",
        *(goal.words for goal in result.goals),
        *(f"- note: {note}" for note in result.notes),
        "",
        f"`{result.command}`, {result.date}; {result.machine}, load {result.load:g}; {versions}\n",
    ]
    return "\n".join(lines)


def _table(result: Result) -> Table:
    table = Table(title=result.title)
    for column in result.rows[0]:
        table.add_column(column, justify="left" if _is_text(result, column) else "right")
    for row in result.rows:
        table.add_row(*(_written(row.get(column)) for column in result.rows[0]))
    return table


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _is_text(result: Result, column: str) -> bool:
    return any(isinstance(row.get(column), str) for row in result.rows)


def _written(value: Cell) -> str:
    """Three digits are more than a timing has."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _told_apart(figure: float | None, bar: float) -> tuple[str, str]:
    """Write both as in a table, but with as many decimals as show that they differ."""
    written, wanted = _written(figure), _written(bar)
    decimals = 0
    while figure is not None and figure != bar and written == wanted:
        decimals += 1
        written, wanted = (f"{one:,.{decimals}f}".rstrip("0").rstrip(".") for one in (figure, bar))
    return written, wanted


def _machine() -> str:
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        named = [ln for ln in information.read_text().splitlines() if ln.startswith("model name")]
        model = named[0].partition(":")[2].strip() if named else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {_vectors()}, {memory:.0f} GiB, {_gpu()}"


def _vectors() -> str:
    """What torch computes with on this processor, and what it has for bfloat16."""
    known = torch.backends.cpu.get_cpu_capability()
    return " ".join([known, *(bfloat16_arithmetic() or ("no bfloat16",))])


def bfloat16_arithmetic() -> tuple[str, ...]:
    """The processor's instructions that compute in bfloat16; none where Linux does not tell."""
    information = Path("/proc/cpuinfo")
    flags = set(information.read_text().split()) if information.exists() else set()
    return tuple(name for name in ("avx512_bf16", "amx_bf16") if name in flags)


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
