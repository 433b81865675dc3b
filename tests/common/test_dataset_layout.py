import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from medsynth_common.dataset import DataConfig, PatientFiles, find_patients
from medsynth_common.errors import BadData
from medsynth_common.labels import CONTRASTS, Contrast, Tissue
from small_patients import BRATS_2023, BRATS_OLD

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"


def touch_patient(folder: Path, naming: dict[str, str] = BRATS_OLD) -> None:
    folder.mkdir(parents=True)
    for ending in naming.values():
        (folder / f"{folder.name}{ending}.nii.gz").touch()


def names(sites: dict[str, list[PatientFiles]]) -> dict[str, list[str]]:
    return {site: [files.name for files in patients] for site, patients in sites.items()}


def problems_of(root: Path, config: DataConfig) -> list[str]:
    with pytest.raises(BadData) as raised:
        find_patients(root, config)
    return [str(problem) for problem in raised.value.problems]


@pytest.mark.parametrize("below", ["", "sites"])
def test_sites_and_patients_are_found_sorted(tmp_path: Path, below: str) -> None:
    for place in ("north/p2", "north/p1", "east/p3"):
        touch_patient(tmp_path / below / place)
    (tmp_path / below / ".cache").mkdir()
    sites = find_patients(tmp_path, DataConfig())
    assert names(sites) == {"east": ["p3"], "north": ["p1", "p2"]}
    assert list(sites) == ["east", "north"]


@pytest.mark.parametrize("naming", [BRATS_OLD, BRATS_2023])
def test_the_defaults_know_both_brats_namings(tmp_path: Path, naming: dict[str, str]) -> None:
    touch_patient(tmp_path / "a" / "p", naming)
    (files,) = find_patients(tmp_path, DataConfig())["a"]
    for contrast in CONTRASTS:
        assert files.path(contrast).name == f"p{naming[contrast]}.nii.gz"
    assert files.path("tumour").name == f"p{naming['seg']}.nii.gz"
    assert "anatomy" not in files.matches


def test_a_csv_deals_patients_to_sites(tmp_path: Path) -> None:
    for patient in ("p1", "p2", "p3", "left-out"):
        touch_patient(tmp_path / patient)
    # A byte-order mark, blanks and a further column, as spreadsheets write them.
    (tmp_path / "sites.csv").write_text("\ufeffsite, patient,age\nb,p1,1\na, p3,2\na,p2,3\n")
    sites = find_patients(tmp_path, DataConfig(sites=Path("sites.csv")))
    assert names(sites) == {"a": ["p2", "p3"], "b": ["p1"]}


def test_every_patient_can_be_a_site(tmp_path: Path) -> None:
    touch_patient(tmp_path / "p1")
    touch_patient(tmp_path / "p2")
    config = DataConfig(one_site_per_patient=True)
    assert names(find_patients(tmp_path, config)) == {"p1": ["p1"], "p2": ["p2"]}


def test_patients_without_sites_are_told_the_ways_out(tmp_path: Path) -> None:
    touch_patient(tmp_path / "p1")
    (problem,) = problems_of(tmp_path, DataConfig())
    assert "patients of no site: p1" in problem
    assert "sites =" in problem
    assert "one_site_per_patient = true" in problem


@pytest.mark.parametrize(
    "config", [DataConfig(), DataConfig(one_site_per_patient=True), DataConfig(sites=Path("s.csv"))]
)
def test_a_folder_without_patients_is_told(tmp_path: Path, config: DataConfig) -> None:
    (tmp_path / "s.csv").write_text("site,patient\n")
    assert len(problems_of(tmp_path, config)) == 1
    assert "no such folder" in problems_of(tmp_path / "absent", config)[0]


def test_all_columns_a_csv_lacks_are_told(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("hospital,subject\na,p\n")
    problems = problems_of(tmp_path, DataConfig(sites=Path("s.csv")))
    assert ["a column site" in problem for problem in problems] == [True, False]
    assert ["a column patient" in problem for problem in problems] == [False, True]


def test_all_unusable_rows_of_a_csv_are_told(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("site,patient\na,p\na,../p\n,p\na\n..,p\n")
    problems = problems_of(tmp_path, DataConfig(sites=Path("s.csv")))
    assert [problem.split(": got")[0][-5:] for problem in problems] == [
        "row 3",
        "row 4",
        "row 5",
        "row 6",
    ]


@pytest.mark.parametrize("content", [None, b"site,patient\n\xff\xfe,p\n"])
def test_a_csv_that_cannot_be_read_is_told(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "s.csv").write_bytes(content)
    (problem,) = problems_of(tmp_path, DataConfig(sites=Path("s.csv")))
    assert "unreadable" in problem


def test_a_choice_between_files_is_not_made_silently(tmp_path: Path) -> None:
    touch_patient(tmp_path / "a" / "p")
    (tmp_path / "a" / "p" / "old_t1.nii.gz").touch()
    (files,) = find_patients(tmp_path, DataConfig())["a"]
    with pytest.raises(BadData, match="a/p: t1: got 2 matching files, wanted one"):
        files.path(Contrast.T1)


def test_a_contrast_that_is_not_configured_keeps_its_default() -> None:
    config = DataConfig.model_validate({"contrasts": {"flair": "*_fla.nii.gz"}})
    assert config.contrasts[Contrast.FLAIR] == ("*_fla.nii.gz",)
    assert config.contrasts[Contrast.T1] == DataConfig().contrasts[Contrast.T1]


def test_a_config_survives_its_own_json() -> None:
    config = DataConfig.model_validate({"tumour_values": {"1": "oedema", "9": "background"}})
    assert config.tumour_values == {1: Tissue.OEDEMA, 9: Tissue.BACKGROUND}
    assert config.model_dump(mode="json")["tumour_values"] == {"1": "oedema", "9": "background"}
    assert DataConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"contrast": {}}, "contrast"),
        ({"contrasts": {"pd": "*.nii"}}, "t1gd"),
        ({"contrasts": {"t1": "/etc/*"}}, "inside the patient's folder"),
        ({"tumour": "../*.nii"}, "inside the patient's folder"),
        ({"tumour": []}, "at least one pattern"),
        ({"tumour_values": {1: "white"}}, "tumour_values: 1 must mean one of background, core"),
        ({"tumour_values": {1: "edema"}}, "got 'edema'"),
        ({"anatomy_values": {0: "csf"}}, "0 must mean background"),
        ({"anatomy_values": {1: "core"}}, "anatomy_values: 1"),
        ({"sites": "s.csv", "one_site_per_patient": True}, "exclude each other"),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError) as raised:
        DataConfig.model_validate(values)
    assert told in str(raised.value)


@pytest.mark.parametrize(("name", "count"), [("ms_lesions", 3), ("tcga_lgg", 2)])
def test_the_example_configs_fit_the_published_data(name: str, count: int, real_data: Path) -> None:
    table = tomllib.loads((EXAMPLES / f"{name}.toml").read_text())["data"]
    sites = find_patients(real_data / name, DataConfig.model_validate(table))
    assert len(sites) == count
    for (files,) in sites.values():
        assert all(files.path(role).is_file() for role in files.matches)
