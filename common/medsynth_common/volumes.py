"""NIfTI volumes in and out: the one file that knows nibabel."""

import gzip
import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel
import nibabel.spatialimages
import numpy as np
from isal import igzip
from numpy.typing import NDArray

from medsynth_common import durable
from medsynth_common.errors import BadData, Problem

_GZIP_MAGIC: Final = b"\x1f\x8b"
#: A NIfTI header's free text holds 80 bytes; the last stays zero, as C programs expect.
_DESCRIPTION_BYTES: Final = 79
_WRITTEN_DTYPES: Final = (np.dtype(np.float32), np.dtype(np.uint8))
#: Of ISA-L's 0 to 3: as small as zlib's usual level makes images, in a twentieth of its time.
_LEVEL: Final = 2
_DAMAGED: Final = "a whole NIfTI file"
_KINDS: Final = (nibabel.Nifti1Image, nibabel.Nifti2Image)
#: As long as the longer of the two headers, NIfTI-2's.
_HEADER_BYTES: Final = 540


@dataclass(frozen=True, kw_only=True, eq=False)
class Header:
    """What a NIfTI file says of itself before any voxel is read.

    Attributes:
        shape: voxels along x, y, z once turned to RAS+.
        channels: 3D volumes in the file; 1 unless it is 4D.
        affine: voxel indices, turned to RAS+, to millimetres, (4, 4).
        axes: how the file stores them, such as `LPS`: where its three axes point most nearly.
        tilt: largest angle between an axis of the file and the axis it points most nearly to,
            in degrees.
        placed: whether qform or sform say where the volume lies; without, its sides are guessed.
        forms_differ: how far apart qform and sform put a corner, in millimetres; 0 with one alone.

    """

    shape: tuple[int, int, int]
    channels: int
    affine: NDArray[np.float64]
    axes: str
    tilt: float
    placed: bool
    forms_differ: float

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along x, y and z, in millimetres."""
        return _spacing(self.affine)

    @property
    def corners(self) -> NDArray[np.float64]:
        """The centres of the eight corner voxels in millimetres, (8, 3)."""
        return _corners(self.shape, self.affine)


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
        return _spacing(self.affine)


def read_header(path: Path) -> Header:
    """Read what a NIfTI-1 or NIfTI-2 file says of itself; of its voxels, nothing.

    Raises:
        BadData: the file is missing, unreadable, not NIfTI, or its header cannot be used.

    """
    header = _parse_header(path, _unpacked(path, _HEADER_BYTES))
    shape = tuple(int(side) for side in header.get_data_shape())
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    _check(path, shape, header.get_data_dtype(), affine)
    turn = nibabel.io_orientation(affine)
    directions = np.abs(affine[:3, :3]) / np.linalg.norm(affine[:3, :3], axis=0)
    x, y, z = (shape[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in range(3))
    forms = int(header["qform_code"]), int(header["sform_code"])
    differ = 0.0
    if all(forms):
        first, second = (_corners(shape[:3], form) for form in _forms(header))
        differ = float(np.abs(first - second).max())
    return Header(
        shape=(x, y, z),
        channels=math.prod(shape[3:]),
        affine=affine @ nibabel.orientations.inv_ornt_aff(turn, shape[:3]),
        axes="".join(nibabel.aff2axcodes(affine)),
        tilt=float(np.degrees(np.arccos(np.clip(directions.max(axis=0), 0, 1))).max()),
        placed=any(forms),
        forms_differ=differ,
    )


def read_volume(path: Path) -> Volume:
    """Read the one 3D volume of a file; see `read_channels`."""
    (volume,) = read_channels(path, [None])
    return volume


def read_channels(path: Path, channels: Sequence[int | None]) -> list[Volume]:
    """Read a NIfTI-1 or NIfTI-2 file, plain or gzipped, and turn it to RAS+.

    The whole gzip stream is read and its checksum tested, so a file cut short is never taken for
    a good one. Voxels that are not finite are handed on as they are.

    Args:
        path: the file, which is read once.
        channels: which of a 4D file's 3D volumes; None for the one volume of a 3D file.

    Raises:
        BadData: the file is missing, unreadable, damaged, not NIfTI, without such a channel, or
            not of real numbers with a usable affine.

    """
    image = _parse(path, _unpacked(path))
    return [_volume(path, _channel(path, image, channel)) for channel in channels]


def _channel(path: Path, image: Any, channel: int | None) -> Any:
    count = math.prod(image.shape[3:])
    if len(image.shape) > 3 and (channel or 0) < count and (count == 1 or channel is not None):
        index = np.unravel_index(channel or 0, image.shape[3:], order="F")
        return image.slicer[(..., *(int(one) for one in index))]
    if len(image.shape) != 3 or channel:
        wanted = "one 3D volume" if channel is None else f"a 4D volume with a channel {channel}"
        raise _bad(path, f"shape {'x'.join(map(str, image.shape))}", wanted)
    return image


def _volume(path: Path, image: Any) -> Volume:
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
        content = igzip.compress(content, compresslevel=_LEVEL, mtime=0)
    durable.write_bytes(path, content)


def _unpacked(path: Path, count: int = -1) -> bytes:
    """Return a file's content, or its first `count` bytes, decompressed where it is gzipped."""
    try:
        with path.open("rb") as stream:
            packed = stream.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            stream.seek(0)
            if packed and count >= 0:
                return gzip.GzipFile(fileobj=stream).read(count)
            content = stream.read(count)
        return gzip.decompress(content) if packed else content
    except EOFError as error:
        raise _bad(path, "a gzip stream that is cut short", _DAMAGED) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _bad(path, "a damaged gzip stream", _DAMAGED) from error
    except OSError as error:
        raise _bad(
            path, error.strerror or type(error).__name__, "a file that can be read"
        ) from error


def _parse(path: Path, content: bytes) -> Any:
    header = _parse_header(path, content)
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    _check(path, header.get_data_shape(), header.get_data_dtype(), affine)
    kind = next(kind for kind in _KINDS if type(header) is kind.header_class)
    try:
        return kind.from_bytes(content)
    except (nibabel.spatialimages.HeaderDataError, ValueError, OSError) as error:
        raise _bad(path, "a header that contradicts itself", _DAMAGED) from error


def _parse_header(path: Path, content: bytes) -> Any:
    for kind in _KINDS:
        if kind.header_class.may_contain_header(content):
            try:
                return kind.header_class.from_fileobj(io.BytesIO(content))
            except (nibabel.spatialimages.HeaderDataError, ValueError, OSError) as error:
                raise _bad(path, "a header that contradicts itself", _DAMAGED) from error
    raise _bad(path, "not a NIfTI file", "a .nii or .nii.gz volume")


def _check(
    path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], affine: NDArray[np.float64]
) -> None:
    if len(shape) < 3 or 0 in shape:
        raise _bad(path, f"shape {'x'.join(map(str, shape))}", "one 3D volume")
    if dtype.kind not in "iuf":
        raise _bad(path, f"voxels of type {dtype}", "real numbers")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise _bad(path, "an affine that cannot be inverted", "voxel sizes above 0 mm")


def _forms(header: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.asarray(header.get_qform()), np.asarray(header.get_sform())


def _spacing(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(length) for length in np.linalg.norm(affine[:3, :3], axis=0))
    return x, y, z


def _corners(shape: Sequence[int], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    last = np.asarray(shape) - 1
    indices = np.array([[*(last * corner), 1.0] for corner in np.ndindex(2, 2, 2)])
    return np.asarray((indices @ affine.T)[:, :3])


def _bad(path: Path, value: str, wanted: str) -> BadData:
    mend = "copy or export it again" if wanted == _DAMAGED else ""
    return BadData(Problem(name=str(path), value=value, wanted=wanted, mend=mend))
