"""The synthetic set: its volumes, its files, and that it is completed rather than begun anew."""

import json
from itertools import islice
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from medsynth_common.intensity import CEILING
from medsynth_common.labels import BRATS_VALUE_OF, Tissue
from medsynth_server.model import Model
from medsynth_server.synthesis import Painter, crop_batches, repeat_batches
from medsynth_server.synthetic_set import write_synthetic_set
from tiny_run import public_model, tiny_config, tiny_volume

CPU = torch.device("cpu")
SITES = ("site-1", "site-2")
GRID = (24, 24, 24)


@pytest.fixture(scope="module")
def model() -> Model:
    """Two sites, one of them much brighter."""
    public = public_model()
    bright = public.prior.style().offset * 1.5
    return public.updated({"style.site-2.offset": bright})


@pytest.fixture
def painter(model: Model) -> Painter:
    return Painter(model, SITES, grid=GRID, device=CPU)


def _write(model: Model, folder: Path, *, count: int = 3, seed: int = 7) -> None:
    write_synthetic_set(model, SITES, folder, count=count, grid=GRID, seed=seed, device=CPU)


def _contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    _write(model, folder)
    return folder


def test_sites_take_turns_and_the_same_seed_makes_the_same_volumes(painter: Painter) -> None:
    one, same = (list(painter.volumes(seed=7, count=3)) for _ in range(2))
    assert [site for site, _ in one] == ["site-1", "site-2", "site-1"]
    for (_, a), (_, b) in zip(one, same, strict=True):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.labels, b.labels)
    assert not torch.equal(one[0][1].image, one[2][1].image)


def test_a_volume_has_its_sites_style(painter: Painter) -> None:
    labels = tiny_volume().labels.unsqueeze(0)
    dull, bright = (
        painter.paint(labels, [site], torch.Generator().manual_seed(1)) for site in SITES
    )
    white = labels == Tissue.WHITE
    assert bright[:, 0][white].mean() > 1.2 * dull[:, 0][white].mean()


def test_intensities_end_where_those_of_patients_do(model: Model) -> None:
    offset = torch.full_like(model.prior.style().offset, 1.24)
    painter = Painter(model.updated({"style.site-1.offset": offset}), SITES, grid=GRID, device=CPU)
    labels = tiny_volume().labels.unsqueeze(0)
    image = painter.paint(labels, ["site-1"], torch.Generator().manual_seed(1))
    assert float(image.max()) == CEILING


def test_batches_are_endless_and_painted_anew(painter: Painter) -> None:
    batches = painter.batches(seed=7, batch=2, fresh=1)
    (first, _), (second, _) = islice(batches, 2)
    assert first.image.shape == (4, *GRID)
    assert torch.equal(first.labels, second.labels)  # the one label map there is
    assert not torch.equal(first.image, second.image)


def test_fixed_volumes_come_up_again_and_again() -> None:
    volumes = [tiny_volume(seed) for seed in (1, 2)]
    batch = next(repeat_batches(volumes, batch=8, seed=1))
    assert len(batch) == 8
    assert {id(volume) for volume in batch} == {id(volume) for volume in volumes}


def test_every_volume_of_a_batch_gives_two_crops() -> None:
    batches = repeat_batches([tiny_volume(1)], batch=3, seed=1)
    images, labels = next(crop_batches(batches, crop=(8, 8, 8), seed=1, device=CPU))
    assert images.shape == (6, 4, 8, 8, 8)
    assert labels.shape == (6, 8, 8, 8)
    assert bool((labels[1::2] >= Tissue.CORE).flatten(1).any(1).all())


def test_the_set_is_nifti_in_brats_names_with_a_table_of_contents(written: Path) -> None:
    about = json.loads((written / "dataset.json").read_text())
    assert about["numTraining"] == 3
    assert [entry["style"] for entry in about["training"]] == ["site-1", "site-2", "site-1"]
    assert about["labels"] == {"0": "background", "1": "core", "2": "oedema", "4": "enhancing"}
    for entry in about["training"]:
        name = entry["name"]
        assert {path.name for path in (written / name).iterdir()} == {
            f"{name}-{part}.nii.gz" for part in ("t1n", "t1c", "t2w", "t2f", "seg", "anatomy")
        }


def test_every_file_says_that_it_is_synthetic_and_how_large_a_voxel_is(written: Path) -> None:
    paths = sorted(written.rglob("*.nii.gz"))
    assert len(paths) == 18
    for path in paths:
        image = nibabel.load(path)
        assert image.header["descrip"].tobytes().startswith(b"SYNTHETIC medsynth")
        np.testing.assert_allclose(image.affine, np.diag([7.5, 7.5, 7.5, 1.0]))  # 180 mm over 24
        assert image.header.get_xyzt_units()[0] == "mm"
        assert image.shape == GRID


def test_files_hold_what_was_painted_and_labels_are_parted(model: Model, written: Path) -> None:
    painter = Painter(model, SITES, grid=GRID, device=CPU)
    for index, (_, volume) in enumerate(painter.volumes(seed=7, count=3)):
        name = f"synthetic-{index:03d}"

        def read(part: str, name: str = name) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
            return np.asarray(nibabel.load(written / name / f"{name}-{part}.nii.gz").dataobj)

        for channel, part in enumerate(("t1n", "t1c", "t2w", "t2f")):
            np.testing.assert_array_equal(read(part), volume.image[channel].numpy())
        labels = volume.labels.numpy()
        tumour, anatomy = read("seg"), read("anatomy")
        for tissue in Tissue:
            inside = labels == tissue
            value = BRATS_VALUE_OF.get(tissue, 0)
            assert (tumour[inside] == value).all()
            assert (anatomy[inside] == (0 if value else tissue)).all()


def test_the_same_seed_writes_the_same_bytes(model: Model, written: Path, tmp_path: Path) -> None:
    _write(model, tmp_path)
    assert _contents(tmp_path) == _contents(written)


def test_an_interrupted_set_is_completed_and_what_is_there_is_not_made_again(
    model: Model, written: Path, tmp_path: Path
) -> None:
    whole = _contents(written)
    for name in (
        "synthetic-000/synthetic-000-t1n.nii.gz",
        "synthetic-000/synthetic-000-seg.nii.gz",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(whole[name])
    kept = tmp_path / "synthetic-000" / "synthetic-000-t1n.nii.gz"
    made = kept.stat().st_mtime_ns
    _write(model, tmp_path)
    assert _contents(tmp_path) == whole
    assert kept.stat().st_mtime_ns == made


def test_numbers_have_as_many_digits_as_the_largest_needs(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = next(iter(Painter(model, SITES, grid=GRID, device=CPU).volumes(seed=7, count=1)))
    monkeypatch.setattr(Painter, "volumes", lambda self, *, seed, count: [one])
    _write(model, tmp_path, count=1000)
    assert (tmp_path / "synthetic-0000").is_dir()


def test_settings_ask_for_at_least_one_volume() -> None:
    assert tiny_config().evaluation.synthetic >= 1
