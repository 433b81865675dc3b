"""BIDS (Gorgolewski et al. 2016): `sub-*/[ses-*/]anat/`, masks and prepared images in derivatives.

    sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz
    sub-01/ses-1/anat/sub-01_ses-1_ce-gadolinium_T1w.nii.gz
    sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz, ..._FLAIR.nii.gz
    derivatives/<pipeline>/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz (or _dseg)

Images come from one place, the pipeline that holds most of the contrasts, else the raw data:
mixing them would mix grids. `participants.tsv` may have a column `site`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from medsynth_common.dataset.config import DataConfig
from medsynth_common.dataset.files import (
    ANATOMY_MAP,
    TUMOUR_MAP,
    PatientFiles,
    folders_in,
    is_volume,
    stem,
)
from medsynth_common.dataset.layouts.sessions import of_sessions
from medsynth_common.dataset.layouts.tables import read_table
from medsynth_common.labels import BRATS_VALUES, CONTRASTS, Contrast

_WANTED: Final = {
    Contrast.T1: "*_T1w.nii.gz without ce-",
    Contrast.T1GD: "*_ce-*_T1w.nii.gz",
    Contrast.T2: "*_T2w.nii.gz",
    Contrast.FLAIR: "*_FLAIR.nii.gz",
    TUMOUR_MAP: "*_label-lesion_mask.nii.gz or *_dseg.nii.gz in derivatives/",
    ANATOMY_MAP: "a map in derivatives/ that matches the pattern `anatomy`",
}
#: A mask or segmentation of something else than the lesion.
_NO_LESION: Final = re.compile(r"brain|head|csf|gm|wm|tissue|anat|aseg|aparc", re.IGNORECASE)
_LESION: Final = re.compile(r"lesion|tumou?r", re.IGNORECASE)


def looks_like(root: Path) -> bool:
    """Say whether a folder holds `sub-*` with `anat` inside."""
    return any(
        (place / "anat").is_dir()
        for subject in root.glob("sub-*")
        if subject.is_dir()
        for place in (subject, *folders_in(subject))
    )


def patients(root: Path, config: DataConfig) -> list[PatientFiles]:
    """Find the subjects; their sessions are one patient each."""
    return [
        of_sessions([_session(root, subject, session, config) for session in _sessions(subject)])
        for subject in folders_in(root)
        if subject.name.startswith("sub-")
    ]


def sites(root: Path) -> list[tuple[str, str]] | None:
    """Return the (site, patient) rows of `participants.tsv`; None when it names no sites."""
    path = root / "participants.tsv"
    if not path.is_file():
        return None
    columns, rows = read_table(path, delimiter="\t")
    if not {"participant_id", "site"} <= set(columns):
        return None
    # BIDS wants the prefix; many files leave it out.
    named = [(row["site"], "sub-" + row["participant_id"].removeprefix("sub-")) for row in rows]
    return [(site, patient) for site, patient in named if (root / patient).is_dir()]


def _sessions(subject: Path) -> list[str]:
    found = [folder.name for folder in folders_in(subject) if folder.name.startswith("ses-")]
    return found or [""]


def _session(root: Path, subject: Path, session: str, config: DataConfig) -> PatientFiles:
    inside = Path(subject.name, session, "anat")
    pipelines = [place for place in _pipelines(root) if (place / inside).is_dir()]
    offered = [_images(place / inside) for place in (*pipelines, root)]
    most = max(_count(images) for images in offered)
    # Prepared images before raw ones; two pipelines with as many are a choice to be told.
    prepared = [images for images in offered[:-1] if _count(images) == most]
    chosen = prepared or [offered[-1]]
    matches: dict[str, tuple[Path, ...]] = {
        contrast: tuple(path for images in chosen for path in images[contrast])
        for contrast in CONTRASTS
    }
    maps = [path for place in pipelines for path in _volumes(place / inside)]
    matches[TUMOUR_MAP] = _tumour_maps(maps)
    if config.anatomy is not None:
        globs = config.anatomy
        matches[ANATOMY_MAP] = tuple(path for path in maps if any(map(path.match, globs)))
    values = BRATS_VALUES if config.tumour_values is None else config.tumour_values
    return PatientFiles(
        site="",
        name=subject.name,
        folder=subject,
        matches=matches,
        wanted=_WANTED,
        tumour_values=values,
        session=session,
    )


def _pipelines(root: Path) -> Iterator[Path]:
    derivatives = root / "derivatives"
    if derivatives.is_dir():
        yield derivatives  # some put the subjects directly there
        yield from (folder for folder in folders_in(derivatives) if folder.name[:4] != "sub-")


def _volumes(folder: Path) -> list[Path]:
    return sorted(filter(is_volume, folder.iterdir())) if folder.is_dir() else []


def _images(folder: Path) -> dict[Contrast, list[Path]]:
    found: dict[Contrast, list[Path]] = {contrast: [] for contrast in CONTRASTS}
    for path in _volumes(folder):
        entities = stem(path).split("_")
        contrast = {"T1w": Contrast.T1, "T2w": Contrast.T2, "FLAIR": Contrast.FLAIR}.get(
            entities[-1]
        )
        if contrast is Contrast.T1 and any(one.startswith("ce-") for one in entities):
            contrast = Contrast.T1GD
        if contrast is not None:
            found[contrast].append(path)
    return found


def _count(images: dict[Contrast, list[Path]]) -> int:
    return sum(bool(paths) for paths in images.values())


def _tumour_maps(maps: list[Path]) -> tuple[Path, ...]:
    """Return the maps that say lesion or tumour; else the segmentations that say nothing else."""
    named = [path for path in maps if path.name.rpartition("_")[2].startswith(("mask", "dseg"))]
    lesions = tuple(path for path in named if _LESION.search(_after_subject(path)))
    others = (p for p in named if "_dseg" in p.name and not _NO_LESION.search(_after_subject(p)))
    return lesions or tuple(others)


def _after_subject(path: Path) -> str:
    return path.name.partition("_")[2]  # sub-tumour01 is a subject, no lesion
