import tomllib
from pathlib import Path

import numpy as np
import pytest

from medsynth_common.dataset import DataConfig, Patient, find_patients, prepare
from medsynth_common.dataset.brain import brain_mask
from medsynth_common.errors import BadData
from medsynth_common.labels import ANATOMY, Tissue
from small_patients import AFFINE, SHAPE, small_image, small_labels, spoil, write_patient

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"
GRID = (32, 32, 32)


def prepared(
    root: Path, config: DataConfig | None = None, grid: tuple[int, int, int] = GRID
) -> Patient:
    config = config or DataConfig()
    ((files,),) = find_patients(root, config).values()
    return prepare(files, grid, config)


def test_a_patient_is_one_grid_one_scale_one_map(tmp_path: Path) -> None:
    write_patient(tmp_path / "a" / "p")
    patient = prepared(tmp_path)
    assert patient.image.shape == (4, *GRID)
    assert patient.image.dtype == np.float32
    assert patient.labels.shape == GRID
    assert patient.labels.dtype == np.uint8
    brain = patient.labels > 0
    assert (patient.image[:, ~brain] == 0).all()
    assert patient.image.min() >= 0
    assert patient.image.max() <= 1.25
    np.testing.assert_allclose(np.percentile(patient.image[:, brain], 99, axis=1), 1, atol=1e-5)


def test_labels_stay_where_they_were_in_the_scanner(tmp_path: Path) -> None:
    write_patient(tmp_path / "a" / "p")
    patient = prepared(tmp_path)
    for tissue in (Tissue.CORE, Tissue.ENHANCING, Tissue.OEDEMA):
        wanted, found = [
            (np.argwhere(labels == tissue) @ affine[:3, :3].T + affine[:3, 3]).mean(axis=0)
            for labels, affine in ((small_labels(), AFFINE), (patient.labels, patient.affine))
        ]
        np.testing.assert_allclose(found, wanted, atol=1.0)


def test_the_image_lies_under_its_labels(tmp_path: Path) -> None:
    write_patient(tmp_path / "a" / "p")
    patient = prepared(tmp_path)
    t1gd, flair = patient.image[1], patient.image[3]
    for contrast, tissue in ((t1gd, Tissue.ENHANCING), (flair, Tissue.OEDEMA)):
        others = (patient.labels > 0) & (patient.labels != tissue)
        assert contrast[patient.labels == tissue].mean() > contrast[others].mean() + 0.2


def test_clustering_finds_the_tissues_of_a_patient_without_anatomy(tmp_path: Path) -> None:
    anatomy = np.where(np.isin(small_labels(), ANATOMY), small_labels(), 0).astype(np.uint8)
    spoil(write_patient(tmp_path / "a" / "p"), "_anat", anatomy)
    found = prepared(tmp_path, DataConfig(tissues="clustering")).labels
    wanted = prepared(tmp_path, DataConfig(anatomy=("*_anat.nii.gz",))).labels
    for tissue in (Tissue.CSF, Tissue.GREY, Tissue.WHITE, Tissue.VENTRICLE):
        overlap = 2 * ((found == tissue) & (wanted == tissue)).sum()
        dice = overlap / ((found == tissue).sum() + (wanted == tissue).sum())
        assert dice > 0.8, tissue.name


def test_negative_values_and_crumbs_outside_are_not_brain(tmp_path: Path) -> None:
    folder = write_patient(tmp_path / "a" / "p")
    clean = prepared(tmp_path)
    t1 = small_image(small_labels())[0]
    t1[0] = -40.0
    t1[0, 0, 0] = 500.0
    spoil(folder, "_t1", t1)
    spoiled = prepared(tmp_path)
    np.testing.assert_array_equal(clean.labels, spoiled.labels)
    np.testing.assert_array_equal(clean.image, spoiled.image)


def test_preparing_twice_gives_the_same(tmp_path: Path) -> None:
    write_patient(tmp_path / "a" / "p")
    one, two = prepared(tmp_path), prepared(tmp_path)
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_array_equal(one.image, two.image)


def test_tumour_outside_the_brain_is_left_out(tmp_path: Path) -> None:
    folder = write_patient(tmp_path / "a" / "p")
    spoil(folder, "_seg", np.ones(SHAPE, dtype=np.uint8))
    patient = prepared(tmp_path)
    assert set(np.unique(patient.labels)) == {Tissue.BACKGROUND, Tissue.CORE}
    assert (patient.labels > 0).mean() < 0.6


def test_what_an_anatomy_map_leaves_out_of_the_brain_is_csf(tmp_path: Path) -> None:
    labels = small_labels()
    anatomy = np.where(labels == Tissue.WHITE, 41, 0).astype(np.uint8)
    spoil(write_patient(tmp_path / "a" / "p"), "_anat", anatomy)
    config = DataConfig.model_validate({"anatomy": "*_anat*", "anatomy_values": {41: "white"}})
    found = prepared(tmp_path, config).labels
    assert set(np.unique(found[found <= Tissue.DEEP_GREY])) == {0, Tissue.CSF, Tissue.WHITE}


def test_what_cannot_be_prepared_is_told(tmp_path: Path) -> None:
    black = write_patient(tmp_path / "black" / "a" / "p")
    for ending in ("_t1", "_t1ce", "_t2", "_flair"):
        spoil(black, ending, np.zeros(SHAPE, dtype=np.float32))
    with pytest.raises(BadData, match="a/p: got no voxel above 0"):
        prepared(tmp_path / "black")
    cropped = write_patient(tmp_path / "cropped" / "a" / "p")
    spoil(cropped, "_t1", np.ones((3, 3, 3), dtype=np.float32))
    with pytest.raises(BadData, match="a/p: got grids that differ"):
        prepared(tmp_path / "cropped")
    blind = write_patient(tmp_path / "blind" / "a" / "p")
    spoil(blind, "_t2", np.zeros(SHAPE, dtype=np.float32))
    with pytest.raises(BadData, match="a/p: t2: got a largest value of 0 inside the brain"):
        prepared(tmp_path / "blind")
    broken = write_patient(tmp_path / "broken" / "a" / "p")
    t1 = small_image(small_labels())[0]
    t1[tuple(side // 2 for side in SHAPE)] = np.nan
    spoil(broken, "_t1", t1)
    with pytest.raises(BadData, match="a/p: t1: got a largest value of nan"):
        prepared(tmp_path / "broken")


def test_a_patient_who_vanishes_on_a_coarse_grid_is_empty_and_no_error(tmp_path: Path) -> None:
    """A coordinator chooses the grid: an error would tell of the patient, and cost nothing."""
    folder = write_patient(tmp_path / "a" / "p")
    middle = SHAPE[2] // 2
    for ending, image in zip(
        ("_t1", "_t1ce", "_t2", "_flair"), small_image(small_labels()), strict=True
    ):
        slab = np.zeros(SHAPE, dtype=np.float32)
        slab[..., middle] = image[..., middle]
        spoil(folder, ending, slab)
    coarse, fine = prepared(tmp_path, grid=(8, 8, 8)), prepared(tmp_path, grid=(64, 64, 64))
    assert not coarse.labels.any()
    assert not coarse.image.any()
    assert fine.labels.any()
    assert fine.image.any(axis=(1, 2, 3)).all()


def test_the_brain_is_the_largest_piece_without_holes() -> None:
    image = np.zeros((4, 20, 20, 20), dtype=np.float32)
    image[1, 4:15, 4:15, 4:15] = 1.0
    image[:, 8:10, 8:10, 8:10] = -1.0  # a hole inside
    image[0, 17:19, 17:19, 17:19] = 1.0  # a crumb apart
    wanted = np.zeros((20, 20, 20), dtype=bool)
    wanted[4:15, 4:15, 4:15] = True
    np.testing.assert_array_equal(brain_mask(image), wanted)
    assert not brain_mask(np.zeros((4, 5, 5, 5), dtype=np.float32)).any()


@pytest.mark.parametrize("name", ["ms_lesions", "tcga_lgg"])
@pytest.mark.parametrize("tissues", ["network", "clustering"])
def test_published_patients_come_out_as_brains(name: str, tissues: str, real_data: Path) -> None:
    table = tomllib.loads((EXAMPLES / f"{name}.toml").read_text())["data"]
    config = DataConfig.model_validate({**table, "tissues": tissues})
    (files,) = next(iter(find_patients(real_data / name, config).values()))
    patient = prepare(files, (48, 48, 48), config)
    t1, _, t2, flair = patient.image
    inside = {tissue: patient.labels == tissue for tissue in Tissue}
    share = {tissue: inside[tissue].sum() / (patient.labels > 0).sum() for tissue in Tissue}
    assert 0.05 < share[Tissue.CSF] + share[Tissue.VENTRICLE] < 0.35
    assert 0.3 < share[Tissue.GREY] + share[Tissue.DEEP_GREY] < 0.65
    assert 0.2 < share[Tissue.WHITE] < 0.6
    assert t1[inside[Tissue.WHITE]].mean() > t1[inside[Tissue.GREY]].mean()
    assert t1[inside[Tissue.GREY]].mean() > t1[inside[Tissue.VENTRICLE]].mean()
    assert t2[inside[Tissue.VENTRICLE]].mean() > t2[inside[Tissue.GREY]].mean()
    assert flair[inside[Tissue.OEDEMA]].mean() > flair[inside[Tissue.WHITE]].mean()
