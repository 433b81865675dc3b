"""`medsynth-client convert`: series that pydicom wrote here, voxel by voxel and millimetre by
millimetre, and those that are refused."""

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, MRImageStorage, generate_uid

from medsynth_client import cli, dicom
from medsynth_common.dataset import DataConfig
from medsynth_common.dataset.layout import find_patients

AXIAL: Final = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
NAME: Final = "Mustermann^Erika"
TURN: Final = np.radians(12.0)


class DicomSeries:
    """A series to write: what a scanner says of each slice, open to change."""

    def __init__(
        self,
        description: str = "t1_mprage",
        *,
        plane: tuple[Any, Any] = AXIAL,
        slices: int = 5,
        step: float = 3.0,
        **tags: Any,
    ) -> None:
        self.row, self.column = (np.asarray(axis, dtype=np.float64) for axis in plane)
        self.normal = np.cross(self.row, self.column)
        self.origin = np.array([-12.5, 7.25, -30.0])
        self.depths = [step * k for k in range(slices)]
        self.spacing = (1.5, 0.75)  # between rows, between columns
        self.raw = np.random.default_rng(len(description)).integers(0, 900, (7, 9, slices))
        self.slopes = [(2.0, -10.0)] * slices
        self.tags = {"SeriesDescription": description, "Modality": "MR", **tags}
        self.uid = generate_uid(entropy_srcs=[description])

    def write(self, folder: Path, *, without: tuple[int, ...] = ()) -> None:
        """Write the slices as files whose names say nothing of their order."""
        folder.mkdir(parents=True, exist_ok=True)
        for k, depth in enumerate(self.depths):
            if k not in without:
                name = f"{self.uid}-{(k * 7) % 11}-{k}.dcm"
                self.slice(k, depth).save_as(folder / name, enforce_file_format=True)

    def slice(self, k: int, depth: float) -> FileDataset:
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[self.uid, str(k)])
        one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        one.SOPClassUID, one.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        one.PatientName, one.PatientID = NAME, "4711-0815"
        one.SeriesInstanceUID = self.uid
        one.ImageOrientationPatient = [*map(float, (*self.row, *self.column))]
        one.ImagePositionPatient = [*map(float, self.origin + depth * self.normal)]
        one.PixelSpacing = [*self.spacing]
        one.SliceThickness = 5.0  # not the distance between slices
        one.Rows, one.Columns = self.raw.shape[0], self.raw.shape[1]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
        one.RescaleSlope, one.RescaleIntercept = self.slopes[k]
        one.PixelData = self.raw[:, :, k].astype(np.uint16).tobytes()
        for tag, value in self.tags.items():
            setattr(one, tag, value)
        return one


class Convert:
    """Types the command."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.source, self.out = folder / "dicom", folder / "mri"
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *flags: object) -> tuple[int, str]:
        typed = ["medsynth-client", "convert", self.source, "--out", self.out, *flags]
        self.monkeypatch.setattr(sys, "argv", [str(word) for word in typed])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = self.capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err


@pytest.fixture
def convert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Convert:
    return Convert(tmp_path, monkeypatch, capsys)


PLANES = {
    "as most": (AXIAL, "LPS"),
    "rows to the right": (((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), "RPI"),
    "turned in the plane": (((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)), "PRS"),
    "tilted": (((1.0, 0.0, 0.0), (0.0, np.cos(TURN), np.sin(TURN))), "LPS"),
}


@pytest.mark.parametrize("plane", PLANES)
def test_every_voxel_lies_where_dicom_says_and_has_its_value(convert: Convert, plane: str) -> None:
    axes, codes = PLANES[plane]
    series = DicomSeries(plane=axes)
    series.slopes = [(1.0 + 0.5 * k, -3.0 * k) for k in range(5)]
    series.write(convert.source / "p1")
    code, said = convert()
    assert code == 0, said
    image = nibabel.load(convert.out / "p1" / "p1_t1.nii.gz")
    assert nibabel.aff2axcodes(image.affine) == tuple(codes)
    data = np.asarray(image.dataobj)  # (column, row, slice)
    assert data.shape == (9, 7, 5)
    for c, r, k in np.ndindex(data.shape):
        slope, intercept = series.slopes[k]
        assert data[c, r, k] == series.raw[r, c, k] * slope + intercept
        # DICOM PS3.3 C.7.6.2.1.1: from the centre of the first voxel along rows and columns.
        place = series.origin + series.depths[k] * series.normal
        place = place + c * series.spacing[1] * series.row + r * series.spacing[0] * series.column
        found = image.affine @ [c, r, k, 1]
        np.testing.assert_allclose(found[:3], place * [-1, -1, 1], atol=1e-4)


def test_four_contrasts_are_known_by_their_descriptions_and_read_as_one_patient(
    convert: Convert,
) -> None:
    told = {"t1": "AX T1 SE", "t1ce": "t1 POST contrast", "t2": "T2 TSE", "flair": "t2 FLAIR ax"}
    for description in told.values():
        DicomSeries(description).write(convert.source / "p1" / "all in one")
    DicomSeries("localizer", plane=((0, 1, 0), (0, 0, -1))).write(convert.source / "p1")
    code, said = convert("--format", "json")
    assert code == 0
    values = json.loads(said)
    assert values["passed_over"] == ["p1: localizer"]
    wanted = {f"p1: {name}": f"p1/p1_{end}.nii.gz" for end, name in told.items()}
    assert values["written"] == wanted
    config = DataConfig(one_site_per_patient=True)
    (files,) = find_patients(convert.out, config)["p1"]
    assert [role for role, found in files.matches.items() if not found] == ["tumour"]


def test_a_contrast_can_be_named(convert: Convert) -> None:
    for description in ("Serie 4 nativ", "t1 lokal"):
        DicomSeries(description).write(convert.source / "p1")
    code, said = convert("--t1", "serie 4*")
    assert (code, "p1: Serie 4 nativ -> p1/p1_t1.nii.gz" in said) == (0, True)


def test_nothing_that_is_said_of_the_patient_is_copied(convert: Convert) -> None:
    DicomSeries().write(convert.source / "p1")
    assert convert()[0] == 0
    content = gzip.decompress((convert.out / "p1" / "p1_t1.nii.gz").read_bytes())
    for secret in (b"Mustermann", b"Erika", b"4711", b"mprage"):
        assert secret not in content


def _with(change: Callable[[DicomSeries], None], **begin: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        series = DicomSeries(**begin)
        change(series)
        series.write(folder)

    return write


def _gap(series: DicomSeries) -> None:
    series.depths[-1] += 3.0


def _shear(series: DicomSeries) -> None:
    series.normal = series.normal + 0.2 * series.row


def _same_place(series: DicomSeries) -> None:
    series.depths = [0.0, 0.0, 3.0, 3.0, 6.0]


def _two(folder: Path) -> None:
    DicomSeries("t1 first").write(folder)
    DicomSeries("t1 again").write(folder)


def _two_people(folder: Path) -> None:
    DicomSeries("t1").write(folder)
    DicomSeries("t2", PatientID="0000").write(folder)


def _compressed(folder: Path) -> None:
    DicomSeries().write(folder)
    for path in folder.iterdir():
        one = pydicom.dcmread(path)
        one.file_meta.TransferSyntaxUID = JPEG2000Lossless
        one.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f no code stream \xff\xd9"])
        one.save_as(path)


def _sizes(folder: Path) -> None:
    DicomSeries().write(folder)
    path = sorted(folder.iterdir())[0]
    one = pydicom.dcmread(path)
    one.Rows, one.Columns = one.Columns, one.Rows
    one.save_as(path)


SAGITTAL: Final = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
OBLIQUE: Final = ((np.sin(0.6), np.cos(0.6), 0.0), (0.0, 0.0, -1.0))
STEEP: Final = ((1.0, 0.0, 0.0), (0.0, np.cos(0.7), np.sin(0.7)))
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "gap": (_with(_gap), "got a step of 6.00 mm between slices 4 and 5, a gap or a missing slice"),
    "missing slice": (
        lambda folder: DicomSeries().write(folder, without=(2,)),
        "got a step of 6.00 mm between slices 2 and 3, a gap or a missing slice",
    ),
    "missing at the end": (
        lambda folder: DicomSeries(ImagesInAcquisition=5).write(folder, without=(4,)),
        "got 4 of 5 slices, wanted all slices",
    ),
    "two series": (_two, "p1: t1: got 2 series: 't1 "),
    "sagittal": (_with(lambda _: None, plane=SAGITTAL), "got sagittal slices, wanted axial"),
    "oblique sagittal": (
        _with(lambda _: None, plane=OBLIQUE),
        "got sagittal slices, oblique towards coronal by 34 degrees, wanted axial",
    ),
    "too steep": (
        _with(lambda _: None, plane=STEEP),
        "got axial slices, oblique towards coronal by 40 degrees",
    ),
    "time points": (_with(_same_place), "got two slices at one place"),
    "shear": (_with(_shear), "got slices shifted against each other"),
    "one slice": (_with(lambda _: None, slices=1), "got one slice, wanted a volume"),
    "multi-frame": (_with(lambda _: None, NumberOfFrames=3), "got multi-frame files"),
    "CT": (_with(lambda _: None, Modality="CT"), "got modality CT, wanted MR"),
    "compressed": (_compressed, "got pixels that cannot be decoded (JPEG 2000 Image Compression"),
    "two sizes": (_sizes, "got slices of 7x9, 9x7, wanted slices of one size"),
    "two people": (_two_people, "got files of 2 patients, wanted a folder for each patient"),
}


@pytest.mark.filterwarnings("ignore:The value length:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_simple_is_refused_by_name_and_the_rest_is_converted(
    convert: Convert, name: str
) -> None:
    write, wanted = REFUSED[name]
    write(convert.source / "p1")
    DicomSeries().write(convert.source / "p2")
    code, said = convert()
    assert code == 4
    (line,) = [line for line in said.splitlines() if line.startswith("refused: ")]
    assert wanted in line
    assert "Mustermann" not in said
    if name not in ("two series", "two people"):
        assert "(convert it with `dcm2niix -z y -f %i_%p -o OUT DIR`)" in line
    assert [path.name for path in convert.out.rglob("*.nii.gz")] == ["p2_t1.nii.gz"]


@pytest.mark.parametrize("left", [0, 400], ids=["nothing", "a beginning"])
def test_a_slice_that_is_cut_short_is_told_and_not_left_out(convert: Convert, left: int) -> None:
    """Without it the series would be whole, and one slice shorter."""
    DicomSeries().write(convert.source / "p1")
    (last,) = (convert.source / "p1").glob("*-4.dcm")
    last.write_bytes(last.read_bytes()[:left])
    (convert.source / "p1" / "notes.txt").write_text("no DICOM")
    DicomSeries().write(convert.source / "p2")
    code, said = convert()
    assert code == 4
    (line,) = [line for line in said.splitlines() if line.startswith("refused: ")]
    assert f"{last.name}: got a damaged file, wanted a slice" in line
    assert [path.name for path in convert.out.rglob("*.nii.gz")] == ["p2_t1.nii.gz"]


def test_a_folder_without_anything_to_convert_is_bad_input(convert: Convert) -> None:
    (convert.source / "p1").mkdir(parents=True)
    (convert.source / "p1" / "notes.txt").write_text("no DICOM")
    code, said = convert()
    assert (code, convert.out.exists()) == (4, False)
    assert "got no DICOM, wanted a folder for each patient, with its series" in said
    DicomSeries("survey").write(convert.source / "p1")
    code, said = convert()
    assert code == 4
    assert "got series of no contrast: p1: survey" in said


def test_a_folder_that_holds_something_is_left_alone(convert: Convert) -> None:
    DicomSeries().write(convert.source / "p1")
    convert.out.mkdir()
    (convert.out / "kept").touch()
    code, said = convert()
    assert (code, [path.name for path in convert.out.iterdir()]) == (4, ["kept"])
    assert "wanted a new folder elsewhere" in said


def test_without_pydicom_the_extra_is_named(
    convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom, "find_spec", lambda _: None)
    code, said = convert()
    assert code == 4
    assert "pip install 'medsynth-federated[dicom]'" in said
