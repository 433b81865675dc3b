"""A prepared copy of a data set: one grid for each patient, RAS, finite, BraTS names and values.

What is mended here is how volumes are stored. What they show is not touched: nothing is
registered, stripped, normalised or guessed.
"""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import tomli_w
from numpy.typing import NDArray
from scipy import ndimage

from medsynth_common.dataset.check import Progress, examine
from medsynth_common.dataset.checks.headers import TILT, Headers, check_headers, usual_grid
from medsynth_common.dataset.config import DataConfig
from medsynth_common.dataset.files import ANATOMY_MAP, TUMOUR_MAP, PatientFiles
from medsynth_common.dataset.finding import Examination, Finding, Level
from medsynth_common.dataset.layout import find_patients
from medsynth_common.dataset.prepare import to_tissue
from medsynth_common.durable import replacing_folder, write_bytes
from medsynth_common.errors import BadConfig, Problem
from medsynth_common.labels import BRATS_VALUE_OF, Contrast
from medsynth_common.volumes import Volume, write_volume

_ENDINGS: Final = {
    Contrast.T1: "_t1",
    Contrast.T1GD: "_t1ce",
    Contrast.T2: "_t2",
    Contrast.FLAIR: "_flair",
    TUMOUR_MAP: "_seg",
    ANATOMY_MAP: "_anatomy",
}
_DESCRIPTION: Final = "prepared by medsynth"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where a volume's voxels lie: how many along x, y, z, and their indices to millimetres."""

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What became of a prepared copy.

    Attributes:
        folder: where it is.
        mended: what was put right in it.
        left_out: patients that are not in it, as `site/name`, with the errors that keep them out.
        examination: of the copy.

    """

    folder: Path
    mended: Sequence[Finding]
    left_out: dict[str, list[Problem]]
    examination: Examination


def write_prepared(
    root: Path,
    examination: Examination,
    config: DataConfig,
    out: Path,
    *,
    progress: Progress = lambda *_: None,
) -> Prepared:
    """Write a copy of what can be mended to `out`, whole or not at all; `root` is only read.

    Raises:
        BadConfig: `out` holds something already, or lies in `root`; nothing was written.
        OSError: it could not be written, for instance because the disk is full.

    """
    check_place(root, out)
    patients = [files for members in examination.patients.values() for files in members]
    left_out = _unmendable(examination)
    kept = [files for files in patients if str(files) not in left_out]
    written = _config_of_copy(config)
    with replacing_folder(out) as part:
        table = written.model_dump(mode="json", exclude_defaults=True)
        write_bytes(part / "data.toml", tomli_w.dumps({"data": table}).encode())
        for done, files in enumerate(kept, start=1):
            _write_patient(part / "sites" / files.site / files.name, files, config)
            progress("writing", done, len(kept))
        copy = Examination(patients={}, findings=())
        if kept:
            copy = examine(find_patients(part, written), written, progress=progress)
            # A map that resampling left empty, for instance: a copy has no errors in it.
            for name, problems in _errors(copy).items():
                left_out[name] = problems
                shutil.rmtree(part / "sites" / name)
        sites = {
            site: [files for files in members if str(files) not in left_out]
            for site, members in copy.patients.items()
        }
        copy = Examination(
            patients={site: members for site, members in sites.items() if members},
            findings=[one for one in copy.findings if one.patient not in left_out],
        )
    mended = [one for one in examination.findings if one.mendable and one.patient not in left_out]
    return Prepared(folder=out, mended=mended, left_out=left_out, examination=copy)


def check_place(root: Path, out: Path) -> None:
    """Raise BadConfig unless `out` is new, or empty, and not a folder inside `root`."""
    inside = out.resolve().is_relative_to(root.resolve())
    if inside or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        value = "a folder inside the data" if inside else "something that is there already"
        raise BadConfig(Problem(name=str(out), value=value, wanted="a new folder elsewhere"))


def _unmendable(examination: Examination) -> dict[str, list[Problem]]:
    found: dict[str, list[Problem]] = defaultdict(list)
    for finding in examination.of(Level.ERROR):
        if not finding.mendable and finding.patient:
            found[finding.patient].append(finding.problem)
    return dict(found)


def _errors(examination: Examination) -> dict[str, list[Problem]]:
    found: dict[str, list[Problem]] = defaultdict(list)
    for finding in examination.of(Level.ERROR):
        found[finding.patient].append(finding.problem)
    return {name: problems for name, problems in found.items() if name}


def _config_of_copy(config: DataConfig) -> DataConfig:
    anatomy = None if config.anatomy is None else (f"*{_ENDINGS[ANATOMY_MAP]}.nii.gz",)
    return DataConfig(
        layout="sites",
        anatomy=anatomy,
        tissues=config.tissues,
        allow_no_tumour=config.allow_no_tumour,
    )


def _write_patient(folder: Path, files: PatientFiles, config: DataConfig) -> None:
    headers, _ = check_headers(files)
    grid = _grid(headers)
    for role, volume in files.read().items():
        data: NDArray[np.float32] | NDArray[np.uint8]
        if role == TUMOUR_MAP:
            tissues = to_tissue(_resample(volume, grid, order=0), files.tumour_values)
            data = _brats(tissues)
        elif role == ANATOMY_MAP:
            data = to_tissue(_resample(volume, grid, order=0), config.anatomy_values)
        else:
            finite = np.nan_to_num(volume.data, nan=0, posinf=0, neginf=0)
            data = _resample(Volume(data=finite, affine=volume.affine), grid, order=1)
        path = folder / f"{files.name}{_ENDINGS[role]}.nii.gz"
        write_volume(path, data, grid.affine, description=_DESCRIPTION)


def _grid(headers: Headers) -> Grid:
    """Return the grid that most of a patient's volumes share, straightened if it is oblique."""
    usual = headers[usual_grid(headers)]
    if usual.tilt <= TILT:
        return Grid(shape=usual.shape, affine=usual.affine)
    low, high = usual.corners.min(axis=0), usual.corners.max(axis=0)
    side = min(usual.spacing)
    x, y, z = (int(count) for count in np.ceil((high - low) / side) + 1)
    affine = np.diag([side, side, side, 1.0])
    affine[:3, 3] = low
    return Grid(shape=(x, y, z), affine=affine)


def _resample(volume: Volume, grid: Grid, *, order: int) -> NDArray[np.float32]:
    """Put a volume on a grid by their affines; beyond the volume it counts as 0."""
    if volume.data.shape == grid.shape and np.allclose(volume.affine, grid.affine, atol=1e-3):
        return volume.data
    into = np.linalg.inv(volume.affine) @ grid.affine
    resampled: NDArray[np.float32] = ndimage.affine_transform(
        volume.data, into[:3, :3], into[:3, 3], output_shape=grid.shape, order=order
    )
    return resampled


def _brats(tissues: NDArray[np.uint8]) -> NDArray[np.uint8]:
    result = np.zeros_like(tissues)
    for tissue, value in BRATS_VALUE_OF.items():
        result[tissues == tissue] = value
    return result
