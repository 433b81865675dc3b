"""Where patients stand in a folder: sites, patients and the file of each contrast.

Three layouts are known:

    ROOT/[sites/]<site>/<patient>/*.nii.gz      the default
    ROOT/<patient>/*.nii.gz                     with `sites = "partition.csv"`: columns site,patient
    ROOT/<patient>/*.nii.gz                     with `one_site_per_patient = true`

Only names are read here; what the files hold is the business of `check`.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    model_validator,
)

from medsynth_common.errors import BadData, Problem
from medsynth_common.labels import ANATOMY, BRATS_VALUES, CONTRASTS, TUMOUR, Contrast, Tissue

#: What a patient's file is for: a `Contrast`, or one of these two.
TUMOUR_MAP: Final = "tumour"
ANATOMY_MAP: Final = "anatomy"

_SUFFIXES: Final = (".nii.gz", ".nii")


def _ending(*stems: str) -> tuple[str, ...]:
    return tuple(f"*{stem}{suffix}" for stem, suffix in product(stems, _SUFFIXES))


#: BraTS file names, until 2022 and since 2023.
_BRATS_CONTRASTS: Final = {
    Contrast.T1: _ending("_t1", "-t1n"),
    Contrast.T1GD: _ending("_t1ce", "-t1c"),
    Contrast.T2: _ending("_t2", "-t2w"),
    Contrast.FLAIR: _ending("_flair", "-t2f"),
}
_BRATS_TUMOUR: Final = _ending("_seg", "-seg")


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _inside_the_folder(globs: tuple[str, ...]) -> tuple[str, ...]:
    for glob in globs:
        if not glob or PurePosixPath(glob).is_absolute() or ".." in PurePosixPath(glob).parts:
            raise ValueError(f"a pattern inside the patient's folder, got {glob!r}")
    if not globs:
        raise ValueError("at least one pattern")
    return globs


def _tissue(value: Any) -> Any:
    if isinstance(value, str):
        names = {tissue.name.lower(): tissue for tissue in Tissue}
        if value.lower() not in names:
            raise ValueError(f"one of {', '.join(names)}, got {value!r}")
        return names[value.lower()]
    return value


Globs = Annotated[
    tuple[str, ...], BeforeValidator(_one_or_many), AfterValidator(_inside_the_folder)
]
NamedTissue = Annotated[
    Tissue,
    BeforeValidator(_tissue),
    PlainSerializer(lambda tissue: tissue.name.lower(), return_type=str, when_used="json"),
]


class DataConfig(BaseModel):
    """How a folder of patients is to be read; the defaults read BraTS.

    Attributes:
        contrasts: a file pattern for each contrast, inside the patient's folder. A list of
            patterns is tried in order, the first that matches wins; a contrast left out keeps
            its default.
        tumour: the pattern(s) of the tumour map.
        anatomy: the pattern(s) of the anatomy map; without it tissues come from clustering.
        tumour_values: what the tumour map's values mean, `background` for one to pass over. 0 is
            always background. A value not named here is a problem of the data.
        anatomy_values: the same for the anatomy map.
        sites: a CSV of `site,patient` rows, its path relative to the data folder.
        one_site_per_patient: every folder is one patient, and a site of its own.
        allow_no_tumour: a tumour map may be empty (a healthy patient), as long as not all are.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    contrasts: Mapping[Contrast, Globs] = _BRATS_CONTRASTS
    tumour: Globs = _BRATS_TUMOUR
    anatomy: Globs | None = None
    tumour_values: Mapping[int, NamedTissue] = BRATS_VALUES
    anatomy_values: Mapping[int, NamedTissue] = {int(tissue): tissue for tissue in ANATOMY}
    sites: Path | None = None
    one_site_per_patient: bool = False
    allow_no_tumour: bool = False

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and isinstance(given.get("contrasts"), Mapping):
            return {**given, "contrasts": {**_BRATS_CONTRASTS, **given["contrasts"]}}
        return given

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_values("tumour_values", self.tumour_values, (Tissue.BACKGROUND, *TUMOUR))
        _check_values("anatomy_values", self.anatomy_values, ANATOMY)
        if self.sites is not None and self.one_site_per_patient:
            raise ValueError("sites and one_site_per_patient exclude each other, got both")
        return self

    @property
    def patterns(self) -> dict[str, tuple[str, ...]]:
        """The patterns of every file a patient must have, by what the file is for."""
        maps = {TUMOUR_MAP: self.tumour, ANATOMY_MAP: self.anatomy}
        wanted = {contrast: self.contrasts[contrast] for contrast in CONTRASTS} | maps
        return {str(role): globs for role, globs in wanted.items() if globs is not None}


def _check_values(name: str, values: Mapping[int, Tissue], allowed: tuple[Tissue, ...]) -> None:
    for value, tissue in values.items():
        if tissue not in allowed:
            names = ", ".join(tissue.name.lower() for tissue in allowed)
            raise ValueError(f"{name}: {value} must mean one of {names}, got {tissue.name.lower()}")
    if values.get(0, Tissue.BACKGROUND) is not Tissue.BACKGROUND:
        raise ValueError(f"{name}: 0 must mean background, got {values[0].name.lower()}")


@dataclass(frozen=True, kw_only=True)
class PatientFiles:
    """The files of one patient, by what each is for; nothing has been read yet.

    Attributes:
        site: the hospital the patient belongs to.
        name: the patient's folder name.
        folder: where the files stand.
        matches: for each `Contrast`, the tumour map and, where configured, the anatomy map: all
            files that match its pattern. A good patient has one each; `check` tells the rest.

    """

    site: str
    name: str
    folder: Path
    matches: Mapping[str, tuple[Path, ...]]

    def path(self, role: str) -> Path:
        """Return the one file for `role`; raise BadData when there is none, or a choice."""
        found = self.matches[role]
        if len(found) != 1:
            value = f"{len(found)} matching files"
            raise BadData(Problem(name=f"{self}: {role}", value=value, wanted="one"))
        return found[0]

    def __str__(self) -> str:
        return f"{self.site}/{self.name}"


def find_patients(root: Path, config: DataConfig) -> dict[str, list[PatientFiles]]:
    """Find the sites and patients below `root`, both sorted by name.

    What a site or patient lacks is not judged here but by `check_patients`, all at once: a CSV's
    unknown patient comes back with no files, a site without patients as an empty list.

    Raises:
        BadData: there is no such folder, it has no known layout, or the CSV cannot be read.

    """
    if not root.is_dir():
        raise BadData(
            Problem(name=str(root), value="no such folder", wanted="a folder of patients")
        )
    if config.sites is not None:
        members = _read_partition(root / config.sites)
        places = [(site, root / patient) for site, patient in members]
    elif config.one_site_per_patient:
        places = [(folder.name, folder) for folder in _folders(root)]
    else:
        return _find_site_folders(root / "sites" if (root / "sites").is_dir() else root, config)
    if not places:
        raise BadData(Problem(name=str(root), value="no patient", wanted="one folder per patient"))
    sites: dict[str, list[PatientFiles]] = {}
    for site, folder in sorted(places):
        sites.setdefault(site, []).append(_match(site, folder, config))
    return sites


def _find_site_folders(root: Path, config: DataConfig) -> dict[str, list[PatientFiles]]:
    folders = _folders(root)
    flat = [folder for folder in folders if _holds_volumes(folder) and not _folders(folder)]
    if not folders or len(flat) == len(folders):
        value = "no site folder" if not folders else f"volumes directly in {flat[0].name}/"
        mend = 'name a CSV with sites = "FILE", or set one_site_per_patient = true' if flat else ""
        wanted = "<site>/<patient>/ folders"
        raise BadData(Problem(name=str(root), value=value, wanted=wanted, mend=mend))
    return {
        site.name: [_match(site.name, patient, config) for patient in _folders(site)]
        for site in folders
    }


def _match(site: str, folder: Path, config: DataConfig) -> PatientFiles:
    matches = {role: _first_match(folder, globs) for role, globs in config.patterns.items()}
    return PatientFiles(site=site, name=folder.name, folder=folder, matches=matches)


def _first_match(folder: Path, globs: tuple[str, ...]) -> tuple[Path, ...]:
    found = (tuple(sorted(folder.glob(glob))) for glob in globs)
    return next((paths for paths in found if paths), ())


def _folders(parent: Path) -> list[Path]:
    return sorted(
        entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def _holds_volumes(folder: Path) -> bool:
    return any(entry.name.endswith(_SUFFIXES) for entry in folder.iterdir())


def _read_partition(path: Path) -> list[tuple[str, str]]:
    """Read the (site, patient) rows of a CSV; tell every unusable row at once."""
    try:
        # utf-8-sig: spreadsheets put a byte-order mark before the first column's name.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            table = csv.DictReader(stream, skipinitialspace=True)
            rows = list(table)
            columns = [name or "" for name in table.fieldnames or ()]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        value = f"unreadable ({type(error).__name__})"
        raise BadData(Problem(name=str(path), value=value, wanted="a UTF-8 CSV file")) from error
    problems = [
        Problem(
            name=str(path),
            value=f"columns {', '.join(columns) or 'none'}",
            wanted=f"a column {name}",
        )
        for name in ("site", "patient")
        if name not in columns
    ]
    if problems:
        raise BadData(problems)
    members = [((row["site"] or "").strip(), (row["patient"] or "").strip()) for row in rows]
    # A name is one folder name, so that no row points outside the data folder.
    problems = [
        Problem(name=f"{path}: row {row}", value=repr(f"{site},{patient}"), wanted="site,patient")
        for row, (site, patient) in enumerate(members, start=2)
        if not (_is_folder_name(site) and _is_folder_name(patient))
    ]
    if problems:
        raise BadData(problems)
    return members


def _is_folder_name(name: str) -> bool:
    return Path(name).name == name and name not in ("", "..")
