"""Plain folders of files with patterns: by site, by patient, or all files in one folder.

    ROOT/[sites/]<site>/<patient>/*.nii.gz      layout = "sites"
    ROOT/<patient>/*.nii.gz                     layout = "patients"
    ROOT/<patient>_t1.nii.gz, ...               layout = "files"

A patient's folder may hold a folder for each session instead of files.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from medsynth_common.dataset.config import DataConfig
from medsynth_common.dataset.files import PatientFiles, folders_in, is_volume
from medsynth_common.dataset.layouts.sessions import of_sessions
from medsynth_common.labels import BRATS_VALUES


def sites(root: Path, config: DataConfig) -> dict[str, list[PatientFiles]]:
    """Find `<site>/<patient>/` folders; a site without patients comes back as an empty list."""
    parent = root / "sites" if (root / "sites").is_dir() else root
    return {
        site.name: [replace(one, site=site.name) for one in patients(site, config)]
        for site in folders_in(parent)
    }


def patients(root: Path, config: DataConfig) -> list[PatientFiles]:
    """Find `<patient>/` folders, of files or of sessions."""
    return [_patient(folder, config) for folder in folders_in(root)]


def files(root: Path, config: DataConfig) -> list[PatientFiles]:
    """Find patients whose files stand in one folder, named `<patient><ending>`."""
    volumes = sorted(path for path in root.iterdir() if is_volume(path))
    found: dict[str, dict[str, tuple[Path, ...]]] = {}
    for role, globs in config.patterns.items():
        for glob in globs:
            # The patient is what the first star stands for.
            start, _, ending = glob.partition("*")
            for path in volumes:
                if path.match(glob) and (name := _between(path.name, start, ending)):
                    roles = found.setdefault(name, dict.fromkeys(config.patterns, ()))
                    roles[role] = roles[role] or (path,)
    return [
        _files(name, root, {role: roles[role] for role in config.patterns}, config)
        for name, roles in sorted(found.items())
    ]


def _between(name: str, start: str, ending: str) -> str:
    if name.startswith(start) and name.endswith(ending):
        return name[len(start) : len(name) - len(ending)].rstrip("-_")
    return ""


def _patient(folder: Path, config: DataConfig) -> PatientFiles:
    own = _match(folder, folder.name, config)
    if any(own.matches.values()):
        return own
    visits = [_match(visit, folder.name, config) for visit in folders_in(folder)]
    held = [replace(one, session=one.folder.name) for one in visits if any(one.matches.values())]
    return of_sessions(held) if held else own


def _match(folder: Path, name: str, config: DataConfig) -> PatientFiles:
    matches = {role: _first_match(folder, globs) for role, globs in config.patterns.items()}
    return _files(name, folder, matches, config)


def _files(
    name: str, folder: Path, matches: dict[str, tuple[Path, ...]], config: DataConfig
) -> PatientFiles:
    return PatientFiles(
        site="",
        name=name,
        folder=folder,
        matches=matches,
        otherwise="files with other names: give their patterns in [data]",
        wanted={role: f"one that matches {_either(config.patterns[role])}" for role in matches},
        tumour_values=BRATS_VALUES if config.tumour_values is None else config.tumour_values,
    )


def _either(globs: Sequence[str]) -> str:
    return " or ".join(globs)


def _first_match(folder: Path, globs: Iterable[str]) -> tuple[Path, ...]:
    found = (tuple(sorted(filter(is_volume, folder.glob(glob)))) for glob in globs)
    return next((paths for paths in found if paths), ())
