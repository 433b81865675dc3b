"""`medsynth-client check`: a data folder or a site's folder, told on stdout, with its exit code."""

import json
import sys
from pathlib import Path

import pytest
import tomli_w

from medsynth_client import cli
from phantom_patients import brats, patient


class Typed:
    """What a typed command ended with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        typed = ["medsynth-client", "check", *map(str, arguments)]
        self.monkeypatch.setattr(sys, "argv", typed)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = self.capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    return Typed(monkeypatch, capsys)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A hospital's own folder of two good patients."""
    for seed, name in enumerate(("p1", "p2")):
        brats(tmp_path / "mri" / name, patient(seed))
    return tmp_path / "mri"


def test_a_good_folder_ends_well(check: Typed, data: Path) -> None:
    code, out, _ = check(data)
    assert code == 0
    assert "note: patient: axes stored as LPS, turned to RAS\n    2 patients: mri/p1" in out
    assert out.endswith("2 patients at 1 site: 0 errors, 0 warnings\n")


def test_errors_are_told_once_for_all_patients_that_have_them(check: Typed, data: Path) -> None:
    for name in ("p1", "p2"):
        (data / name / f"{name}_t2.nii.gz").unlink()
    code, out, _ = check(data)
    assert code == 4
    assert out.count("error: t2: got no file, wanted one that matches *_t2.nii.gz") == 1
    assert "    2 patients: mri/p1, mri/p2\n" in out
    assert "2 errors" in out


def test_warnings_end_well(check: Typed, data: Path) -> None:
    images = patient(0)
    images["t2"] = images["t2"].clip(max=300)
    brats(data / "p1", images)
    code, out, _ = check(data)
    assert code == 0
    assert "warning: mri/p1: t2: got " in out
    assert "1 warning\n" in out


def test_json_holds_every_finding(check: Typed, data: Path) -> None:
    (data / "p2" / "p2_seg.nii.gz").unlink()
    code, out, _ = check(data, "--format", "json")
    told = json.loads(out)
    assert code == 4
    assert told["sites"] == {
        "mri": [{"patient": "p1", "sessions": []}, {"patient": "p2", "sessions": []}]
    }
    assert (told["errors"], told["warnings"]) == (1, 0)
    (error,) = [one for one in told["findings"] if one["level"] == "error"]
    assert (error["kind"], error["patient"], error["role"]) == ("missing-file", "mri/p2", "tumour")
    assert error["mendable"] is False


def test_a_mended_copy_is_written_beside(check: Typed, data: Path, tmp_path: Path) -> None:
    images = patient(0)
    images["t1"][12, 12, 12] = float("nan")
    brats(data / "p1", images)
    (data / "p2" / "p2_seg.nii.gz").unlink()
    code, out, _ = check(data, "--fix", tmp_path / "out")
    assert code == 4
    assert "mended: mri/p1: t1: 1 NaN or infinite voxels, now finite voxels" in out
    assert "left out: mri/p2: no file" in out
    assert out.endswith("out: 1 patient at 1 site: 0 errors, 0 warnings\n")
    assert check(tmp_path / "out")[0] == 0
    code, out, _ = check(data, "--fix", tmp_path / "again", "--format", "json")
    assert set(json.loads(out)["prepared"]["left_out"]) == {"mri/p2"}


def site_file(folder: Path, source: dict[str, object]) -> Path:
    values = {
        "name": "north",
        "declared_patients": 1,
        "source": source,
        "policy": {
            "stages": ["moments"],
            "minimum_patients": 1,
            "minimum_noise_multiplier": 0.1,
            "epsilon_cap": 8.0,
            "delta": 1e-3,
        },
    }
    folder.mkdir()
    (folder / "site.toml").write_text(tomli_w.dumps(values))
    return folder


def test_a_sites_folder_is_checked_as_its_file_says(
    check: Typed, data: Path, tmp_path: Path
) -> None:
    (data / "p2" / "p2_seg.nii.gz").unlink()
    source: dict[str, object] = {
        "kind": "folder",
        "root": str(data.parent / "all"),
        "data": {},
        "site": "mri",
        "patients": ["p1"],
    }
    data.parent.joinpath("all").mkdir()
    data.rename(data.parent / "all" / "mri")
    site = site_file(tmp_path / "north", source)
    code, out, _ = check(site)
    assert code == 0
    assert "1 patient at 1 site" in out  # p2 is not one it trains on
    code, _, err = check(site, "--layout", "bids")
    assert code == 4
    assert "--layout: got bids, wanted nothing" in err


def test_phantoms_are_nothing_to_check(check: Typed, tmp_path: Path) -> None:
    from medsynth_common.phantom import SITE_SCANNERS

    scanner = SITE_SCANNERS[0].model_dump(mode="json")
    source = {"kind": "phantom", "scanner": scanner, "patients": 1, "seed": 1}
    code, _, err = check(site_file(tmp_path / "north", source))
    assert code == 4
    assert "got phantoms, wanted patients in a folder" in err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[data]\nlayoot = 'bids'\n", "layoot"),
        ("data = 3\n", "wanted a table [data]"),
        ("[data\n", "a readable TOML file"),
        (None, "a readable TOML file"),
    ],
)
def test_settings_that_cannot_be_used_are_told(
    check: Typed, data: Path, tmp_path: Path, content: str | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "c.toml").write_text(content)
    code, _, err = check(data, "--config", tmp_path / "c.toml")
    assert code == 4
    assert told in err


def test_the_public_sets_are_told_as_they_are(check: Typed, real_data: Path) -> None:
    examples = Path(__file__).resolve().parents[2] / "deploy" / "examples"
    config = examples / "tcga_lgg.toml"
    code, out, _ = check(real_data / "tcga_lgg", "--config", config)
    assert (code, out.count("error:"), out.count("warning:")) == (0, 0, 0)
    # One contrast and an anatomy map: not what medsynth trains on, and nothing else is wrong.
    code, out, _ = check(real_data / "ixi_t1", "--format", "json")
    told = json.loads(out)
    assert code == 4
    kinds = {(one["kind"], one["role"]) for one in told["findings"] if one["level"] != "note"}
    assert kinds == {
        ("missing-file", "t1gd"),
        ("missing-file", "t2"),
        ("missing-file", "flair"),
        ("unknown-label", "tumour"),
    }
    assert told["errors"] == 4 * 30
