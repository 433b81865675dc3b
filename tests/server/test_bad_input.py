"""Bad input as a user gives it: told at once, exit 4, before anything is made or trained."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medsynth_server.simulate
import medsynth_server.summary
from medsynth_common.errors import BadConfig
from medsynth_server import cli
from medsynth_server.arm import choose_device
from medsynth_server.config import RunConfig
from small_patients import AFFINE, small_image, small_labels, spoil, write_patient
from tiny_run import write_settings


class Typed:
    """medsynth-server, as typed in a shell; `out` is where it was told to put its run."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.out = folder / "out"
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> tuple[int, list[str]]:
        """Run a command; gives its exit code and the lines on standard error."""
        self._monkeypatch.setattr("sys.argv", ["medsynth-server", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        code = end.value.code
        assert code is None or isinstance(code, int)
        return code or 0, self._capsys.readouterr().err.splitlines()

    def simulate(self, *arguments: object) -> list[str]:
        """Simulate with something bad; gives the lines, when the run ended as it should."""
        code, lines = self("simulate", *arguments, "--out", self.out)
        assert code == 4
        assert not self.out.exists()
        return lines


@pytest.fixture
def typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    return Typed(tmp_path, monkeypatch, capsys)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two good patients at one site."""
    for seed, name in enumerate(("p1", "p2")):
        write_patient(tmp_path / "data" / "site-a" / name, seed=seed)
    return tmp_path / "data"


def _lose_t2(patient: Path) -> None:
    (patient / f"{patient.name}_t2.nii.gz").unlink()


def _shift_flair(patient: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 10
    spoil(patient, "_flair", small_image(small_labels(), seed=77)[3], moved)


def _shrink_t1(patient: Path) -> None:
    spoil(patient, "_t1", small_image(small_labels((24, 28, 18)))[0])


def _empty_label(patient: Path) -> None:
    spoil(patient, "_seg", np.zeros_like(small_labels()))


def _unknown_value(patient: Path) -> None:
    spoil(patient, "_seg", np.where(small_labels() > 5, np.uint8(9), np.uint8(0)))


def _not_numbers(patient: Path) -> None:
    image = small_image(small_labels())[1]
    image[12, 14, 10] = np.nan
    spoil(patient, "_t1ce", image)


def _cut(patient: Path) -> None:
    path = patient / f"{patient.name}_t1.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])


def _no_volume(patient: Path) -> None:
    (patient / f"{patient.name}_t2.nii.gz").write_bytes(gzip.compress(b"not a volume"))


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing contrast": (_lose_t2, "site-a/p1: t2: got no file, wanted one that matches"),
    "another place": (_shift_flair, "site-a/p1: flair: got an affine that puts a corner 10 mm"),
    "another size": (_shrink_t1, "site-a/p1: t1: got 24x28x18 voxels, wanted the grid of"),
    "an empty label": (_empty_label, "site-a/p1: tumour: got an empty map, wanted labelled"),
    "an unknown value": (_unknown_value, "site-a/p1: tumour: got label value 9, wanted 0, 1, 2"),
    "NaN": (_not_numbers, "site-a/p1: t1gd: got 1 NaN or infinite voxels, wanted finite"),
    "a cut file": (_cut, "site-a/p1: t1: got p1_t1.nii.gz: a gzip stream that is cut short"),
    "no volume": (_no_volume, "site-a/p1: t2: got p1_t2.nii.gz: not a NIfTI file, wanted"),
}


@pytest.mark.parametrize("what", sorted(SPOILT))
def test_one_bad_volume_is_one_line(typed: Typed, data: Path, what: str) -> None:
    spoil_it, wanted = SPOILT[what]
    spoil_it(data / "site-a" / "p1")
    (line,) = typed.simulate("--data", data)
    assert line.startswith(f"error: {wanted}")


def test_all_problems_of_a_data_set_are_told_at_once(typed: Typed, tmp_path: Path) -> None:
    for seed, (name, (spoil_it, _)) in enumerate(SPOILT.items()):
        patient = tmp_path / "data" / "site-a" / name.replace(" ", "-")
        write_patient(patient, seed=seed)
        spoil_it(patient)
    (tmp_path / "data" / "site-b").mkdir()
    first, *lines = typed.simulate("--data", tmp_path / "data")
    assert first == f"error: {len(SPOILT) + 1} problems"
    for name, (_, wanted) in SPOILT.items():
        sign = wanted.replace("p1", name.replace(" ", "-"))
        assert [line for line in lines if line.startswith(f"  - {sign}")], sign
    assert [
        line for line in lines if line == "  - site site-b: got no patient, wanted at least one"
    ]
    assert len(lines) == len(SPOILT) + 1


def test_a_data_folder_is_only_read(typed: Typed, data: Path) -> None:
    _lose_t2(data / "site-a" / "p1")
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    typed.simulate("--data", data)
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


def test_no_data_folder(typed: Typed, tmp_path: Path) -> None:
    (line,) = typed.simulate("--data", tmp_path / "none")
    assert "got no such folder, wanted a folder of patients" in line


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ("hospital,patient\na,p1\n", "columns hospital, patient, wanted a column site"),
        ("site,patient\na,p1\na,p9\n", "a/p9: got no such folder, wanted a folder of that name"),
        ("site,patient\na,p1\nb,p1\nb,p2\n", "patient p1: got sites a, b, wanted one site"),
        ("site,patient\na,../p1\n", "row 2: got 'a,../p1', wanted site,patient"),
        ("site,patient\n", "got no patient"),
    ],
)
def test_a_wrong_csv(typed: Typed, tmp_path: Path, rows: str, wanted: str) -> None:
    for seed, name in enumerate(("p1", "p2")):
        write_patient(tmp_path / "data" / name, seed=seed)
    (tmp_path / "data" / "partition.csv").write_text(rows)
    settings = write_settings(tmp_path, '\n[data]\nsites = "partition.csv"\n')
    (line,) = typed.simulate(settings, "--data", tmp_path / "data")
    assert wanted in line


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        ("[privacy]\nepsilon = 0", "privacy.epsilon: got 0, wanted greater than 0"),
        ("[privacy]\nepsilno = 1", "unknown key 'epsilno', wanted a known key, such as 'epsilon'"),
        ("[data]\ntumor = 'x'", "unknown key 'tumor', wanted a known key, such as 'tumour'"),
        ("[data]\ntumour = '../x'", "wanted a pattern inside the patient's folder, got '../x'"),
        ("[oops", "wanted valid TOML"),
    ],
)
def test_wrong_settings(typed: Typed, tmp_path: Path, extra: str, wanted: str) -> None:
    (line,) = typed.simulate(write_settings(tmp_path, f"\n{extra}\n"))
    assert wanted in line


def test_weights_for_tissues_that_are_not_there_are_told_at_once(
    typed: Typed, data: Path, tmp_path: Path
) -> None:
    settings = write_settings(tmp_path, '\n[data]\ntissues = "/nowhere/x.safetensors"\n')
    (line,) = typed.simulate(settings, "--data", data)
    assert "/nowhere/x.safetensors: got no such file, wanted weights" in line


def test_what_is_no_device_is_told() -> None:
    with pytest.raises(BadConfig, match="device: got abacus, wanted auto, cpu, cuda or cuda:N"):
        choose_device("abacus")


def test_a_cap_below_epsilon_ends_no_run_half_way(typed: Typed, tmp_path: Path) -> None:
    settings = write_settings(tmp_path, "[privacy]\nepsilon = 8.0\ndelta = 1e-3\ncap = 1.0\n")
    (line,) = typed.simulate(settings)
    assert "privacy.cap: got 1, wanted at least privacy.epsilon, 8" in line


def test_a_finished_run_takes_no_other_folder_and_no_other_patients(
    typed: Typed, tmp_path: Path
) -> None:
    for flag in ("--out", "--data"):
        code, (line,) = typed("evaluate", tmp_path, flag, tmp_path / "x")
        assert code == 4
        assert f"{flag}: got {tmp_path / 'x'}, wanted nothing: a finished run" in line


def test_a_folder_without_a_run_gets_no_report(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("somebody's")
    code, (line,) = typed("report", tmp_path)
    assert code == 4
    assert "which holds none, wanted the folder of a run" in line
    assert (tmp_path / "report.html").read_text() == "somebody's"


def test_many_wrong_settings_are_a_list(typed: Typed, tmp_path: Path) -> None:
    settings = write_settings(tmp_path, "[privacy]\nepsilon = -1\ndelta = 2\n")
    first, *lines = typed.simulate(settings, "--sites", 0)
    assert first == "error: 3 problems"
    assert len(lines) == 3


@pytest.mark.parametrize(
    "flags",
    [("--epsilon", "0"), ("--epsilon", "-3"), ("--epsilon", "nan"), ("--sites", "0")],
)
def test_flags_are_checked_as_settings_are(typed: Typed, flags: tuple[str, str]) -> None:
    (line,) = typed.simulate(*flags)
    assert line.startswith("error: settings: ")


@pytest.mark.parametrize("arguments", [("--sites", "many"), ("--nonsense",), ("a", "b")])
def test_a_line_that_cannot_be_read_is_bad_input_too(
    typed: Typed, arguments: tuple[str, ...]
) -> None:
    assert any("Error" in line for line in typed.simulate(*arguments))


def test_delta_above_a_patients_share(typed: Typed, tmp_path: Path) -> None:
    settings = write_settings(tmp_path, "\n[privacy]\ndelta = 0.4\n")
    (line,) = typed.simulate(settings)
    assert line == "error: privacy.delta: got 0.4, wanted below 1/3, every site's patients"


def test_a_budget_that_no_noise_can_keep(typed: Typed, tmp_path: Path) -> None:
    settings = write_settings(tmp_path, "\n[privacy]\nepsilon = 1e-9\ndelta = 1e-9\n")
    (line,) = typed.simulate(settings)
    assert line.startswith("error: epsilon: got ")


def test_a_gpu_that_is_not_there(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    settings = tmp_path / "f.toml"
    settings.write_text('device = "cuda:7"\n')
    assert typed.simulate(settings) == ["error: device: got cuda:7, wanted one of the 1 GPUs here"]


def test_a_site_whose_name_no_record_can_hold(typed: Typed, tmp_path: Path) -> None:
    write_patient(tmp_path / "data" / "St. Mary" / "p")
    (line,) = typed.simulate("--data", tmp_path / "data")
    assert line.startswith("error: site 'St. Mary': got a name that cannot be written")


def test_an_output_folder_that_holds_something_else(typed: Typed) -> None:
    typed.out.mkdir()
    (typed.out / "thesis.tex").write_text("all of it")
    code, (line,) = typed("simulate", "--out", typed.out)
    assert code == 4
    assert "a folder that holds 'thesis.tex', wanted an empty or new folder" in line
    assert [path.name for path in typed.out.iterdir()] == ["thesis.tex"]


def test_an_output_folder_that_cannot_be_made(typed: Typed) -> None:
    typed.out.write_text("a file")
    code, (line,) = typed("simulate", "--out", typed.out / "deeper")
    assert code == 4
    assert line.startswith(f"error: {typed.out}")
    assert "Not a directory" in line


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The settings that commands came to; nothing is run."""
    found: list[RunConfig] = []

    def simulate(config: RunConfig, out: Path, **_: object) -> Any:
        found.append(config)
        return medsynth_server.simulate.Finished(folder=out, report=out)  # type: ignore[arg-type]

    monkeypatch.setattr(medsynth_server.simulate, "simulate", simulate)
    monkeypatch.setattr(medsynth_server.summary, "summarise", lambda *given, **more: "done")
    return found


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_defaults(
    typed: Typed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chosen: list[RunConfig],
) -> None:
    settings = tmp_path / "f.toml"
    settings.write_text(
        "workers = 3\n[federation]\nsites = 4\npatients = 5\n[segment]\nrounds = 6\n"
    )
    monkeypatch.setenv("MEDSYNTH_SITES", "7")
    monkeypatch.setenv("MEDSYNTH_PATIENTS", "8")
    assert typed("simulate", settings, "--sites", 9) == (0, [])
    (config,) = chosen
    assert config.federation.sites == 9  # flag over environment over file
    assert config.federation.patients == 8  # environment over file
    assert config.segment.rounds == 6  # file over default
    assert config.federation.test_patients == RunConfig().federation.test_patients


@pytest.mark.parametrize(
    ("flag", "variable", "value"),
    [
        ("--sites", "MEDSYNTH_SITES", 2),
        ("--patients", "MEDSYNTH_PATIENTS", 3),
        ("--rounds", "MEDSYNTH_ROUNDS", 4),
        ("--epsilon", "MEDSYNTH_EPSILON", 2.5),
        ("--seed", "MEDSYNTH_SEED", 6),
        ("--workers", "MEDSYNTH_WORKERS", 7),
    ],
)
def test_every_flag_has_its_environment_variable(
    typed: Typed,
    monkeypatch: pytest.MonkeyPatch,
    chosen: list[RunConfig],
    flag: str,
    variable: str,
    value: float,
) -> None:
    assert typed("simulate", flag, value)[0] == 0
    monkeypatch.setenv(variable, str(value))
    assert typed("simulate")[0] == 0
    by_flag, by_environment = chosen
    assert by_flag == by_environment != RunConfig()


def test_the_version_and_the_help_are_told(
    typed: Typed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed("--version") == (0, [])
    assert typed("simulate", "--help")[0] == 0
