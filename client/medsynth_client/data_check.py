"""`medsynth-client check`: can this site train on its patients? Every problem, told at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsynth_client.site_file import SiteFile
from medsynth_common.dataset import check_patients
from medsynth_common.dataset.source import FolderSource, files_in
from medsynth_common.errors import BadData, Problem


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What was found.

    Attributes:
        site: the site's name.
        patients: how many `site.toml` names.
        unlisted: folders that look like patients and are not named there.
        problems: what must be mended before training.

    """

    site: str
    patients: int
    unlisted: tuple[str, ...]
    problems: tuple[Problem, ...]

    def facts(self) -> dict[str, Any]:
        """For a program."""
        return {
            "site": self.site,
            "patients": self.patients,
            "unlisted": list(self.unlisted),
            "problems": [vars(problem) for problem in self.problems],
        }


def check_data(folder: Path) -> DataCheck:
    """Read every patient that the site's own file names. Raises `BadConfig` for the file alone."""
    file = SiteFile.load(folder / "site.toml")
    names = file.source.names()
    found: list[Problem] = []
    unlisted: tuple[str, ...] = ()
    if len(names) < file.declared_patients:
        wanted = f"at most {len(names)}, as many as there are patients"
        value = str(file.declared_patients)
        found.append(Problem(name="site.toml: declared_patients", value=value, wanted=wanted))
    if isinstance(file.source, FolderSource):
        unlisted, problems = _check_folder(file.source, file.name)
        found += problems
    return DataCheck(site=file.name, patients=len(names), unlisted=unlisted, problems=tuple(found))


def _check_folder(source: FolderSource, site: str) -> tuple[tuple[str, ...], list[Problem]]:
    try:
        files = {one.name: one for one in files_in(Path(source.root), source.data, source.site)}
    except BadData as error:
        return (), list(error.problems)
    missing = [
        Problem(name=f"{source.root}/{name}", value="no such folder", wanted="a patient's folder")
        for name in source.patients
        if name not in files
    ]
    twice = sorted({name for name in source.patients if source.patients.count(name) > 1})
    missing += [
        Problem(name=f"site.toml: patients: {name}", value="named twice", wanted="once")
        for name in twice
    ]
    chosen = [files[name] for name in dict.fromkeys(source.patients) if name in files]
    unlisted = tuple(sorted(files.keys() - set(source.patients)))
    return unlisted, missing + (check_patients({site: chosen}, source.data) if chosen else [])
