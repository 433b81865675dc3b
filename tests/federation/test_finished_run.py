"""What a finished run holds, says and lets be done with it; as a user sees it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchmarks.crash_matrix import WEIGHTS, Undisturbed, uncharged

from medsynth_common.labels import Region
from medsynth_common.plan import Stage
from medsynth_common.tensors import unpack
from medsynth_server import cli
from medsynth_server.record import (
    BEFORE_TRAINING,
    FEDERATED,
    SYNTHETIC_ONLY,
    Arm,
    EvaluationEvent,
    IntensityEvent,
    RoundEvent,
    read_events,
    read_privacy,
)
from medsynth_server.report.folder import RunFolder as RunAsReported
from tiny_run import write_settings


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run medsynth-server in this process; gives its exit code."""
    monkeypatch.setattr("sys.argv", ["medsynth-server", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def _contents(folder: Path, *, but: Sequence[str] = ()) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in but
    }


@pytest.fixture
def run(undisturbed: Undisturbed, tmp_path: Path) -> Path:
    """A copy of the finished run, to do things with."""
    return Path(shutil.copytree(undisturbed.folder, tmp_path / "run"))


def test_the_folder_holds_what_it_promises(undisturbed: Undisturbed) -> None:
    folder = undisturbed.folder
    for name in (
        "config.toml",
        "report.html",
        "metrics.jsonl",
        "privacy.json",
        "release-check.json",
    ):
        assert (folder / name).stat().st_size, name
    assert {path.name for path in (folder / "weights").iterdir()} == set(WEIGHTS)
    assert not (folder / "unchecked").exists()
    about = json.loads((folder / "synthetic" / "dataset.json").read_text())
    assert about["release_check"]["verdict"] == "not decidable"  # two patients are held out
    for site in ("site-1", "site-2"):
        assert uncharged(folder / "sites" / site) == []


def test_the_record_tells_every_round_and_every_segmenter(undisturbed: Undisturbed) -> None:
    events = read_events(undisturbed.folder / "metrics.jsonl")
    rounds = [(e.stage, e.round) for e in events if isinstance(e, RoundEvent)]
    assert [stage for stage, _ in rounds] == [
        Stage.PRETRAIN,
        *[Stage.MOMENTS] * 2,
        *[Stage.SEGMENT] * 3,
        *[Stage.ADVERSARIAL] * 2,
    ]
    told = {(e.model, e.region) for e in events if isinstance(e, EvaluationEvent)}
    models = (BEFORE_TRAINING, FEDERATED, SYNTHETIC_ONLY)
    assert told == {(model, region) for model in models for region in Region}
    assert {e.site for e in events if isinstance(e, IntensityEvent)} == {"site-1", "site-2"}


def test_the_privacy_statement_is_the_sites_own(undisturbed: Undisturbed) -> None:
    statement = read_privacy(undisturbed.folder / "privacy.json")
    assert statement is not None
    assert statement.seeded
    sites = statement.arms[Arm.PRIVATE].sites
    assert statement.arms[Arm.PRIVATE].protected
    for site in sites.values():
        assert site.epsilon is not None
        assert 0.95 * 8 < site.epsilon <= 8
        assert {m.name for m in site.mechanisms} == {"level", "spread", "segmenter", "critic"}
        assert (site.patients_declared, site.cap, site.over) == (3, 10.0, False)


def test_final_weights_are_whole_networks_and_every_sites_style(undisturbed: Undisturbed) -> None:
    styles = unpack((undisturbed.folder / "weights" / "styles.safetensors").read_bytes())
    assert {name.split(".")[1] for name in styles} == {"site-1", "site-2"}
    for part in ("generator", "segmenter"):
        weights = unpack((undisturbed.folder / "weights" / f"{part}.safetensors").read_bytes())
        assert weights
        assert all(name.startswith(f"{part}.") for name in weights)


def test_pictured_patients_were_held_out(undisturbed: Undisturbed) -> None:
    samples = RunAsReported.read(undisturbed.folder).samples
    assert samples is not None
    assert (samples.source, samples.held_out) == ("phantom", True)
    assert samples.sites == ("site-1", "site-2")


def test_the_same_command_again_trains_nothing_and_says_the_same(
    run: Path, settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changing = ("report.html", "ledger.db-wal", "ledger.db-shm")  # SQLite's own come and go
    before = _contents(run, but=changing)
    assert command(monkeypatch, "simulate", settings, "--out", run, "--format", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["report"] == str(run / "report.html")
    assert len(told["evaluations"]) == 9
    assert told["synthetic"] == str(run / "synthetic")
    assert told["release_check"]["verdict"] == "not decidable"
    assert set(told["privacy"]["arms"]["private"]["sites"]) == {"site-1", "site-2"}
    assert _contents(run, but=changing) == before
    # In plain words, with delta, unit and mechanisms beside every epsilon.
    from medsynth_server.run_folder import RunFolder
    from medsynth_server.summary import summarise

    text = summarise(RunFolder(run), run / "report.html", as_json=False)
    assert "at delta 0.001, unit: patient (level, spread, segmenter, critic)" in text
    assert "before training (private)" in text
    assert f"release check: not decidable; the synthetic set is in {run / 'synthetic'}" in text
    assert text.endswith(f"report: {run / 'report.html'}")


def test_the_report_can_be_written_anew(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "report.html").unlink()
    assert command(monkeypatch, "report", run) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert "rehearsal" in (run / "report.html").read_text()
    assert command(monkeypatch, "report", run / "nowhere") == 4
    assert "wanted an existing folder" in capsys.readouterr().err


def test_a_withheld_set_is_released_by_the_same_command_with_a_reason(
    run: Path, settings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "synthetic").rename(run / "withheld")
    path = run / "release-check.json"
    path.write_text(path.read_text().replace('"not decidable"', '"failed"', 1))
    assert command(monkeypatch, "simulate", settings, "--out", run) == 0
    told = capsys.readouterr().out.replace("\n", " ")
    assert f"failed; the synthetic set is in {run / 'withheld'}" in told
    assert '--release-anyway "REASON"' in told
    assert not (run / "synthetic").exists()
    given = ("simulate", settings, "--out", run, "--release-anyway", "phantoms only")
    assert command(monkeypatch, *given) == 0
    assert "released it: phantoms only" in capsys.readouterr().out
    assert (run / "synthetic").exists()
    assert not (run / "withheld").exists()
    assert "phantoms only" in (run / "report.html").read_text()
    assert command(monkeypatch, *given[:-1], "x" * 201) == 4


@pytest.mark.parametrize("flag", [("--seed", 2), ("--epsilon", 1), ("--sites", 3)])
def test_a_folder_that_holds_another_run_is_left_alone(
    run: Path,
    settings: Path,
    flag: tuple[str, int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = _contents(run)
    assert command(monkeypatch, "simulate", settings, "--out", run, *flag) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {run}: got a run with other settings (")
    assert _contents(run) == before


def test_a_run_of_phantoms_does_not_go_on_with_real_patients(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from small_patients import write_patient

    write_patient(tmp_path / "data" / "site-1" / "p", seed=1)
    before = _contents(run)
    settings = write_settings(tmp_path)
    assert (
        command(monkeypatch, "simulate", settings, "--out", run, "--data", tmp_path / "data") == 4
    )
    assert "a run that began with site-2, wanted the sites of this command: site-1" in (
        capsys.readouterr().err
    )
    assert _contents(run) == before
