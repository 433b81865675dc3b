"""CSV tables that deal patients to sites: `site,patient`, or FeTS' `Partition_ID,Subject_ID`."""

import csv
from pathlib import Path
from typing import Final

from medsynth_common.errors import BadData, Problem

#: Names of the two columns: ours, and those of the FeTS challenge (Pati et al. 2021).
COLUMNS: Final = (("site", "patient"), ("Partition_ID", "Subject_ID"))


def read_table(path: Path, *, delimiter: str = ",") -> tuple[list[str], list[dict[str, str]]]:
    """Read a table's columns and rows, cells stripped of blanks. Raises BadData."""
    try:
        # utf-8-sig: spreadsheets put a byte-order mark before the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream, skipinitialspace=True, delimiter=delimiter)
            rows = [{k: (v or "").strip() for k, v in row.items() if k} for row in table]
            columns = [name or "" for name in table.fieldnames or ()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        value = f"unreadable ({type(error).__name__})"
        raise BadData(Problem(name=str(path), value=value, wanted="a UTF-8 CSV file")) from error
    return columns, rows


def partitions_in(root: Path) -> list[Path]:
    """Return the CSV files in a folder whose columns name sites and patients."""
    return [
        path
        for path in sorted(root.glob("*.csv"))
        if any(set(pair) <= set(_first_line(path)) for pair in COLUMNS)
    ]


def read_partition(path: Path) -> list[tuple[str, str]]:
    """Read the (site, patient) rows of a CSV; tell every unusable row at once."""
    columns, rows = read_table(path)
    usual = COLUMNS[0]
    site, patient = next((pair for pair in COLUMNS if set(pair) <= set(columns)), usual)
    value = f"columns {', '.join(columns) or 'none'}"
    problems = [
        Problem(name=str(path), value=value, wanted=f"a column {name}")
        for name in (site, patient)
        if name not in columns
    ]
    if problems:
        raise BadData(problems)
    members = [(row[site], row[patient]) for row in rows]
    # A name is one folder name, so that no row points outside the data folder.
    problems = [
        Problem(name=f"{path}: row {row}", value=repr(f"{one},{other}"), wanted="site,patient")
        for row, (one, other) in enumerate(members, start=2)
        if not (_is_folder_name(one) and _is_folder_name(other))
    ]
    if problems:
        raise BadData(problems)
    return members


def _first_line(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig") as stream:
            return [name.strip() for name in stream.readline().split(",")]
    except (OSError, UnicodeDecodeError):  # some other table: if it was meant, it has to be named
        return []


def _is_folder_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..")
