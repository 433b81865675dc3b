"""From a run's folder to `report.html`: one file that needs no network, script or other file."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from medsynth_common.durable import write_bytes
from medsynth_server.report.contents import SECTIONS
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.palette import PROTECTED, UNPROTECTED
from medsynth_server.report.words import in_bytes, in_time, listed, spelled, two_decimals

REPORT: Final = "report.html"


def build_report(run_dir: Path) -> Path:
    """Write the report of the run in `run_dir`, finished or not, and return its path.

    Every number in it stands in the run's record. What the record lacks is said to be missing.

    Raises:
        BadInput: a file of the record is there and does not check.

    """
    folder = RunFolder.read(run_dir)
    sections = [section for make in SECTIONS if (section := make(folder)) is not None]
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            run=run_dir.resolve().name,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            sections=sections,
            missing=[section for section in sections if section.missing],
            colours={"protected": PROTECTED, "unprotected": UNPROTECTED},
        )
    )
    report = run_dir / REPORT
    write_bytes(report, page.encode())
    return report


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("medsynth_server.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "in_bytes": in_bytes,
        "in_time": in_time,
        "listed": listed,
        "spelled": spelled,
        "two_decimals": two_decimals,
    }
    return environment
