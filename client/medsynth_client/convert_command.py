"""`medsynth-client convert`: patients' DICOM series become NIfTI in BraTS names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

from medsynth_client.dicom import Series, require_pydicom, series_in
from medsynth_common.dataset.files import folders_in
from medsynth_common.dataset.mend import check_place
from medsynth_common.dataset.telling import progress_bar
from medsynth_common.durable import replacing_folder
from medsynth_common.errors import BadData, Problem
from medsynth_common.labels import Contrast
from medsynth_common.volumes import write_volume

#: What a series' description holds, whatever its case; the first contrast that fits has it.
PATTERNS: Final[Mapping[Contrast, tuple[str, ...]]] = {
    Contrast.FLAIR: ("*flair*",),
    Contrast.T1GD: (
        *("*t1*gd*", "*t1*gad*", "*t1*post*", "*t1*ce", "*t1*ce[!a-z]*", "*t1*contrast*"),
        *("*t1*+c*", "*t1*km*", "*post*t1*", "*gd*t1*"),
    ),
    Contrast.T2: ("*t2*",),
    Contrast.T1: ("*t1*", "*mprage*"),
}
_ENDINGS: Final = {
    Contrast.T1: "_t1",
    Contrast.T1GD: "_t1ce",
    Contrast.T2: "_t2",
    Contrast.FLAIR: "_flair",
}


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What became of a folder of patients.

    Attributes:
        folder: where the volumes are.
        written: their files, below `folder`, by what was converted.
        passed_over: series that are of no contrast.
        refused: what could not be converted, and why.

    """

    folder: Path
    written: Mapping[str, str]
    passed_over: Sequence[str]
    refused: Sequence[Problem]

    def told(self) -> str:
        """Tell it to a person."""
        lines = [f"{series} -> {path}" for series, path in self.written.items()]
        lines += [f"passed over: {series}, of no contrast" for series in self.passed_over]
        lines += [f"refused: {problem}" for problem in self.refused]
        return "\n".join([*lines, f"{len(self.written)} volumes in {self.folder}"])

    def values(self) -> dict[str, Any]:
        """Give the same for JSON."""
        return {
            "folder": str(self.folder),
            "written": dict(self.written),
            "passed_over": list(self.passed_over),
            "refused": [str(problem) for problem in self.refused],
        }


def convert_folder(folder: Path, out: Path, given: Mapping[Contrast, str | None]) -> Converted:
    """Convert every patient's folder in `folder` to `out/PATIENT/PATIENT_t1.nii.gz` and so on.

    What cannot be converted is left out and told; the rest is written, all of it or nothing.

    Args:
        folder: one folder for each patient, named for it, each holding that patient's series.
        out: a new folder.
        given: patterns of a contrast's SeriesDescription in place of the usual ones.

    Raises:
        BadConfig: `out` holds something, or pydicom is not installed.
        BadData: there are no patients' folders.

    """
    require_pydicom()
    patterns = {
        contrast: usual if given.get(contrast) is None else (str(given[contrast]),)
        for contrast, usual in PATTERNS.items()
    }
    if not folder.is_dir():
        value, wanted = "no such folder", "a folder of patients' folders"
        raise BadData(Problem(name=str(folder), value=value, wanted=wanted))
    check_place(folder, out)
    patients = folders_in(folder)
    written: dict[str, str] = {}
    passed_over: list[str] = []
    refused: list[Problem] = []
    with progress_bar() as progress, replacing_folder(out) as part:
        for done, place in enumerate(patients, start=1):
            chosen, others, problems = _contrasts(place, patterns)
            passed_over += others
            refused += problems
            for contrast, series in chosen.items():
                path = f"{place.name}/{place.name}{_ENDINGS[contrast]}.nii.gz"
                try:
                    scan = series.read()
                except BadData as error:
                    refused += error.problems
                else:
                    write_volume(part / path, scan.data, scan.affine, description="")
                    written[series.name] = path
            progress("converting", done, len(patients))
        if not written:
            raise BadData(refused or [_nothing(folder, passed_over)])
    return Converted(folder=out, written=written, passed_over=passed_over, refused=refused)


def _contrasts(
    place: Path, patterns: Mapping[Contrast, Sequence[str]]
) -> tuple[dict[Contrast, Series], list[str], list[Problem]]:
    """Find the series of each contrast of a patient, the names of the others, and what is wrong."""
    try:
        every = series_in(place, patient=place.name)
    except BadData as error:
        return {}, [], list(error.problems)
    candidates: dict[Contrast, list[Series]] = {}
    others = []
    for series in every:
        said = series.description.lower()
        for contrast, globs in patterns.items():
            if any(fnmatch(said, glob.lower()) for glob in globs):
                candidates.setdefault(contrast, []).append(series)
                break
        else:
            others.append(series.name)
    problems = [
        Problem(
            name=f"{place.name}: {contrast}",
            value=f"{len(found)} series: {', '.join(repr(one.description) for one in found)}",
            wanted="one series",
            mend=f"name it by --{contrast} PATTERN, or take the others out of the folder",
        )
        for contrast, found in candidates.items()
        if len(found) > 1
    ]
    return {c: found[0] for c, found in candidates.items() if len(found) == 1}, others, problems


def _nothing(folder: Path, passed_over: Sequence[str]) -> Problem:
    value = f"series of no contrast: {', '.join(passed_over[:5])}" if passed_over else "no DICOM"
    return Problem(
        name=str(folder),
        value=value,
        wanted="a folder for each patient, with its series",
        mend="name the contrasts by --t1, --t1gd, --t2, --flair PATTERN" if passed_over else "",
    )
