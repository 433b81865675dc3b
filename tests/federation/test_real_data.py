"""Whole runs on public volumes of patients; where they are absent, these tests are skipped."""

import json
from pathlib import Path

import pytest
from benchmarks.crash_matrix import uncharged

from federation.test_finished_run import command
from medsynth_server.record import Arm, IntensityEvent, NoteEvent, read_events, read_privacy
from medsynth_server.report.folder import RunFolder
from tiny_run import write_settings

EXAMPLES = Path(__file__).resolve().parents[2] / "deploy" / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sites"), [("ms_lesions", 3), ("tcga_lgg", 2)])
def test_a_run_on_real_patients_goes_through_to_a_report_worth_reading(
    real_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    sites: int,
) -> None:
    if not (real_data / name).is_dir():
        pytest.skip(f"{name} is absent from {real_data}")
    settings = write_settings(tmp_path, (EXAMPLES / f"{name}.toml").read_text())
    run = tmp_path / "run"
    given = ("simulate", settings, "--data", real_data / name, "--out", run)
    assert command(monkeypatch, *given, "--rounds", 1, "--format", "json") == 0
    told = json.loads(capsys.readouterr().out)

    # Each site holds one patient, so nobody is held out: the run says so, and shows what it can.
    (note,) = told["notes"]
    assert "training patients" in note
    assert told["evaluations"] == []
    samples = RunFolder.read(run).samples
    assert samples is not None
    assert (samples.source, samples.held_out) == ("real", False)
    assert len(samples.sites) == sites
    shown = read_events(run / "metrics.jsonl")
    assert NoteEvent(text=note) in shown
    assert {e.site for e in shown if isinstance(e, IntensityEvent)} <= set(samples.sites)
    assert any(isinstance(event, IntensityEvent) for event in shown)
    page = (run / "report.html").read_text()
    assert "These patients were trained on" in page
    assert "No patient was held out" in page

    statement = read_privacy(run / "privacy.json")
    assert statement is not None
    for site in statement.arms[Arm.PRIVATE].sites.values():
        assert site.patients_declared == 1
        assert site.epsilon is not None
        assert site.epsilon <= 8
    for folder in (run / "sites").iterdir():
        assert uncharged(folder) == []
