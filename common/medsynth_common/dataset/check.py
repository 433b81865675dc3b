"""Is this a data set one can train on? Every problem of every patient, told at once."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from medsynth_common.dataset.layout import (
    ANATOMY_MAP,
    TUMOUR_MAP,
    DataConfig,
    PatientFiles,
    find_patients,
)
from medsynth_common.errors import BadData, Problem
from medsynth_common.labels import CONTRASTS, TUMOUR
from medsynth_common.volumes import Volume, read_volume

#: Grids agree when no corner is further off than this share of a voxel: headers round.
_CORNER_TOLERANCE: Final = 0.1
#: So many of a map's unknown values are named; an image taken for a map has thousands.
_NAMED_VALUES: Final = 5

Sites = Mapping[str, Sequence[PatientFiles]]


def checked_patients(root: Path, config: DataConfig) -> dict[str, list[PatientFiles]]:
    """Find the patients below `root` and check them all; raise BadData with every problem."""
    sites = find_patients(root, config)
    problems = check_patients(sites, config)
    if problems:
        raise BadData(problems)
    return sites


def check_patients(sites: Sites, config: DataConfig) -> list[Problem]:
    """Return every problem of every patient, in the order of the sites; empty when all is well.

    Reads every volume, one patient at a time.
    """
    problems = [*_membership_problems(sites)]
    patients = list({files.folder: files for site in sites.values() for files in site}.values())
    tumour_free = []
    for files in patients:
        volumes, unreadable = _read(files)
        problems += [
            *_file_problems(files, config),
            *unreadable,
            *_grid_problems(files, volumes),
            *_image_problems(files, volumes),
            *_map_problems(files, volumes, config),
        ]
        if TUMOUR_MAP in volumes and not _has_tumour(volumes[TUMOUR_MAP], config):
            tumour_free.append(files)
    if len(tumour_free) == len(patients) or not config.allow_no_tumour:
        problems += [_tumour_free_problem(files, config) for files in tumour_free]
    return problems


def _membership_problems(sites: Sites) -> Iterator[Problem]:
    homes: dict[Path, list[str]] = {}
    for site, patients in sites.items():
        if not patients:
            yield Problem(name=f"site {site}", value="no patient", wanted="at least one")
        for files in patients:
            homes.setdefault(files.folder, []).append(site)
    for folder, named in homes.items():
        if len(set(named)) > 1:
            value = f"sites {', '.join(sorted(set(named)))}"
            mend = "a patient at two sites would be counted twice in the privacy statement"
            yield Problem(name=f"patient {folder.name}", value=value, wanted="one site", mend=mend)
        for site in sorted(site for site in set(named) if named.count(site) > 1):
            value = f"{named.count(site)} rows"
            yield Problem(name=f"{site}/{folder.name}", value=value, wanted="one row in the CSV")


def _file_problems(files: PatientFiles, config: DataConfig) -> Iterator[Problem]:
    if not files.folder.is_dir():
        yield _problem(files, "", "no such folder", "a folder of that name", "correct the CSV")
        return
    roles_of: dict[Path, list[str]] = {}
    for role, found in files.matches.items():
        patterns = " or ".join(config.patterns[role])
        if not found:
            yield _problem(files, role, "no file", f"one that matches {patterns}")
        elif len(found) > 1:
            value = ", ".join(path.name for path in found)
            yield _problem(files, role, value, f"one that matches {patterns}", "narrow the pattern")
        else:
            roles_of.setdefault(found[0], []).append(role)
    for path, roles in roles_of.items():
        if len(roles) > 1:
            wanted = "a file for each"
            yield _problem(files, " and ".join(roles), path.name, wanted, "narrow the patterns")


def _read(files: PatientFiles) -> tuple[dict[str, Volume], list[Problem]]:
    volumes: dict[str, Volume] = {}
    problems: list[Problem] = []
    for role, found in files.matches.items():
        if len(found) != 1:
            continue
        try:
            volumes[role] = read_volume(found[0])
        except BadData as error:
            problems += [
                _problem(files, role, f"{found[0].name}: {bad.value}", bad.wanted, bad.mend)
                for bad in error.problems
            ]
    return volumes, problems


def _grid_problems(files: PatientFiles, volumes: Mapping[str, Volume]) -> Iterator[Problem]:
    """Compare every grid with the one that most of the patient's volumes share."""
    if not volumes:
        return
    usual = max(volumes, key=lambda role: _company(volumes[role], volumes))
    mend = "resample it, or export the registered one"
    for role, volume in volumes.items():
        if difference := _difference(volume, volumes[usual]):
            wanted = f"the grid of {usual}, {_size(volumes[usual])}"
            yield _problem(files, role, difference, wanted, mend)


def _company(volume: Volume, volumes: Mapping[str, Volume]) -> int:
    return sum(not _difference(other, volume) for other in volumes.values())


def _difference(volume: Volume, reference: Volume) -> str:
    """Say how a grid differs from another; empty when it does not."""
    if volume.data.shape != reference.data.shape:
        return _size(volume)
    distance = float(np.abs(_corners(volume) - _corners(reference)).max())
    if distance > _CORNER_TOLERANCE * min(reference.spacing):
        return f"an affine that puts a corner {distance:.3g} mm away"
    return ""


def _image_problems(files: PatientFiles, volumes: Mapping[str, Volume]) -> Iterator[Problem]:
    images = {contrast: volumes[contrast].data for contrast in CONTRASTS if contrast in volumes}
    if images and not any((image > 0).any() for image in images.values()):
        yield _problem(files, "", "no voxel above 0 in any contrast", "a skull-stripped brain")
        return
    for contrast, image in images.items():
        if unreal := int(np.count_nonzero(~np.isfinite(image))):
            yield _problem(files, contrast, f"{unreal} NaN or infinite voxels", "finite voxels")
            continue
        signal = image[image > 0]
        if signal.size == 0 or signal.min() == signal.max():
            value = (
                f"{signal[0]:g} in every voxel of the brain" if signal.size else "no voxel above 0"
            )
            yield _problem(files, contrast, value, "an image with contrast")


def _map_problems(
    files: PatientFiles, volumes: Mapping[str, Volume], config: DataConfig
) -> Iterator[Problem]:
    known = {TUMOUR_MAP: config.tumour_values, ANATOMY_MAP: config.anatomy_values}
    for role, values in known.items():
        if role not in volumes:
            continue
        found = np.unique(volumes[role].data)
        unknown = [value for value in found if value not in (0, *values)]
        if unknown:
            named = ", ".join(f"{value:g}" for value in unknown[:_NAMED_VALUES])
            more = (
                f" and {len(unknown) - _NAMED_VALUES} more" if len(unknown) > _NAMED_VALUES else ""
            )
            wanted = ", ".join(map(str, sorted({0, *values})))
            mend = f"say what it means in {role}_values"
            yield _problem(files, role, f"label value {named}{more}", wanted, mend)
        elif not found.any() and role == ANATOMY_MAP:
            yield _problem(files, role, "an empty map", "labelled voxels")


def _tumour_free_problem(files: PatientFiles, config: DataConfig) -> Problem:
    if config.allow_no_tumour:
        return _problem(files, TUMOUR_MAP, "no tumour, as in all patients", "a tumour in some")
    mend = "if patients may be healthy, set allow_no_tumour = true"
    return _problem(files, TUMOUR_MAP, "an empty map", "labelled voxels", mend)


def _has_tumour(volume: Volume, config: DataConfig) -> bool:
    passed_over = [value for value, tissue in config.tumour_values.items() if tissue not in TUMOUR]
    return not np.isin(volume.data, [0, *passed_over]).all()


def _corners(volume: Volume) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    last = np.asarray(volume.data.shape) - 1
    indices = np.array([[*(last * corner), 1.0] for corner in np.ndindex(2, 2, 2)])
    return np.asarray((indices @ volume.affine.T)[:, :3])


def _size(volume: Volume) -> str:
    return "x".join(map(str, volume.data.shape)) + " voxels"


def _problem(files: PatientFiles, role: str, value: str, wanted: str, mend: str = "") -> Problem:
    name = f"{files}: {role}" if role else str(files)
    return Problem(name=name, value=value, wanted=wanted, mend=mend)
