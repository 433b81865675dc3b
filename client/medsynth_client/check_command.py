"""`medsynth-client check`: can a hospital's data be trained on, and what is to be mended?"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medsynth_client.site_file import SiteFile
from medsynth_common.dataset.check import examine
from medsynth_common.dataset.checks.names import Sites
from medsynth_common.dataset.config import DataConfig
from medsynth_common.dataset.finding import Examination
from medsynth_common.dataset.layout import find_patients
from medsynth_common.dataset.mend import Prepared, write_prepared
from medsynth_common.dataset.source import FolderSource, files_of
from medsynth_common.dataset.telling import as_json, as_text, progress_bar, summary
from medsynth_common.errors import BadConfig, Problem
from medsynth_common.plan import problems_of


def check_folder(
    folder: Path, *, layout: str | None, settings: Path | None, fix: Path | None
) -> tuple[Examination, Prepared | None]:
    """Examine a data folder, or the patients of a site's folder; with `fix`, write a mended copy.

    Args:
        folder: a data folder, or a site's folder with its site.toml.
        layout: how the data folder is laid out; None to look.
        settings: a TOML file whose `[data]` says how the files are named and labelled.
        fix: where to write the mended copy.

    Raises:
        BadData: there are no patients to be found.
        BadConfig: a setting cannot be used, or goes without saying.

    """
    if (folder / "site.toml").is_file():
        root, config, sites = _of_site(folder / "site.toml", {"layout": layout, "config": settings})
    else:
        root, config = folder, _data_config(layout, settings)
        sites = find_patients(folder, config, one_site=folder.resolve().name)
    with progress_bar() as progress:
        examination = examine(sites, config, progress=progress)
        if fix is None:
            return examination, None
        return examination, write_prepared(root, examination, config, fix, progress=progress)


def told(examination: Examination, prepared: Prepared | None) -> str:
    """Tell all that was found, and what became of the mended copy."""
    text = as_text(examination)
    if prepared is None:
        return text
    mended = [f"mended: {line}" for line in _mended(prepared)]
    left = [
        f"left out: {name}: {problem.value}"
        for name, problems in prepared.left_out.items()
        for problem in problems
    ]
    where = f"{prepared.folder}: {summary(prepared.examination)}"
    return "\n".join([text, *mended, *left, where])


def as_values(examination: Examination, prepared: Prepared | None) -> dict[str, Any]:
    """Give the same for JSON."""
    values = as_json(examination)
    if prepared is not None:
        values["prepared"] = {
            "folder": str(prepared.folder),
            "mended": _mended(prepared),
            "left_out": {name: [str(p) for p in ps] for name, ps in prepared.left_out.items()},
            **as_json(prepared.examination),
        }
    return values


def _mended(prepared: Prepared) -> list[str]:
    said = [finding.problem for finding in prepared.mended]
    return [f"{one.name}: {one.value}, now {one.wanted}" for one in said]


def _of_site(path: Path, given: Mapping[str, object]) -> tuple[Path, DataConfig, Sites]:
    """Return the data folder of a site, how it is read, and its patients."""
    problems = [
        Problem(name=f"--{name}", value=str(value), wanted=f"nothing: {path} says it")
        for name, value in given.items()
        if value is not None
    ]
    site = SiteFile.load(path)
    if not isinstance(site.source, FolderSource):
        value, wanted = "phantoms", "patients in a folder: kind = 'folder'"
        problems.append(Problem(name=f"{path}: source", value=value, wanted=wanted))
        raise BadConfig(problems)
    names = site.source.names()
    problems += [
        Problem(name=f"{path}: patients: {name}", value="named twice", wanted="once")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if len(names) < site.declared_patients:
        wanted = f"at most {len(names)}, as many as there are patients"
        value = str(site.declared_patients)
        problems.append(Problem(name=f"{path}: declared_patients", value=value, wanted=wanted))
    if problems:
        raise BadConfig(problems)
    return Path(site.source.root), site.source.data, {site.name: files_of(site.source)}


def _data_config(layout: str | None, settings: Path | None) -> DataConfig:
    values = {} if settings is None else _read(settings)
    if layout is not None:
        values["layout"] = layout
    try:
        return DataConfig.model_validate(values)
    except ValidationError as error:
        raise BadConfig(problems_of(error, name=f"{settings or 'settings'}: data")) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("data", {})
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(
            Problem(name=str(path), value=type(error).__name__, wanted="a readable TOML file")
        ) from error
    if not isinstance(table, dict):
        raise BadConfig(Problem(name=f"{path}: data", value=repr(table), wanted="a table [data]"))
    return table
