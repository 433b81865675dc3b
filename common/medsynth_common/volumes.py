"""NIfTI volumes in and out: the one file that knows nibabel."""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel
import nibabel.spatialimages
import numpy as np
from numpy.typing import NDArray

from medsynth_common import durable
from medsynth_common.errors import BadData, Problem

_GZIP_MAGIC: Final = b"\x1f\x8b"
#: A NIfTI header's free text holds 80 bytes; the last stays zero, as C programs expect.
_DESCRIPTION_BYTES: Final = 79
_WRITTEN_DTYPES: Final = (np.dtype(np.float32), np.dtype(np.uint8))
_DAMAGED: Final = "a whole NIfTI file"


@dataclass(frozen=True, kw_only=True, eq=False)
class Volume:
    """A 3D volume whose axes (x, y, z) point most nearly right, anterior, superior (RAS+).

    Attributes:
        data: voxels (x, y, z), float32, C order.
        affine: voxel indices to millimetres, (4, 4) float64.

    """

    data: NDArray[np.float32]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along x, y and z, in millimetres."""
        x, y, z = (float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z


def read_volume(path: Path) -> Volume:
    """Read a NIfTI-1 or NIfTI-2 file, plain or gzipped, and turn it to RAS+.

    The whole gzip stream is read and its checksum tested, so a file cut short is never taken for
    a good one. Voxels that are not finite are handed on as they are.

    Raises:
        BadData: the file is missing, unreadable, damaged, not NIfTI, or not one 3D volume of
            real numbers with a usable affine.

    """
    image = _parse(path, _unpacked(path))
    if len(image.shape) > 3 and math.prod(image.shape[3:]) == 1:
        image = image.slicer[(..., *([0] * (len(image.shape) - 3)))]
    if len(image.shape) != 3 or 0 in image.shape:
        raise _bad(path, f"shape {'x'.join(map(str, image.shape))}", "one 3D volume")
    if image.get_data_dtype().kind not in "iuf":
        raise _bad(path, f"voxels of type {image.get_data_dtype()}", "real numbers")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise _bad(path, "an affine that cannot be inverted", "voxel sizes above 0 mm")
    try:
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, told by the check
            data = image.get_fdata(dtype=np.float32, caching="unchanged")
    except (OSError, ValueError) as error:
        raise _bad(path, "fewer voxels than its header promises", _DAMAGED) from error
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(data, image.affine))
    return Volume(
        data=np.ascontiguousarray(turned.dataobj),
        affine=np.asarray(turned.affine, dtype=np.float64),
    )


def write_volume(
    path: Path, data: NDArray[Any], affine: NDArray[np.float64], *, description: str
) -> None:
    """Write a volume as NIfTI-1, whole or not at all; the same volume gives the same bytes.

    Args:
        path: ends in `.nii` or `.nii.gz`; its folder is made when missing.
        data: voxels (x, y, z) or (x, y, z, channel), float32 or uint8, kept as such.
        affine: voxel indices to millimetres, (4, 4).
        description: free text for the header, at most 79 bytes, such as `SYNTHETIC medsynth`.

    Raises:
        ValueError: the arguments cannot be written as asked.
        OSError: it could not be written, for instance because the disk is full; then nothing is
            left behind and a file that stood there is as it was.

    """
    text = description.encode()
    if len(text) > _DESCRIPTION_BYTES:
        raise ValueError(f"description must fit {_DESCRIPTION_BYTES} bytes, got {len(text)}")
    if data.dtype not in _WRITTEN_DTYPES or data.ndim not in (3, 4):
        raise ValueError(f"data must be 3D or 4D float32 or uint8, got {data.ndim}D {data.dtype}")
    if not path.name.endswith((".nii", ".nii.gz")):
        raise ValueError(f"path must end in .nii or .nii.gz, got {path.name}")
    image = nibabel.Nifti1Image(data, affine)
    image.header["descrip"] = text
    image.header.set_xyzt_units("mm")
    # Both codes: ITK prefers the qform, SPM and FSL the sform.
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    content = image.to_bytes()
    if path.name.endswith(".gz"):
        content = gzip.compress(content, compresslevel=6, mtime=0)
    durable.write_bytes(path, content)


def _unpacked(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(_GZIP_MAGIC) else content
    except EOFError as error:
        raise _bad(path, "a gzip stream that is cut short", _DAMAGED) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _bad(path, "a damaged gzip stream", _DAMAGED) from error
    except OSError as error:
        raise _bad(
            path, error.strerror or type(error).__name__, "a file that can be read"
        ) from error


def _parse(path: Path, content: bytes) -> Any:
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image):
        if kind.header_class.may_contain_header(content):
            try:
                return kind.from_bytes(content)
            except (nibabel.spatialimages.HeaderDataError, ValueError, OSError) as error:
                raise _bad(path, "a header that contradicts itself", _DAMAGED) from error
    raise _bad(path, "not a NIfTI file", "a .nii or .nii.gz volume")


def _bad(path: Path, value: str, wanted: str) -> BadData:
    mend = "copy or export it again" if wanted == _DAMAGED else ""
    return BadData(Problem(name=str(path), value=value, wanted=wanted, mend=mend))
