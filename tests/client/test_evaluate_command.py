"""A hospital measures a segmenter on its own held-out patients; the figures stay there."""

import json
from pathlib import Path

import pytest
import tomli_w
import torch

from client.test_cli import Command, command
from client.test_release_command import write_patients
from medsynth_client.audit import AuditLog, verify
from medsynth_common.durable import write_bytes
from medsynth_common.labels import Region
from medsynth_common.networks import build_segmenter
from medsynth_common.tensors import pack, state_of, with_prefix
from tiny import CROP, GRID, NETWORKS, NewSite

__all__ = ["command"]  # the fixture


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """What a federation leaves: weights, and the settings above them."""
    torch.manual_seed(1)
    segmenter = state_of(build_segmenter(NETWORKS))
    path = tmp_path / "results" / "weights" / "segmenter.safetensors"
    write_bytes(path, pack(with_prefix("segmenter", segmenter)))
    settings = {"name": "demo", "grid": GRID, "crop": CROP, "networks": NETWORKS.model_dump()}
    (tmp_path / "results" / "config.toml").write_text(tomli_w.dumps(settings))
    return path


def hold_out(folder: Path, line: str) -> None:
    path = folder / "site.toml"
    path.write_text(f"held_out = {line}\n" + path.read_text())


def test_the_scores_stay_and_are_on_record(
    command: Command, new_site: NewSite, weights: Path
) -> None:
    folder = new_site()
    hold_out(folder, '["phantom-100", "phantom-102"]')
    before = {path for path in folder.rglob("*") if path.is_file()}
    ended = command("evaluate", folder, weights)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("2 held-out patients, none of them trained on here")
    assert "whole tumour (2 have it): Dice " in ended.out
    result = folder / "evaluation.json"
    assert result.stat().st_mode & 0o777 == 0o600
    found = json.loads(result.read_text())
    assert set(found["patients"]) == {"phantom-100", "phantom-102"}
    assert set(found["regions"]) == set(Region)
    (event,) = AuditLog(folder / "audit.jsonl").read()
    assert (event.outcome, event.stage, event.project) == ("kept", "evaluate", weights.name)
    assert event.sha256 == found["weights"]
    assert event.receipts == ()
    assert verify(folder / "audit.jsonl") == []
    new = {path.name for path in folder.rglob("*") if path.is_file()} - {p.name for p in before}
    assert new == {"evaluation.json", "audit.jsonl", "audit.jsonl.head", "audit.jsonl.lock"}
    assert command("evaluate", folder, weights, "--format", "json").code == 0


def test_files_of_a_folder_are_measured_in_millimetres(
    command: Command, new_site: NewSite, weights: Path, tmp_path: Path
) -> None:
    data = write_patients(tmp_path / "data", range(300, 302))
    folder = new_site()
    text = (folder / "site.toml").read_text()
    head = text[: text.index("[source]")]
    source = {
        "kind": "folder",
        "root": str(data),
        "data": {},
        "patients": ["patient-300", "patient-301"],
    }
    (folder / "site.toml").write_text(head + tomli_w.dumps({"source": source}))
    hold_out(folder, '["patient-301"]')
    ended = command("evaluate", folder, weights)
    assert ended.code == 0, ended.err
    found = json.loads((folder / "evaluation.json").read_text())
    assert list(found["patients"]) == ["patient-301"]


def test_whoever_holds_nobody_out_is_told_how(
    command: Command, new_site: NewSite, weights: Path
) -> None:
    ended = command("evaluate", new_site(), weights)
    assert ended.code == 4
    assert "held_out: got nobody held out" in ended.err
    assert "set held_out = 0.2" in ended.err


def test_weights_and_settings_must_fit(
    command: Command, new_site: NewSite, weights: Path, tmp_path: Path
) -> None:
    folder = new_site()
    hold_out(folder, '["phantom-100"]')
    settings = weights.parent.parent / "config.toml"
    wider = NETWORKS.model_copy(update={"segmenter_channels": (8, 16)}).model_dump()
    other = tmp_path / "other.toml"
    other.write_text(tomli_w.dumps({"grid": GRID, "crop": CROP, "networks": wider}))
    ended = command("evaluate", folder, weights, "--settings", other)
    assert (ended.code, "weights of another network" in ended.err) == (4, True)
    settings.unlink()
    ended = command("evaluate", folder, weights)
    assert (ended.code, "name it with --settings" in ended.err) == (4, True)
    ended = command("evaluate", folder, tmp_path / "none.safetensors", "--settings", other)
    assert (ended.code, "wanted a segmenter's weights" in ended.err) == (4, True)
    assert not (folder / "evaluation.json").exists()
    assert not (folder / "audit.jsonl").exists()
