"""DICOM series in the simple case: the one file that knows pydicom (the extra `dicom`).

Simple is: MR, one image a file, axial slices of one size at equal steps along their normal. All
else is told, never guessed: `dcm2niix` knows it. No tag about the patient is read but whether all
files are of one; none is handed on.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medsynth_common.errors import BadConfig, BadData, Problem

DCM2NIIX: Final = "convert it with `dcm2niix -z y -f %i_%p -o OUT DIR`"
#: Slices this far from axial are another plane's, in degrees.
_TILT: Final = 30.0
#: How far a step may be from the usual one, as a part of it.
_UNEVEN: Final = 0.01
#: How far a slice may lie beside the stack's normal, in millimetres.
_DRIFT_MM: Final = 0.05
#: Endings of DICOM files' names, where there is one.
_SUFFIXES: Final = {".dcm", ".dicom", ".ima"}
_PLANES: Final = ("sagittal", "coronal", "axial")
#: DICOM points left and posterior, NIfTI right and anterior.
_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """A series as a volume.

    Attributes:
        data: voxels (column, row, slice), float32, rescaled by slope and intercept.
        affine: voxel indices to millimetres, right, anterior, superior (RAS+), (4, 4).

    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Series:
    """The files of one series, their headers read, their pixels not.

    Attributes:
        name: what it is told as.
        description: as the scanner named it.
        headers: one of each file.
        files: in the same order.

    """

    name: str
    description: str
    headers: Sequence[Any]
    files: Sequence[Path]

    def read(self) -> Scan:
        """Read the voxels, in the order of the slices' positions.

        Raises:
            BadData: the series is not of the simple case, or a file is damaged.

        """
        self._check_kind()
        plane = self._same("ImageOrientationPatient", 6)
        row, column = plane[:3], plane[3:]  # along a row (to the next column), down a column
        normal = self._axial_normal(row, column)
        places = np.array([self._numbers(h, "ImagePositionPatient", 3) for h in self.headers])
        order = np.argsort(places @ normal, kind="stable")
        places = places[order]
        self._check_steps(places, normal)
        down, across = self._same("PixelSpacing", 2)  # between rows, between columns
        affine = np.eye(4)
        affine[:3, 0], affine[:3, 1] = row * across, column * down
        affine[:3, 2] = (places[-1] - places[0]) / (len(places) - 1)
        affine[:3, 3] = places[0]
        slices = [self._pixels(self.files[index]) for index in order]
        return Scan(data=np.stack(slices, axis=-1), affine=_LPS_TO_RAS @ affine)

    def _check_kind(self) -> None:
        first = self.headers[0]
        kinds = {str(header.get("Modality", "none")) for header in self.headers}
        if kinds != {"MR"}:
            raise self._refuse(f"modality {', '.join(sorted(kinds))}", "MR")
        if any(int(header.get("NumberOfFrames", None) or 1) > 1 for header in self.headers):
            raise self._refuse("multi-frame files", "one slice a file")
        if int(first.get("SamplesPerPixel", 1)) != 1:
            raise self._refuse("colour pictures", "grey values")
        sizes = {(int(header.Rows), int(header.Columns)) for header in self.headers}
        if len(sizes) > 1:
            told = ", ".join(f"{rows}x{columns}" for rows, columns in sorted(sizes))
            raise self._refuse(f"slices of {told}", "slices of one size")
        if len(self.headers) < 2:
            raise self._refuse("one slice", "a volume")
        promised = int(first.get("ImagesInAcquisition", None) or len(self.headers))
        if promised > len(self.headers):
            raise self._refuse(f"{len(self.headers)} of {promised} slices", "all slices")

    def _axial_normal(self, row: NDArray[np.float64], column: NDArray[np.float64]) -> Any:
        normal = np.cross(row, column)
        length = float(np.linalg.norm(normal))
        if abs(length - 1) > 1e-3 or abs(float(row @ column)) > 1e-3:
            raise self._refuse("rows and columns that are no right angle", "a rectangular grid")
        towards = np.abs(normal) / length
        first, second = np.argsort(-towards)[:2]
        tilt = float(np.degrees(np.arccos(min(towards[first], 1.0))))
        if _PLANES[first] != "axial" or tilt > _TILT:
            oblique = f", oblique towards {_PLANES[second]} by {tilt:.0f} degrees"
            plane = f"{_PLANES[first]} slices{oblique if tilt > 1 else ''}"
            raise self._refuse(plane, f"axial slices, tilted by at most {_TILT:.0f} degrees")
        return normal / length

    def _check_steps(self, places: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
        depth = places @ normal
        steps = np.diff(depth)
        usual = float(np.median(steps))
        if usual <= 1e-3 or float(steps.min()) <= 1e-3:
            raise self._refuse("two slices at one place", "one volume: one echo, one time point")
        worst = int(np.argmax(np.abs(steps - usual)))
        if abs(float(steps[worst]) - usual) > _UNEVEN * usual:
            found = f"a step of {steps[worst]:.2f} mm between slices {worst + 1} and {worst + 2}"
            raise self._refuse(f"{found}, a gap or a missing slice", f"equal steps of {usual:.2f}")
        sheared = places - places[0] - np.outer(depth - depth[0], normal)
        if float(np.abs(sheared).max()) > _DRIFT_MM:
            raise self._refuse("slices shifted against each other", "a straight stack")

    def _pixels(self, path: Path) -> NDArray[np.float32]:
        """Read one slice, (column, row)."""
        import pydicom

        try:
            whole = pydicom.dcmread(path)
            stored = np.asarray(whole.pixel_array)  # (row, column)
        # Whatever a decoder that is missing or a file that is cut short makes pydicom raise.
        except Exception as error:
            syntax = self.headers[0].file_meta.TransferSyntaxUID
            value = f"pixels that cannot be decoded ({syntax.name}, {type(error).__name__})"
            raise self._refuse(value, "uncompressed pixels") from error
        slope = float(whole.get("RescaleSlope", None) or 1.0)
        intercept = float(whole.get("RescaleIntercept", None) or 0.0)
        return (stored.astype(np.float64) * slope + intercept).astype(np.float32).T

    def _same(self, tag: str, count: int) -> NDArray[np.float64]:
        """Return the numbers of a tag that all slices must share."""
        rows = np.array([self._numbers(header, tag, count) for header in self.headers])
        if float(np.ptp(rows, axis=0).max()) > 1e-4:
            raise self._refuse(f"slices of different {tag}", "one")
        return np.asarray(rows[0])

    def _numbers(self, header: Any, tag: str, count: int) -> list[float]:
        values = header.get(tag, None)
        numbers = [] if values is None else [float(value) for value in values]
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise self._refuse(f"a slice without {tag}", "slices that say where they lie")
        return numbers

    def _refuse(self, value: str, wanted: str) -> BadData:
        return BadData(Problem(name=self.name, value=value, wanted=wanted, mend=DCM2NIIX))


def require_pydicom() -> None:
    """Raise BadConfig, with how to install it, where pydicom is not there."""
    if find_spec("pydicom") is None:
        raise BadConfig(
            Problem(
                name="convert",
                value="no pydicom",
                wanted="the extra `dicom`",
                mend="pip install 'medsynth-federated[dicom]', or dcm2niix in its place",
            )
        )


def series_in(folder: Path, *, patient: str) -> list[Series]:
    """Find the series with images below a folder, by their UID; other files are passed over.

    Raises:
        BadData: the files are of more than one patient, or one is damaged. Passed over, it could
            be the last slice of a series, which nobody would miss.

    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    found: dict[str, list[tuple[Any, Path]]] = defaultdict(list)
    people: set[tuple[str, str]] = set()
    damaged: list[Problem] = []
    for path in _files(folder):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except (InvalidDicomError, OSError, EOFError):
            header = None
        if header is None or "Rows" not in header or "SeriesInstanceUID" not in header:
            if _should_be_an_image(path, header):
                damaged.append(Problem(name=str(path), value="a damaged file", wanted="a slice"))
            continue  # a DICOMDIR, a report, a presentation state, no DICOM at all
        people.add((str(header.get("PatientID", "")), str(header.get("PatientName", ""))))
        found[str(header.SeriesInstanceUID)].append((header, path))
    if damaged:
        raise BadData(damaged)
    if len(people) > 1:
        value = f"files of {len(people)} patients"
        raise BadData(Problem(name=patient, value=value, wanted="a folder for each patient"))
    return [_series(patient, items) for _, items in sorted(found.items())]


def _should_be_an_image(path: Path, header: Any) -> bool:
    """Whether a file without an image says that it has one: by its DICOM class, else its name."""
    if header is None:
        return path.suffix.lower() in _SUFFIXES
    stored = getattr(header, "file_meta", {}).get("MediaStorageSOPClassUID")
    kind = header.get("SOPClassUID", stored)
    return kind is not None and "Image Storage" in getattr(kind, "name", "")


def _series(patient: str, items: Sequence[tuple[Any, Path]]) -> Series:
    headers, files = zip(*items, strict=True)
    description = str(headers[0].get("SeriesDescription", "")).strip()
    return Series(
        name=f"{patient}: {description or 'a series without a description'}",
        description=description,
        headers=headers,
        files=files,
    )


def _files(folder: Path) -> Iterable[Path]:
    return (
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.name != "DICOMDIR"
    )
