import errno
import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from medsynth_common.errors import BadData
from medsynth_common.volumes import read_volume, write_volume

DESCRIPTION = "SYNTHETIC medsynth"
AFFINE = np.array([[2.0, 0, 0, -10], [0, 2.0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def problem_of(path: Path) -> str:
    with pytest.raises(BadData) as raised:
        read_volume(path)
    (problem,) = raised.value.problems
    assert problem.name == str(path)
    return problem.value


@pytest.mark.parametrize("name", ["image.nii", "folder/image.nii.gz"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    data = noise(4, 5, 6)
    write_volume(tmp_path / name, data, AFFINE, description=DESCRIPTION)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_array_equal(volume.affine, AFFINE)
    assert volume.spacing == (2.0, 2.0, 3.0)


def test_other_programs_find_type_description_and_orientation(tmp_path: Path) -> None:
    labels = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    write_volume(tmp_path / "labels.nii.gz", labels, AFFINE, description=DESCRIPTION)
    image = nibabel.load(tmp_path / "labels.nii.gz")
    assert image.get_data_dtype() == np.uint8
    assert image.header["descrip"].item() == DESCRIPTION.encode()
    np.testing.assert_allclose(image.get_qform(), AFFINE)
    np.testing.assert_array_equal(image.get_sform(), AFFINE)


def test_the_same_volume_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.nii.gz", "two.nii.gz"):
        write_volume(tmp_path / name, noise(4, 4, 4), AFFINE, description=DESCRIPTION)
    assert (tmp_path / "one.nii.gz").read_bytes() == (tmp_path / "two.nii.gz").read_bytes()


def test_axes_are_turned_to_right_anterior_superior(tmp_path: Path) -> None:
    data = noise(4, 5, 6)
    turned = nibabel.Nifti1Image(data, AFFINE).as_reoriented([[1, -1], [0, 1], [2, -1]])
    nibabel.save(turned, tmp_path / "turned.nii")
    volume = read_volume(tmp_path / "turned.nii")
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert volume.data.flags.c_contiguous


def test_scaled_integers_and_a_fourth_axis_of_one_are_read(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.full((3, 4, 5, 1), 7, dtype=np.int16), AFFINE)
    image.header.set_slope_inter(2.0, 1.0)
    nibabel.save(image, tmp_path / "scaled.nii")
    raw = read_volume(tmp_path / "scaled.nii").data
    stored = nibabel.load(tmp_path / "scaled.nii").get_fdata()[..., 0]
    np.testing.assert_allclose(raw, stored)
    assert raw.shape == (3, 4, 5)


def test_nifti_2_is_read(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(noise(3, 4, 5), AFFINE), tmp_path / "two.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "two.nii").data, noise(3, 4, 5))


@pytest.mark.parametrize("lost", [4, 30, 2000])
def test_a_gzip_cut_short_is_told_even_when_only_its_checksum_is_lost(
    tmp_path: Path, lost: int
) -> None:
    path = tmp_path / "image.nii.gz"
    write_volume(path, noise(8, 8, 8), AFFINE, description=DESCRIPTION)
    path.write_bytes(path.read_bytes()[:-lost])
    assert problem_of(path) == "a gzip stream that is cut short"


def test_a_gzip_with_a_flipped_byte_is_told(tmp_path: Path) -> None:
    path = tmp_path / "image.nii.gz"
    write_volume(path, noise(8, 8, 8), AFFINE, description=DESCRIPTION)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert problem_of(path) == "a damaged gzip stream"


def test_a_plain_file_cut_short_is_told(tmp_path: Path) -> None:
    path = tmp_path / "image.nii"
    write_volume(path, noise(8, 8, 8), AFFINE, description=DESCRIPTION)
    path.write_bytes(path.read_bytes()[:-100])
    assert problem_of(path) == "fewer voxels than its header promises"


@pytest.mark.parametrize(
    "content",
    [b"", b"PNG", b"x" * 4096, gzip.compress(b"y" * 4096)],
    ids=["empty", "three bytes", "plain", "gzip"],  # gzip's bytes hold the time: no name for a test
)
def test_what_is_not_nifti_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image.nii.gz").write_bytes(content)
    assert problem_of(tmp_path / "image.nii.gz") == "not a NIfTI file"


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    assert problem_of(tmp_path / "image.nii.gz") == "No such file or directory"


def test_volumes_that_are_not_one_real_3d_grid_are_told(tmp_path: Path) -> None:
    flat = np.diag([2.0, 2.0, 0.0, 1.0])
    for name, data, affine in (
        ("series", noise(3, 3, 3, 2), AFFINE),
        ("slice", noise(3, 3), AFFINE),
        ("complex", noise(3, 3, 3).astype(np.complex64), AFFINE),
        ("flat", noise(3, 3, 3), flat),
    ):
        image = nibabel.Nifti1Image(data, None)
        image.set_sform(affine, code=1)
        nibabel.save(image, tmp_path / f"{name}.nii")
    assert problem_of(tmp_path / "series.nii") == "shape 3x3x3x2"
    assert problem_of(tmp_path / "slice.nii") == "shape 3x3"
    assert problem_of(tmp_path / "complex.nii") == "voxels of type complex64"
    assert problem_of(tmp_path / "flat.nii") == "an affine that cannot be inverted"


def test_values_beyond_float32_come_back_infinite_and_without_a_warning(tmp_path: Path) -> None:
    data = np.zeros((3, 3, 3))
    data[1, 1, 1] = 1e300
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), tmp_path / "huge.nii")
    assert np.isinf(read_volume(tmp_path / "huge.nii").data).sum() == 1


def test_arguments_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.nii.gz"
    with pytest.raises(ValueError, match="79 bytes, got 80"):
        write_volume(path, noise(3, 3, 3), AFFINE, description="é" * 40)
    with pytest.raises(ValueError, match="float64"):
        write_volume(path, np.zeros((3, 3, 3)), AFFINE, description=DESCRIPTION)
    with pytest.raises(ValueError, match=r"image\.mha"):
        write_volume(tmp_path / "image.mha", noise(3, 3, 3), AFFINE, description=DESCRIPTION)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_behind_and_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.nii.gz"
    write_volume(old, noise(3, 3, 3), AFFINE, description=DESCRIPTION)
    before = old.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for path in (old, tmp_path / "new.nii.gz"):
        with pytest.raises(OSError, match="No space left"):
            write_volume(path, noise(4, 4, 4), AFFINE, description=DESCRIPTION)
    assert [path.name for path in tmp_path.iterdir()] == ["old.nii.gz"]
    assert old.read_bytes() == before
