"""Where patients stand in a folder, whatever its layout: sites, patients, a file for each contrast.

    layout      looks like
    sites       [sites/]<site>/<patient>/*.nii.gz
    patients    <patient>/*.nii.gz, or <patient>/<session>/*.nii.gz
    files       <patient>_t1.nii.gz, <patient>_t2.nii.gz ... in one folder
    bids        sub-*/[ses-*/]anat/sub-*_T1w.nii.gz ..., masks in derivatives/
    msd         dataset.json, imagesTr/, labelsTr/ (also nnU-Net's)

`auto` looks. All but `sites` leave open who is at which site; a CSV says so, or BIDS'
`participants.tsv`, or `one_site_per_patient`, or a hospital whose own folder it is. Only names are
read here; what the files hold is the business of `check`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from medsynth_common.dataset.config import DataConfig
from medsynth_common.dataset.files import PatientFiles, folders_in, is_volume
from medsynth_common.dataset.layouts import bids, folders, msd
from medsynth_common.dataset.layouts.sessions import is_session, joined, split_session
from medsynth_common.dataset.layouts.tables import partitions_in, read_partition
from medsynth_common.errors import BadData, Problem

_LAYOUTS: Final = {
    "patients": folders.patients,
    "files": folders.files,
    "bids": bids.patients,
    "msd": msd.patients,
}
#: Volumes are looked for so many folders deep.
_DEPTH: Final = 3


def find_patients(
    root: Path, config: DataConfig, *, one_site: str | None = None
) -> dict[str, list[PatientFiles]]:
    """Find the sites and patients below `root`, both sorted by name.

    What a site or patient lacks is not judged here but by `check`, all at once: a CSV's unknown
    patient comes back with no files, a site without patients as an empty list.

    Args:
        root: the data folder.
        config: how it is to be read.
        one_site: the hospital whose own folder this is: all patients are its own, unless the
            folder says otherwise.

    Raises:
        BadData: there is no such folder, its layout is unknown or ambiguous, nothing says which
            patient is at which site, or a table cannot be read.

    """
    if not root.is_dir():
        raise BadData(
            Problem(name=str(root), value="no such folder", wanted="a folder of patients")
        )
    weights = config.tissue_weights
    if weights is not None and not weights.is_file():
        value, wanted = "no such file", "weights that `medsynth-server pretrain anatomy` wrote"
        raise BadData(Problem(name=str(weights), value=value, wanted=wanted))
    # First, so that a CSV that cannot be read is told as such.
    rows = None if config.sites is None else read_partition(root / config.sites)
    layout = detect_layout(root, config)
    if layout == "sites":
        return {
            site: sorted(joined(patients), key=str)
            for site, patients in folders.sites(root, config).items()
        }
    patients = _LAYOUTS[layout](root, config)
    if not patients or rows == []:
        wanted = f"patients in the layout {layout}"
        mend = "files with other names: give their patterns in [data]"
        raise BadData(Problem(name=str(root), value="no patient", wanted=wanted, mend=mend))
    if config.one_site_per_patient:
        rows = [(split_session(files.name)[0], files.name) for files in patients]
    elif rows is None:
        rows = _found_rows(root, layout)
    if rows is None and one_site is not None:
        rows = [(one_site, files.name) for files in patients]
    sites: dict[str, list[PatientFiles]] = {}
    for files in sorted(joined(_dealt(root, patients, rows)), key=str):
        sites.setdefault(files.site, []).append(files)
    return sites


def detect_layout(root: Path, config: DataConfig) -> str:
    """Return the layout that the config names, or the one that the folder has.

    Raises:
        BadData: it has none, or could have several.

    """
    if config.layout == "sites" and config.one_site_per_patient:
        return "patients"  # one site's folder out of such a data set
    if config.layout != "auto":
        return config.layout
    told = config.sites is not None or config.one_site_per_patient
    known = [name for name, one in (("bids", bids), ("msd", msd)) if one.looks_like(root)]
    found = known or _folder_layouts(root, sites_are_told=told)
    if not found:
        value, mend = _instead(root)
        wanted = "NIfTI volumes in one of the layouts sites, patients, files, bids or msd"
        raise BadData(Problem(name=str(root), value=value, wanted=wanted, mend=mend))
    if len(found) > 1:
        value = f"a folder that could have the layouts {' and '.join(found)}"
        mend = f'name one: layout = "{found[0]}" in [data], or --layout {found[0]}'
        raise BadData(Problem(name=str(root), value=value, wanted="one layout", mend=mend))
    return found[0]


def _folder_layouts(root: Path, *, sites_are_told: bool) -> list[str]:
    if (root / "sites").is_dir() and not sites_are_told:
        return ["sites"]
    loose = ["files"] if any(map(is_volume, root.iterdir())) else []
    depths = {folder: _depth(folder) for folder in folders_in(root)}
    held = {depth for depth in depths.values() if depth is not None}
    if not held:
        return loose
    if sites_are_told or held == {1}:
        return ["patients", *loose]
    if 1 in held:
        return ["sites", "patients", *loose]
    below = [name for folder in depths for name in folders_in(folder)]
    sessions = all(is_session(folder.name) for folder in below)
    return ["patients" if sessions else "sites", *loose]


def _depth(folder: Path, limit: int = _DEPTH) -> int | None:
    """Return how many folders deep the first volume stands; 1 for in this one."""
    if any(map(is_volume, folder.iterdir())):
        return 1
    if limit == 1:
        return None
    below = [depth for inner in folders_in(folder) if (depth := _depth(inner, limit - 1))]
    return 1 + min(below) if below else None


def _instead(root: Path) -> tuple[str, str]:
    """Say what a folder without NIfTI holds, and what to do with it."""
    for pattern, kind in (("*.dcm", "DICOM"), ("*.mgz", "FreeSurfer"), ("*.mha", "MetaImage")):
        if next(root.rglob(pattern), None) is not None:
            tool = {
                "DICOM": "medsynth-client convert, or dcm2niix -z y -f %i_%p -o OUT DIR",
                "FreeSurfer": "mri_convert",
            }
            return f"{kind} files", f"convert them: {tool.get(kind, 'with ITK or 3D Slicer')}"
    return "no NIfTI volume", ""


def _found_rows(root: Path, layout: str) -> list[tuple[str, str]] | None:
    """Return the (site, patient) rows of the data folder's own table; None when it has none."""
    found = partitions_in(root)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        mend = f'name it: sites = "{found[0].name}" in [data]'
        raise BadData(Problem(name=str(root), value=names, wanted="one CSV of sites", mend=mend))
    if found:
        return read_partition(found[0])
    return bids.sites(root) if layout == "bids" else None


def _dealt(
    root: Path, patients: Sequence[PatientFiles], rows: Sequence[tuple[str, str]] | None
) -> list[PatientFiles]:
    """Give every patient the site that the (site, patient) rows say."""
    if rows is None:
        value = f"patients of no site: {patients[0].name} and others"
        mend = (
            'name a CSV with sites = "FILE", or set one_site_per_patient = true in [data], or put '
            "the patients in a folder of their hospital"
        )
        wanted = "to know which patient is at which site"
        raise BadData(Problem(name=str(root), value=value, wanted=wanted, mend=mend))
    by_name = {files.name: files for files in patients}
    dealt = []
    for site, name in rows:
        unknown = PatientFiles(site=site, name=name, folder=root / name, matches={})
        dealt.append(replace(by_name.get(name, unknown), site=site))
    return dealt
