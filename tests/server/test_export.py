"""`export`: the model of a run alone, from which another machine makes the same sets."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from medsynth_common.durable import write_bytes
from medsynth_common.errors import BadConfig, BadData, PolicyRefusal
from medsynth_common.tensors import pack
from medsynth_server import cli
from medsynth_server.export import export
from medsynth_server.record import Arm, PrivacyStatement, read_privacy, write_privacy
from medsynth_server.synthesize import PAINTED_WITH, synthesize
from server.test_synthesize import contents, make_run, wish
from tiny_run import public_model

FILES = {
    *("config.toml", "privacy.json", "model-card.md", "SHA256SUMS"),
    *(f"weights/{part}.safetensors" for part in (*PAINTED_WITH, "segmenter")),
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A simulated run, with much that is nobody else's."""
    folder = make_run(tmp_path / "run")
    write_bytes(
        folder / "weights" / "segmenter.safetensors", pack(public_model().part("segmenter"))
    )
    statement = read_privacy(folder / "privacy.json")
    assert statement is not None
    reference = statement.arms[Arm.PRIVATE].model_copy(update={"protected": False})
    arms = {**statement.arms, Arm.REFERENCE: reference}
    write_privacy(folder / "privacy.json", PrivacyStatement(seeded=False, arms=arms))
    for path in ("run.json", "samples.safetensors", "sites/site-1/site.toml", "metrics.jsonl"):
        write_bytes(folder / path, b"of the run alone")
    return folder


def test_an_export_makes_the_same_set_without_the_run(run: Path, tmp_path: Path) -> None:
    synthesize(run, tmp_path / "here", wish(count=2))
    export(run, tmp_path / "model", licence="CC0-1.0")
    shutil.rmtree(run)
    synthesize(tmp_path / "model", tmp_path / "there", wish(count=2))
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_an_export_holds_the_model_and_nothing_else(run: Path, tmp_path: Path) -> None:
    exported = export(run, tmp_path / "model", licence="CC0-1.0")
    assert contents(tmp_path / "model").keys() == FILES
    assert {*exported.files, "SHA256SUMS"} == FILES
    settings = tomllib.loads((tmp_path / "model" / "config.toml").read_text())
    assert settings.keys() == {"name", "grid", "crop", "preset", "networks"}
    statement = read_privacy(tmp_path / "model" / "privacy.json")
    assert statement is not None
    assert [*statement.arms] == [Arm.PRIVATE]
    checked = ["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(checked, cwd=tmp_path / "model", check=False).returncode == 0


def test_the_card_says_what_the_training_may_tell(run: Path, tmp_path: Path) -> None:
    digest = export(run, tmp_path / "model", licence="CC-BY-4.0").digest
    card = (tmp_path / "model" / "model-card.md").read_text()
    for words in ("epsilon 7.50 at delta 0.001, unit: patient", "CC-BY-4.0", digest, "site-2"):
        assert words in card
    assert "## Not intended" in card
    assert "## Known failure modes" in card
    unprotected = make_run(tmp_path / "open", protected=False)
    export(unprotected, tmp_path / "other", licence="none")
    assert (
        "trained without differential privacy" in (tmp_path / "other" / "model-card.md").read_text()
    )
    assert not (tmp_path / "other" / "weights" / "segmenter.safetensors").exists()


def test_what_must_not_leave_is_not_exported(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").touch()
    with pytest.raises(BadConfig, match="wanted a new folder"):
        export(run, tmp_path / "model", licence="none")
    (run / "withheld").mkdir()
    with pytest.raises(PolicyRefusal, match="failed its release check"):
        export(run, tmp_path / "withheld", licence="none")
    with pytest.raises(BadData, match="wanted the folder of a finished run"):
        export(tmp_path / "model", tmp_path / "nothing", licence="none")
    assert not (tmp_path / "withheld").exists()


def test_the_command_tells_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = ["medsynth-server", "export", str(run), "--out", str(tmp_path / "model")]
    for extra in ([], ["--format", "json"]):
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        monkeypatch.setattr(sys, "argv", [*typed, *extra])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        said = capsys.readouterr().out
    told = json.loads(said)
    assert {*told["files"], "SHA256SUMS"} == FILES
    assert told["privacy"]["epsilon"] == 7.5
