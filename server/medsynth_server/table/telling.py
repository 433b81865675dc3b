"""The table on standard output, in the paper's layout, beside the paper's own figures."""

from collections.abc import Iterator
from io import StringIO

from rich.console import Console
from rich.table import Table

from medsynth_common.labels import Region
from medsynth_server.record import Arm, epsilon_words
from medsynth_server.table.cells import Cell, Column
from medsynth_server.table.paper import CAVEAT, PAPER, SOURCE
from medsynth_server.table.results import CellResult, Spread, TableResult

_WIDTH = 110


def tell(table: TableResult) -> str:
    """Write the table as text."""
    screen = Console(file=StringIO(), width=_WIDTH)
    screen.print(_main(table))
    for region in Region:
        screen.print(_details(table, region))
    for line in words(table):
        screen.print(line, soft_wrap=True, highlight=False)
    written = screen.file
    assert isinstance(written, StringIO)
    return written.getvalue().rstrip()


def words(table: TableResult) -> Iterator[str]:
    """What the figures are of, and which differences chance alone would rarely make."""
    patients = sum(table.held_out.values())
    who = "phantoms" if table.phantoms else "patients"
    yield (
        f"{patients} held-out {who} of {len(table.held_out)} sites; {table.real} real ones to "
        f"train on; {table.synthetic} synthetic volumes of each generator, none made from a "
        f"held-out one; “some real” is {table.few}. Every cell: random initial weights, "
        f"{table.steps} steps, "
        f"{table.seeds} seeds."
    )
    yield (
        "± is the SD over patients, whose scores are means over seeds. A region that was not found "
        "counts 374 mm."
    )
    sure = [test for test in table.tests if test.p_holm < 0.05]
    yield (
        f"Against real patients (Wilcoxon signed-rank over patients, Holm over all "
        f"{len(table.tests)} tests): {len(sure)} differ at 0.05" + ("." if not sure else ":")
    )
    for test in sure:
        yield (
            f"  {cell_name(test.cell, table)}, {test.region}: {test.difference:+.3f} Dice "
            f"(n = {test.patients}, p = {test.p_holm:.2g})"
        )
    yield f"{table.cpu_seconds / 60:.0f} minutes of CPU for trainings and their measurement."


def row_name(architecture: str, augmented: bool) -> str:
    """Name a row as the paper does."""
    network = {"unet": "U-Net", "segresnet": "SegResNet"}[architecture]
    return f"{network}, {'augmentation' if augmented else 'no augmentation'}"


def generator_name(arm: Arm, table: TableResult) -> str:
    """Name a generator by its privacy."""
    epsilon = table.epsilon[arm]
    return "no privacy" if epsilon is None else f"ε = {epsilon_words(epsilon)}"


def cell_name(cell: Cell, table: TableResult) -> str:
    """Name a cell in a sentence."""
    row = row_name(cell.architecture, cell.augmented)
    if cell.generator is None:
        return f"{row}: {cell.column}"
    return f"{row}: {cell.column} ({generator_name(cell.generator, table)})"


def rows_of(table: TableResult) -> list[tuple[Arm, str, dict[Column, CellResult | None]]]:
    """The table's rows: generator, name, and a cell of each column."""
    kinds = dict.fromkeys((one.cell.architecture, one.cell.augmented) for one in table.cells)
    return [
        (
            arm,
            row_name(architecture, augmented),
            {
                column: table.find(
                    Cell(
                        column=column,
                        generator=None if column is Column.REAL else arm,
                        architecture=architecture,
                        augmented=augmented,
                    )
                )
                for column in Column
            },
        )
        for arm in table.generators
        for architecture, augmented in kinds
    ]


def _main(table: TableResult) -> Table:
    title = "Whole-tumour Dice on held-out patients, mean ± SD"
    caption = f"* {SOURCE}: {CAVEAT}; other patients, other segmenters"
    shown = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    shown.add_column("segmenter")
    for column in Column:
        shown.add_column(str(column), justify="right")
    before: Arm | None = None
    for arm, name, cells in rows_of(table):
        if arm != before:
            shown.add_section()
            shown.add_row(f"[bold]generator: {generator_name(arm, table)}")
            before = arm
        shown.add_row(name, *[_dice(cell, Region.WHOLE) for cell in cells.values()])
    shown.add_section()
    shown.add_row("[bold]figures of the paper *")
    for name, figures in PAPER.items():
        shown.add_row(name, *[f"{mean:.2f} ± {sd:.2f}" for mean, sd in figures.values()])
    return shown


def _details(table: TableResult, region: Region) -> Table:
    shown = Table(title=region.capitalize(), title_justify="left")
    heads = ("Dice", "HD95, mm", "lesion-wise Dice", "lesion-wise HD95", "missed", "false", "sites")
    shown.add_column("cell", overflow="fold")
    for head in heads:
        shown.add_column(head, justify="right")
    for one in table.cells:
        result = one.regions[region]
        sites = " ".join("-" if d is None else f"{d:.2f}" for d in result.per_site.values())
        shown.add_row(
            cell_name(one.cell, table),
            spread_words(result.dice, 3),
            spread_words(result.hd95, 1),
            spread_words(result.lesion_dice, 3),
            spread_words(result.lesion_hd95, 1),
            f"{result.missed:.2f}",
            f"{result.false:.2f}",
            sites,
        )
    return shown


def _dice(cell: CellResult | None, region: Region) -> str:
    return "-" if cell is None else spread_words(cell.regions[region].dice, 3)


def spread_words(spread: Spread | None, digits: int) -> str:
    """Write mean ± SD."""
    return "-" if spread is None else f"{spread.mean:.{digits}f} ± {spread.sd:.{digits}f}"
