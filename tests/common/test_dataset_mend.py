"""A mended copy: what can be mended is, the rest is said, and the original stays as it was."""

import errno
import os
import tomllib
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from medsynth_common.dataset import DataConfig, Level, examine, find_patients
from medsynth_common.dataset.mend import Prepared, write_prepared
from medsynth_common.errors import BadConfig
from medsynth_common.volumes import read_volume
from phantom_patients import AFFINE, brats, decathlon, patient, write


def mended(root: Path, out: Path, config: DataConfig | None = None) -> Prepared:
    config = config or DataConfig()
    found = examine(find_patients(root, config, one_site="a"), config)
    return write_prepared(root, found, config, out)


def state(root: Path) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A good patient, three that can be mended, two that cannot."""
    root = tmp_path / "data"
    for seed, name in enumerate(("good", "nan", "shifted", "coarse", "lost", "zcopy")):
        brats(root / name, patient(seed))
    broken = patient(1)["t1"]
    broken[12, 12, 12] = np.nan
    write(root / "nan" / "nan_t1.nii.gz", broken)
    # The same head two voxels further along x, on a grid that begins two voxels earlier.
    moved = AFFINE.copy()
    moved[0, 3] += 10
    write(root / "shifted" / "shifted_flair.nii.gz", np.roll(patient(2)["flair"], 2, 0), moved)
    coarse = ndimage.zoom(patient(3)["t2"], 0.5, order=1, grid_mode=True, mode="nearest")
    wide = AFFINE @ np.diag([2.0, 2, 2, 1])
    wide[:3, 3] = (AFFINE @ [0.5, 0.5, 0.5, 1])[:3]
    write(root / "coarse" / "coarse_t2.nii.gz", coarse.astype(np.float32), wide)
    (root / "lost" / "lost_t2.nii.gz").unlink()
    brats(root / "zcopy", patient(0))
    return root


def test_what_can_be_mended_is_and_the_rest_is_said(root: Path, tmp_path: Path) -> None:
    before = state(root)
    result = mended(root, tmp_path / "out")
    assert {(one.patient, one.role) for one in result.mended} == {
        ("a/nan", "t1"),
        ("a/shifted", "flair"),
        ("a/coarse", "t2"),
    }
    assert set(result.left_out) == {"a/lost", "a/zcopy"}
    assert "no file" in str(result.left_out["a/lost"][0])
    assert result.examination.of(Level.ERROR) == []
    assert state(root) == before

    settings = tomllib.loads((tmp_path / "out" / "data.toml").read_text())["data"]
    config = DataConfig.model_validate(settings)
    sites = find_patients(tmp_path / "out", config)
    assert [files.name for files in sites["a"]] == ["coarse", "good", "nan", "shifted"]
    assert sites == find_patients(tmp_path / "out", DataConfig())
    assert examine(sites, config).of(Level.ERROR) == []


def test_voxels_stay_where_they_were_in_the_scanner(root: Path, tmp_path: Path) -> None:
    mended(root, tmp_path / "out")
    copy = tmp_path / "out" / "sites" / "a"
    for name, role, ending in (("good", "t1", "_t1"), ("shifted", "flair", "_flair")):
        volume = read_volume(copy / name / f"{name}{ending}.nii.gz")
        wanted = read_volume(root / "good" / "good_t1.nii.gz")
        np.testing.assert_allclose(volume.affine, wanted.affine)
        seed = 0 if name == "good" else 2
        wanted_data = patient(seed)[role][::-1, ::-1]
        seen = (slice(3, -3),) * 3  # of the shifted one, an edge was never scanned
        np.testing.assert_allclose(volume.data[seen], wanted_data[seen], atol=1e-3)
    coarse = read_volume(copy / "coarse" / "coarse_t2.nii.gz").data
    fine = patient(3)["t2"][::-1, ::-1]
    in_place = np.corrcoef(coarse.ravel(), fine.ravel())[0, 1]
    assert in_place > 0.8
    for axis, step in product(range(3), (-1, 1)):  # nowhere does it lie better
        beside = np.roll(coarse, step, axis)
        assert np.corrcoef(beside.ravel(), fine.ravel())[0, 1] < in_place - 0.02
    stored = nibabel.load(copy / "nan" / "nan_t1.nii.gz")
    assert nibabel.aff2axcodes(stored.affine) == ("R", "A", "S")
    assert stored.get_fdata()[11, 11, 12] == 0


def test_an_oblique_patient_is_straightened(tmp_path: Path) -> None:
    sine, cosine = np.sin(np.radians(30)), np.cos(np.radians(30))
    turn = np.eye(4)
    turn[:2, :2] = [[cosine, -sine], [sine, cosine]]
    images = patient(0)
    for role, ending in {"t1": "t1", "t1gd": "t1ce", "t2": "t2", "flair": "flair"}.items():
        write(tmp_path / "data" / "p" / f"p_{ending}.nii.gz", images[role], turn @ AFFINE)
    write(tmp_path / "data" / "p" / "p_seg.nii.gz", images["seg"], turn @ AFFINE)
    result = mended(tmp_path / "data", tmp_path / "out")
    assert result.examination.of(Level.WARNING) == []
    copied = read_volume(tmp_path / "out" / "sites" / "a" / "p" / "p_t1.nii.gz")
    centres = []
    for data, affine in ((images["t1"], turn @ AFFINE), (copied.data, copied.affine)):
        weights = data[data > 50]
        places = np.argwhere(data > 50) @ affine[:3, :3].T + affine[:3, 3]
        centres.append((places * weights[:, None]).sum(axis=0) / weights.sum())
    np.testing.assert_allclose(centres[0], centres[1], atol=1.0)


def test_label_values_become_those_of_brats(tmp_path: Path) -> None:
    decathlon(tmp_path / "data", {"p": patient(0)})
    mended(tmp_path / "data", tmp_path / "out")
    written = read_volume(tmp_path / "out" / "sites" / "a" / "p" / "p_seg.nii.gz").data
    np.testing.assert_array_equal(written, patient(0)["seg"][::-1, ::-1])


def test_a_map_that_its_grid_leaves_empty_is_left_out(tmp_path: Path) -> None:
    brats(tmp_path / "data" / "p", patient(0))
    far = AFFINE.copy()
    far[0, 3] += 1000
    write(tmp_path / "data" / "p" / "p_seg.nii.gz", patient(0)["seg"], far)
    brats(tmp_path / "data" / "q", patient(1))
    result = mended(tmp_path / "data", tmp_path / "out")
    assert list(result.left_out) == ["a/p"]
    assert "an empty map" in str(result.left_out["a/p"][0])
    assert sorted(p.name for p in (tmp_path / "out" / "sites" / "a").iterdir()) == ["q"]


def test_nothing_is_written_over_or_into_the_data(root: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for out in (root, root / "prepared", tmp_path / "full", tmp_path / "full" / "x"):
        with pytest.raises(BadConfig, match="wanted a new folder elsewhere"):
            mended(root, out)
    assert not (root / "prepared").exists()


def test_a_full_disk_leaves_nothing_half_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1000))
    sync = os.fsync

    def full(handle: int) -> None:
        if next(calls) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        mended(root, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_copy_of_nothing_is_empty(tmp_path: Path) -> None:
    brats(tmp_path / "data" / "p", patient(0))
    (tmp_path / "data" / "p" / "p_t1.nii.gz").write_bytes(b"")
    result = mended(tmp_path / "data", tmp_path / "out")
    assert set(result.left_out) == {"a/p"}
    assert result.examination.patients == {}
