"""The files of one patient: what every layout gives, and all that the rest sees of it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from medsynth_common.errors import BadData, Problem
from medsynth_common.labels import BRATS_VALUES, Tissue
from medsynth_common.volumes import Volume, read_channels

#: What a patient's file is for: a `Contrast`, or one of these two.
TUMOUR_MAP: Final = "tumour"
ANATOMY_MAP: Final = "anatomy"

SUFFIXES: Final = (".nii.gz", ".nii")

Matches = Mapping[str, tuple[Path, ...]]


@dataclass(frozen=True, kw_only=True)
class PatientFiles:
    """The files of one patient, by what each is for; nothing has been read yet.

    Attributes:
        site: the hospital the patient belongs to; empty where the layout does not say.
        name: of the patient.
        folder: where the files stand.
        matches: for each `Contrast`, the tumour map and, where configured, the anatomy map: all
            files it could be. A good patient has one each; `check` tells the rest. Empty for a
            patient that is only named in a CSV.
        wanted: for each of them, the file names that were looked for, as told to a person.
        otherwise: what to do where files have other names; empty where the layout fixes them.
        channels: which 3D volume of a 4D file it is, where it is one.
        tumour_values: what the tumour map's values mean.
        session: the session (visit) that the files are of; empty when there is but one.
        sessions: all sessions found. They are one patient, who counts once.

    """

    site: str
    name: str
    folder: Path
    matches: Matches
    wanted: Mapping[str, str] = field(default_factory=dict)
    otherwise: str = ""
    channels: Mapping[str, int] = field(default_factory=dict)
    tumour_values: Mapping[int, Tissue] = field(default_factory=lambda: BRATS_VALUES)
    session: str = ""
    sessions: tuple[str, ...] = ()

    def path(self, role: str) -> Path:
        """Return the one file for `role`; raise BadData when there is none, or a choice."""
        found = self.matches.get(role, ())
        if len(found) != 1:
            value = f"{len(found)} matching files"
            raise BadData(Problem(name=f"{self}: {role}", value=value, wanted="one"))
        return found[0]

    def read(self) -> dict[str, Volume]:
        """Read every volume, each file once. Raises BadData; see `read_channels`."""
        roles_of: dict[Path, list[str]] = defaultdict(list)
        for role in self.matches:
            roles_of[self.path(role)].append(role)
        volumes: dict[str, Volume] = {}
        for path, roles in roles_of.items():
            read = read_channels(path, [self.channels.get(role) for role in roles])
            volumes |= dict(zip(roles, read, strict=True))
        return volumes

    def __str__(self) -> str:
        return f"{self.site}/{self.name}" if self.site else self.name


def is_volume(path: Path) -> bool:
    """Say whether a file is named like a NIfTI volume; `._x.nii.gz` is a Mac's note on one."""
    return path.name.endswith(SUFFIXES) and not path.name.startswith(".")


def stem(path: Path) -> str:
    """Return a volume's file name without `.nii` or `.nii.gz`."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def folders_in(parent: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name, without hidden ones."""
    return sorted(
        entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
