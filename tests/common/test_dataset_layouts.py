"""BIDS, the Decathlon, flat folders, sessions and partitions: each gives the same patients."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from medsynth_common.dataset import (
    DataConfig,
    Level,
    PatientFiles,
    examine,
    find_patients,
    prepare,
)
from medsynth_common.errors import BadData
from medsynth_common.labels import Tissue
from phantom_patients import bids, brats, decathlon, patient, write
from small_patients import BRATS_2023, BRATS_OLD


def by_site(root: Path) -> None:
    for seed, place in enumerate(("north/p1", "north/p2", "east/p3")):
        brats(root / "sites" / place, patient(seed), BRATS_2023 if seed else BRATS_OLD)


def by_patient(root: Path) -> None:
    for seed in range(3):
        brats(root / f"p{seed}", patient(seed))


def by_session(root: Path) -> None:
    for seed in range(3):
        brats(root / f"p{seed}" / "ses-01", patient(seed))


def in_one_folder(root: Path) -> None:
    for seed in range(3):
        for role, ending in BRATS_OLD.items():
            write(root / f"p{seed}{ending}.nii.gz", patient(seed)[role])


def as_bids(root: Path) -> None:
    for seed in range(3):
        bids(root, f"sub-{seed:02}", patient(seed), session="ses-1")
    (root / "dataset_description.json").write_text("{}")


def as_decathlon(root: Path) -> None:
    decathlon(root, {f"BRATS_{seed:03}": patient(seed) for seed in range(3)})


def as_nnunet(root: Path) -> None:
    roles = ("t1", "t1gd", "t2", "flair")
    for seed in range(3):
        for channel, role in enumerate(roles):
            write(root / "imagesTr" / f"p{seed}_{channel:04}.nii.gz", patient(seed)[role])
        write(root / "labelsTr" / f"p{seed}.nii.gz", patient(seed)["seg"])
    names = {str(channel): role for channel, role in enumerate(roles)}
    labels = {"background": 0, "necrotic core": 1, "edema": 2, "enhancing": 4}
    table = {"channel_names": names, "labels": labels, "numTraining": 3}
    (root / "dataset.json").write_text(json.dumps(table))


Lay = Callable[[Path], None]
LAYOUTS: dict[Lay, tuple[str, int]] = {
    by_site: ("sites", 2),
    by_patient: ("patients", 1),
    by_session: ("patients", 1),
    in_one_folder: ("files", 1),
    as_bids: ("bids", 1),
    as_decathlon: ("msd", 1),
    as_nnunet: ("msd", 1),
}


def names(sites: dict[str, list[PatientFiles]]) -> dict[str, list[str]]:
    return {site: [files.name for files in patients] for site, patients in sites.items()}


def problem_of(root: Path, config: DataConfig | None = None, *, one_site: str | None = "a") -> str:
    with pytest.raises(BadData) as raised:
        find_patients(root, config or DataConfig(), one_site=one_site)
    (problem,) = raised.value.problems
    return str(problem)


@pytest.mark.parametrize("lay", LAYOUTS)
def test_a_good_data_set_of_every_layout_has_nothing_to_blame(tmp_path: Path, lay: Lay) -> None:
    lay(tmp_path)
    layout, count = LAYOUTS[lay]
    sites = find_patients(tmp_path, DataConfig(), one_site="here")
    assert len(sites) == count
    assert sum(map(len, sites.values())) == 3
    assert sites == find_patients(
        tmp_path, DataConfig.model_validate({"layout": layout}), one_site="here"
    )
    found = examine(sites, DataConfig())
    assert {one.kind for one in found.findings if one.level is not Level.NOTE} == set()


@pytest.mark.parametrize("lay", LAYOUTS)
def test_every_layout_gives_the_same_patient(tmp_path: Path, lay: Lay) -> None:
    lay(tmp_path / "data")
    brats(tmp_path / "plain" / "site" / "p", patient(0))
    (wanted,) = find_patients(tmp_path / "plain", DataConfig())["site"]
    sites = find_patients(tmp_path / "data", DataConfig(), one_site="here")
    found = sites["north" if lay is by_site else "here"][0]
    one, other = (prepare(files, (24, 24, 24), DataConfig()) for files in (wanted, found))
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.image, other.image)
    assert {Tissue.CORE, Tissue.OEDEMA, Tissue.ENHANCING} <= set(np.unique(other.labels))


def test_sessions_are_one_patient_and_the_first_whole_one_is_used(tmp_path: Path) -> None:
    for session in ("ses-1", "ses-2", "ses-3"):
        bids(tmp_path, "sub-01", patient(0), session=session)
    (tmp_path / "sub-01" / "ses-1" / "anat" / "sub-01_ses-1_T2w.nii.gz").unlink()
    ((files,),) = find_patients(tmp_path, DataConfig(), one_site="a").values()
    assert files.session == "ses-2"
    assert files.sessions == ("ses-1", "ses-2", "ses-3")
    (note,) = [f for f in examine({"a": [files]}, DataConfig()).findings if f.kind == "sessions"]
    assert "ses-2 is used" in note.problem.wanted


@pytest.mark.parametrize(
    ("folders", "patients"),
    [
        (("BraTS-GLI-00001-000", "BraTS-GLI-00001-001"), ["BraTS-GLI-00001"]),
        (("p1_ses-1", "p1_ses-2", "p2"), ["p1", "p2"]),
        (("anna_20190101", "anna_2020-02-03"), ["anna"]),
        (("p1_pre", "p1_post"), ["p1"]),
        (("BraTS-GLI-00001-000", "BraTS-GLI-00002-000"), None),
        (("patient_1", "patient_2"), None),
    ],
)
def test_folders_whose_names_are_sessions_of_one_patient_are_joined(
    tmp_path: Path, folders: tuple[str, ...], patients: list[str] | None
) -> None:
    for folder in folders:
        (tmp_path / "site" / folder).mkdir(parents=True)
        (tmp_path / "site" / folder / "x_t1.nii.gz").touch()
    found = names(find_patients(tmp_path, DataConfig(layout="sites")))
    assert found == {"site": patients or sorted(folders)}


def test_a_patient_without_sessions_is_not_taken_for_one_of_another_site(tmp_path: Path) -> None:
    for place in ("a/p_ses-1", "b/p_ses-2"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x_t1.nii.gz").touch()
    assert names(find_patients(tmp_path, DataConfig())) == {"a": ["p_ses-1"], "b": ["p_ses-2"]}


def test_sessions_of_one_patient_that_a_csv_deals_to_two_sites_are_told(tmp_path: Path) -> None:
    for seed, name in enumerate(("p_ses-1", "p_ses-2", "q_ses-1", "q_ses-2")):
        brats(tmp_path / name, patient(seed))
    rows = "site,patient\na,p_ses-1\nb,p_ses-2\na,q_ses-1\na,q_ses-2\n"
    (tmp_path / "s.csv").write_text(rows)
    sites = find_patients(tmp_path, DataConfig())
    assert names(sites) == {"a": ["p_ses-1", "q"], "b": ["p_ses-2"]}
    (error,) = examine(sites, DataConfig()).of(Level.ERROR)
    assert str(error.problem).startswith("patient p: got sessions at sites a, b, wanted one site")


@pytest.mark.parametrize("header", ["site,patient", "Partition_ID,Subject_ID"])
def test_a_partition_in_the_folder_is_found(tmp_path: Path, header: str) -> None:
    by_patient(tmp_path)
    (tmp_path / "partitioning_1.csv").write_text(f"{header}\n1,p0\n2,p1\n2,p2\n")
    (tmp_path / "clinical.csv").write_text("patient,age\np0,3\n")
    assert names(find_patients(tmp_path, DataConfig())) == {"1": ["p0"], "2": ["p1", "p2"]}
    (tmp_path / "partitioning_2.csv").write_text(f"{header}\n1,p0\n")
    told = problem_of(tmp_path)
    assert "partitioning_1.csv, partitioning_2.csv" in told
    assert 'sites = "partitioning_1.csv"' in told


@pytest.mark.parametrize("lay", [as_bids, as_decathlon, in_one_folder])
def test_a_partition_deals_the_patients_of_any_layout(tmp_path: Path, lay: Lay) -> None:
    lay(tmp_path)
    first, *others = find_patients(tmp_path, DataConfig(), one_site="a")["a"]
    rows = [f"x,{first.name}", *[f"y,{files.name}" for files in others]]
    (tmp_path / "who.csv").write_text("\n".join(["site,patient", *rows]))
    sites = find_patients(tmp_path, DataConfig(sites=Path("who.csv")))
    assert {site: len(found) for site, found in sites.items()} == {"x": 1, "y": 2}


def test_bids_participants_say_their_site(tmp_path: Path) -> None:
    as_bids(tmp_path)
    rows = "participant_id\tage\tsite\nsub-00\t40\tnorth\n01\t50\tsouth\nsub-02\t6\tsouth\n"
    (tmp_path / "participants.tsv").write_text(rows)
    found = names(find_patients(tmp_path, DataConfig()))
    assert found == {"north": ["sub-00"], "south": ["sub-01", "sub-02"]}


def test_bids_takes_prepared_images_from_one_pipeline_and_tells_a_choice(tmp_path: Path) -> None:
    as_bids(tmp_path)
    for pipeline in ("stripped", "other"):
        bids(tmp_path / "derivatives" / pipeline, "sub-00", patient(0), session="ses-1")
        files = find_patients(tmp_path, DataConfig(), one_site="a")["a"][0]
        if pipeline == "stripped":
            assert {files.path(role).parts[-5] for role in ("t1", "t1gd", "t2", "flair")} == {
                "stripped"
            }
    assert len(files.matches["t1"]) == 2


def test_bids_masks_of_the_brain_or_tissues_are_no_lesions(tmp_path: Path) -> None:
    as_bids(tmp_path)
    masks = tmp_path / "derivatives" / "manual" / "sub-00" / "ses-1" / "anat"
    for ending in ("desc-brain_mask", "label-GM_dseg", "desc-aseg_dseg"):
        write(masks / f"sub-00_ses-1_{ending}.nii.gz", patient(0)["seg"])
    files = find_patients(tmp_path, DataConfig(), one_site="a")["a"][0]
    assert files.path("tumour").name == "sub-00_ses-1_label-lesion_mask.nii.gz"
    files.path("tumour").rename(masks / "sub-00_ses-1_dseg.nii.gz")
    files = find_patients(tmp_path, DataConfig(), one_site="a")["a"][0]
    assert files.path("tumour").name == "sub-00_ses-1_dseg.nii.gz"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"modality": {"0": "FLAIR", "1": "T1w", "2": "PD", "3": "T2w"}}, "one that is t1gd"),
        ({"labels": {"0": "background", "1": "liver"}}, "labels: got 1: liver"),
        ({"labels": {}}, "labels: got none"),
    ],
)
def test_a_dataset_json_that_says_too_little_is_told(
    tmp_path: Path, change: dict[str, object], told: str
) -> None:
    as_decathlon(tmp_path)
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert told in problem_of(tmp_path)


def test_a_dataset_json_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    as_decathlon(tmp_path)
    (tmp_path / "dataset.json").write_text("[1]")
    assert "wanted a JSON object" in problem_of(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    assert "a readable JSON file" in problem_of(tmp_path)


def test_values_in_the_config_outdo_those_of_the_dataset_json(tmp_path: Path) -> None:
    as_decathlon(tmp_path)
    config = DataConfig.model_validate({"tumour_values": {1: "core"}})
    files = find_patients(tmp_path, config, one_site="a")["a"][0]
    assert files.tumour_values == {1: Tissue.CORE}


def test_an_ambiguous_folder_is_told_and_a_named_layout_is_taken(tmp_path: Path) -> None:
    by_patient(tmp_path)
    write(tmp_path / "atlas_t1.nii.gz", patient(9)["t1"])
    told = problem_of(tmp_path)
    assert "could have the layouts patients and files" in told
    assert "--layout patients" in told
    config = DataConfig(layout="patients")
    assert names(find_patients(tmp_path, config, one_site="a")) == {"a": ["p0", "p1", "p2"]}
    as_bids(tmp_path)
    as_decathlon(tmp_path)
    assert "bids and msd" in problem_of(tmp_path)


def test_sites_beside_patients_are_ambiguous(tmp_path: Path) -> None:
    by_patient(tmp_path)
    brats(tmp_path / "north" / "p9", patient(9))
    assert "sites and patients" in problem_of(tmp_path)


@pytest.mark.parametrize(("name", "tool"), [("a/1.dcm", "dcm2niix"), ("b.mgz", "mri_convert")])
def test_other_formats_are_told_what_converts_them(tmp_path: Path, name: str, tool: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert tool in problem_of(tmp_path)


def test_one_site_does_not_silence_what_the_folder_says(tmp_path: Path) -> None:
    by_site(tmp_path)
    assert set(find_patients(tmp_path, DataConfig(), one_site="here")) == {"north", "east"}
    by_patient(tmp_path / "flat")
    assert "patients of no site" in problem_of(tmp_path / "flat", one_site=None)


def test_one_sites_folder_out_of_several_is_read_by_the_same_settings(tmp_path: Path) -> None:
    by_site(tmp_path)
    flat = DataConfig(layout="sites").model_copy(update={"one_site_per_patient": True})
    found = names(find_patients(tmp_path / "sites" / "north", flat))
    assert found == {"p1": ["p1"], "p2": ["p2"]}


def test_layout_sites_goes_without_a_partition() -> None:
    with pytest.raises(ValidationError, match="leave the others out"):
        DataConfig(layout="sites", one_site_per_patient=True)
