"""What synthetic volumes are worth: the table of Shin et al. 2018, on this run's patients."""

from collections.abc import Mapping

from medsynth_common.labels import Region
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.palette import arm_look
from medsynth_server.report.section import Section
from medsynth_server.table.cells import Column
from medsynth_server.table.paper import CAVEAT, PAPER, SOURCE
from medsynth_server.table.results import CellResult, TableResult
from medsynth_server.table.telling import (
    cell_name,
    generator_name,
    rows_of,
    spread_words,
    words,
)


def table(folder: RunFolder) -> Section | None:
    """Show the table in the paper's layout, then every region; None unless it was asked for."""
    found = folder.table
    if found is None:
        return None
    return Section(
        name="table",
        title="What synthetic volumes are worth",
        facts={
            "columns": [str(column) for column in Column],
            "groups": _groups(found),
            "paper": {
                name: [f"{mean:.2f} ± {sd:.2f}" for mean, sd in row.values()]
                for name, row in PAPER.items()
            },
            "source": SOURCE,
            "caveat": CAVEAT,
            "words": list(words(found)),
            "sites": list(found.held_out),
            "regions": {str(region): _rows(found, region) for region in Region},
        },
    )


def _groups(found: TableResult) -> list[Mapping[str, object]]:
    """Rows by generator: name, colour, and a Dice of each column."""
    groups: dict[str, dict[str, object]] = {}
    for arm, name, cells in rows_of(found):
        look = arm_look(protected=found.epsilon[arm] is not None)
        group = groups.setdefault(
            arm, {"name": generator_name(arm, found), "colour": look.colour, "rows": {}}
        )
        rows = group["rows"]
        assert isinstance(rows, dict)
        rows[name] = [_dice(cell) for cell in cells.values()]
    return list(groups.values())


def _dice(cell: CellResult | None) -> str:
    return "-" if cell is None else spread_words(cell.regions[Region.WHOLE].dice, 3)


def _rows(found: TableResult, region: Region) -> list[Mapping[str, object]]:
    return [
        {
            "name": cell_name(one.cell, found),
            "figures": [
                spread_words(result.dice, 3),
                spread_words(result.hd95, 1),
                spread_words(result.lesion_dice, 3),
                spread_words(result.lesion_hd95, 1),
                f"{result.missed:.2f}",
                f"{result.false:.2f}",
            ],
            "sites": list(result.per_site.values()),
        }
        for one in found.cells
        for result in [one.regions[region]]
    ]
