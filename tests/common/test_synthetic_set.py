"""What is written as a synthetic set is read back the same; what is spoilt is told."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medsynth_common.errors import BadData
from medsynth_common.set_layout import phantom_affine
from medsynth_common.synthetic_set import add_to_dataset, read_synthetic_set, write_synthetic
from medsynth_common.volumes import write_volume
from tiny_run import tiny_volume

NAMES = ("synthetic-000", "synthetic-001")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        write_synthetic(tmp_path, name, tiny_volume(seed))
    table = {"training": [{"name": name} for name in NAMES]}
    (tmp_path / "dataset.json").write_text(json.dumps(table))
    return tmp_path


def spoil(folder: Path, suffix: str, data: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    path = folder / NAMES[1] / f"{NAMES[1]}-{suffix}.nii.gz"
    write_volume(path, data, np.eye(4), description="test")


def test_what_was_written_is_read(folder: Path) -> None:
    read = read_synthetic_set(folder)
    assert tuple(read) == NAMES
    for seed, volume in enumerate(read.values()):
        assert torch.equal(volume.image, tiny_volume(seed).image)
        assert torch.equal(volume.labels, tiny_volume(seed).labels)


def test_facts_are_added_and_others_kept(folder: Path) -> None:
    add_to_dataset(folder, {"release_check": {"verdict": "passed"}})
    written = (folder / "dataset.json").read_bytes()
    assert json.loads(written)["training"][0] == {"name": NAMES[0]}
    add_to_dataset(folder, {"release_check": {"verdict": "passed"}})
    assert (folder / "dataset.json").read_bytes() == written


def test_a_missing_or_damaged_file_is_told(folder: Path) -> None:
    (folder / NAMES[0] / f"{NAMES[0]}-t2w.nii.gz").unlink()
    path = folder / NAMES[1] / f"{NAMES[1]}-t1n.nii.gz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadData) as caught:
        read_synthetic_set(folder)
    assert [Path(p.name).name for p in caught.value.problems] == [
        f"{NAMES[0]}-t2w.nii.gz",
        f"{NAMES[1]}-t1n.nii.gz",
    ]


@pytest.mark.parametrize(("suffix", "value"), [("seg", 9), ("anatomy", 6)])
def test_an_unknown_label_is_told(folder: Path, suffix: str, value: int) -> None:
    spoil(folder, suffix, np.full((24, 24, 24), value, dtype=np.uint8))
    with pytest.raises(BadData, match=rf"{suffix}.nii.gz: got values \[{value}"):
        read_synthetic_set(folder)


def test_grids_that_differ_are_told(folder: Path) -> None:
    spoil(folder, "seg", np.zeros((20, 24, 24), dtype=np.uint8))
    with pytest.raises(BadData, match="grids that differ"):
        read_synthetic_set(folder)


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        "no JSON",
        '{"training": []}',
        '{"training": ["synthetic-000"]}',
        '{"training": [{"name": "../elsewhere"}]}',
    ],
)
def test_a_table_of_contents_that_lists_nothing_readable_is_told(
    folder: Path, content: str
) -> None:
    (folder / "dataset.json").write_text(content)
    with pytest.raises(BadData, match=r"dataset\.json"):
        read_synthetic_set(folder)


def test_a_folder_that_is_no_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="give the folder that holds dataset"):
        read_synthetic_set(tmp_path)


def test_drawn_maps_are_given_the_size_of_a_head() -> None:
    np.testing.assert_allclose(phantom_affine((24, 24, 24)), np.diag([7.5, 7.5, 7.5, 1.0]))
    x, y, z, _ = np.diag(phantom_affine((128, 128, 54)))
    assert x == y == pytest.approx(180 / 128)
    assert 130 < 54 * z < 150  # not half a head's height, as cubes would make it
