import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medsynth_common.dataset import DataConfig, Level, examine, find_patients
from medsynth_common.errors import BadData
from medsynth_common.labels import ANATOMY
from small_patients import AFFINE, SHAPE, small_image, small_labels, spoil, write_patient

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"

#: A patient's images that no other patient of these tests has.
T1, _, T2, FLAIR = small_image(small_labels(), seed=1000)


def problems_of(root: Path, config: DataConfig | None = None) -> list[str]:
    config = config or DataConfig()
    found = examine(find_patients(root, config), config)
    return [str(finding.problem) for finding in found.of(Level.ERROR)]


def drop_t2(folder: Path) -> None:
    (folder / f"{folder.name}_t2.nii.gz").unlink()


def add_second_flair(folder: Path) -> None:
    spoil(folder, "_again_flair", FLAIR)


def cut_short(folder: Path) -> None:
    path = folder / f"{folder.name}_t1ce.nii.gz"
    path.write_bytes(path.read_bytes()[:-50])


def replace_by_text(folder: Path) -> None:
    (folder / f"{folder.name}_seg.nii.gz").write_text("not an image")


def shift(folder: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 3
    spoil(folder, "_t2", T2, moved)


def turn(folder: Path) -> None:
    spoil(folder, "_flair", FLAIR, AFFINE @ np.diag([1.0, 1.0, 1.2, 1.0]))


def crop(folder: Path) -> None:
    spoil(folder, "_t1", np.ascontiguousarray(T1[:-1]))


def break_voxels(folder: Path) -> None:
    broken = T1.copy()
    broken[12, 14, 9:11] = [np.nan, np.inf]
    spoil(folder, "_t1ce", broken)


def flatten(folder: Path) -> None:
    spoil(folder, "_t2", (T1 > 0).astype(np.float32))


def blacken(folder: Path) -> None:
    spoil(folder, "_flair", np.zeros(SHAPE, dtype=np.float32))


def blacken_all(folder: Path) -> None:
    for ending in ("_t1", "_t1ce", "_t2", "_flair"):
        spoil(folder, ending, np.zeros(SHAPE, dtype=np.float32))


def number_wrongly(folder: Path) -> None:
    spoil(folder, "_seg", (T1 > 0).astype(np.uint8) * 7)


def number_in_halves(folder: Path) -> None:
    spoil(folder, "_seg", (T1 > 0).astype(np.float32) / 2)


def take_an_image_for_the_map(folder: Path) -> None:
    spoil(folder, "_seg", T1)


def empty_the_map(folder: Path) -> None:
    spoil(folder, "_seg", np.zeros(SHAPE, dtype=np.uint8))


Defect = Callable[[Path], None]
DEFECTS: dict[Defect, tuple[str, str]] = {
    drop_t2: ("t2", "got no file, wanted one that matches *_t2.nii.gz or *_t2.nii or *-t2w"),
    add_second_flair: ("flair", "_again_flair.nii.gz, "),
    cut_short: ("t1gd", "cut short"),
    replace_by_text: ("tumour", "not a NIfTI file"),
    shift: ("t2", "a corner 3 mm away"),
    turn: ("flair", "mm away"),
    crop: ("t1", "got 23x28x20 voxels, wanted the grid of t1gd, 24x28x20 voxels"),
    break_voxels: ("t1gd", "2 NaN or infinite voxels"),
    flatten: ("t2", "got 1 in every voxel of the brain"),
    blacken: ("flair", "no voxel above 0"),
    blacken_all: ("", "no voxel above 0 in any contrast"),
    number_wrongly: ("tumour", "got label value 7, wanted 0, 1, 2, 3, 4 (say what it means"),
    number_in_halves: ("tumour", "label value 0.5"),
    take_an_image_for_the_map: ("tumour", " more, wanted 0, 1"),
    empty_the_map: ("tumour", "an empty map"),
}


def test_a_good_data_set_has_no_problem(tmp_path: Path) -> None:
    write_patient(tmp_path / "a" / "p1")
    write_patient(tmp_path / "b" / "p1", seed=1)
    assert problems_of(tmp_path) == []


def test_every_planted_defect_is_told_at_once_and_no_good_patient_is_blamed(
    tmp_path: Path,
) -> None:
    for index, defect in enumerate(DEFECTS):
        defect(write_patient(tmp_path / f"site{index % 2}" / defect.__name__, seed=index))
    write_patient(tmp_path / "site0" / "good", seed=100)
    (tmp_path / "empty-site").mkdir()
    problems = problems_of(tmp_path)

    for index, (defect, (role, told)) in enumerate(DEFECTS.items()):
        patient = f"site{index % 2}/{defect.__name__}:"
        about = [problem for problem in problems if problem.startswith(patient)]
        assert len(about) == 1, about
        assert told in about[0]
        assert about[0].startswith(f"{patient} {role}".rstrip())
    assert not [problem for problem in problems if "good" in problem]
    assert "site empty-site: got no patient, wanted at least one" in problems
    assert len(problems) == len(DEFECTS) + 1

    with pytest.raises(BadData) as raised:
        examine(find_patients(tmp_path, DataConfig()), DataConfig()).raise_errors()
    assert len(raised.value.problems) == len(problems)


def test_a_pattern_that_takes_one_file_for_two_contrasts_is_told(tmp_path: Path) -> None:
    write_patient(tmp_path / "a" / "p")
    config = DataConfig.model_validate({"contrasts": {"flair": "*_t2.nii.gz"}})
    (problem,) = problems_of(tmp_path, config)
    assert problem.startswith("a/p: t2 and flair: got p_t2.nii.gz, wanted a file for each")


def test_affines_that_differ_by_rounding_are_one_grid(tmp_path: Path) -> None:
    folder = write_patient(tmp_path / "a" / "p")
    spoil(folder, "_t2", T2, AFFINE + np.full((4, 4), 1e-5) * (np.arange(4) < 3)[:, None])
    assert problems_of(tmp_path) == []


def test_a_csv_that_contradicts_the_folder_or_itself_is_told_with_the_rest(tmp_path: Path) -> None:
    for seed, name in enumerate(("p1", "p2", "p3")):
        write_patient(tmp_path / name, seed=seed)
    empty_the_map(tmp_path / "p3")
    (tmp_path / "s.csv").write_text("site,patient\na,p1\nb,p1\na,p2\na,p2\nb,p3\nb,ghost\n")
    problems = problems_of(tmp_path, DataConfig(sites=Path("s.csv")))
    assert len(problems) == 4
    assert problems[0].startswith("patient p1: got sites a, b, wanted one site")
    assert problems[1].startswith("a/p2: got 2 rows, wanted one row")
    assert problems[2].startswith("b/ghost: got no such folder")
    assert problems[3].startswith("b/p3: tumour: got an empty map")


def test_healthy_patients_are_allowed_when_said_but_not_only_healthy_ones(tmp_path: Path) -> None:
    write_patient(tmp_path / "a" / "ill")
    empty_the_map(write_patient(tmp_path / "a" / "healthy", seed=1))
    config = DataConfig(allow_no_tumour=True)
    assert "allow_no_tumour = true" in problems_of(tmp_path)[0]
    assert problems_of(tmp_path, config) == []
    empty_the_map(tmp_path / "a" / "ill")
    assert len(problems_of(tmp_path, config)) == 2


def test_a_value_to_pass_over_is_known_and_is_no_tumour(tmp_path: Path) -> None:
    number_wrongly(write_patient(tmp_path / "a" / "p"))
    config = DataConfig.model_validate({"tumour_values": {1: "core", 7: "background"}})
    (problem,) = problems_of(tmp_path, config)
    assert problem.startswith("a/p: tumour: got an empty map")


def test_anatomy_maps_are_checked_where_they_are_configured(tmp_path: Path) -> None:
    config = DataConfig(anatomy=("*_anat.nii.gz",))
    anatomy = np.where(np.isin(small_labels(), ANATOMY), small_labels(), 0).astype(np.uint8)
    maps = {"good": anatomy, "empty": anatomy * 0, "odd": anatomy + 40}
    for seed, (name, data) in enumerate(maps.items()):
        spoil(write_patient(tmp_path / "a" / name, seed=seed), "_anat", data)
    write_patient(tmp_path / "a" / "without", seed=9)
    assert [problem.partition(", wanted")[0] for problem in problems_of(tmp_path, config)] == [
        "a/empty: anatomy: got an empty map",
        "a/odd: anatomy: got label value 40, 41, 42, 43, 44",
        "a/without: anatomy: got no file",
    ]


def test_the_published_data_sets_are_good(real_data: Path) -> None:
    table = tomllib.loads((EXAMPLES / "tcga_lgg.toml").read_text())["data"]
    assert problems_of(real_data / "tcga_lgg", DataConfig.model_validate(table)) == []
