"""A hospital checks a set against its own patients; the result and the decision stay there."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from client.test_cli import Command, command
from medsynth_client.audit import AuditEvent, AuditLog, verify
from medsynth_common.dataset.source import PhantomSource, load_patients
from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom import SITE_SCANNERS, make_phantom
from medsynth_common.release_check.result import read_release_check
from medsynth_common.synthetic_set import write_synthetic
from medsynth_common.volumes import write_volume
from tiny import FIRST_SEED, GRID, NewSite

__all__ = ["command"]  # the fixture

SUFFIXES = {"_t1": 0, "_t1ce": 1, "_t2": 2, "_flair": 3}


def phantom(seed: int) -> Volume:
    made = make_phantom(seed, GRID, SITE_SCANNERS[0], tumours=1)
    return Volume(image=torch.from_numpy(made.image), labels=torch.from_numpy(made.labels))


def write_set(folder: Path, volumes: list[Volume]) -> Path:
    names = [f"synthetic-{index:03d}" for index in range(len(volumes))]
    for name, volume in zip(names, volumes, strict=True):
        write_synthetic(folder, name, volume)
    table = {"training": [{"name": name} for name in names]}
    (folder / "dataset.json").write_text(json.dumps(table))
    return folder


def write_patients(folder: Path, seeds: range) -> Path:
    """Patients as a hospital has them: BraTS files, a folder each."""
    for seed in seeds:
        volume, name = phantom(seed), f"patient-{seed}"
        tumour = volume.labels.numpy().astype(np.uint8)
        parts: dict[str, Any] = {s: volume.image[c].numpy() for s, c in SUFFIXES.items()}
        parts["_seg"] = np.select([tumour == 6, tumour == 7, tumour == 8], [1, 2, 4], 0)
        for suffix, data in parts.items():
            ready = data.astype(np.uint8) if suffix == "_seg" else data
            path = folder / name / f"{name}{suffix}.nii.gz"
            write_volume(path, ready, np.diag([7.5, 7.5, 7.5, 1]), description="test")
    return folder


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    return write_set(tmp_path / "incoming", [phantom(seed) for seed in (900, 901)])


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Strangers, and a mirrored patient of the site."""
    patient = make_phantom(FIRST_SEED, GRID, SITE_SCANNERS[0])
    mirrored = Volume(
        image=torch.from_numpy(patient.image[:, ::-1].copy()),
        labels=torch.from_numpy(patient.labels[::-1].copy()),
    )
    return write_set(tmp_path / "incoming", [phantom(900), mirrored])


def events(folder: Path) -> list[AuditEvent]:
    return AuditLog(folder / "audit.jsonl").read()


def test_a_set_with_a_patients_copy_is_refused_and_recorded(
    command: Command, new_site: NewSite, copied: Path
) -> None:
    folder = new_site()
    ended = command("release-check", folder, copied)
    assert ended.code == 5
    assert ended.out.startswith("failed: 2 synthetic volumes, 3 training and 0 held-out patients")
    assert "1 of 2 synthetic images are copies of a training patient's." in ended.out
    check = read_release_check(folder / "release-check.json")
    assert check is not None
    assert check.nearness[0].copies == ("synthetic-001",)
    (event,) = events(folder)
    assert (event.outcome, event.error, event.stage) == ("checked", "failed", "release-check")
    assert (event.project, len(event.sha256), event.receipts) == ("incoming", 64, ())
    assert verify(folder / "audit.jsonl") == []


def test_a_person_may_let_it_out_and_is_on_record(
    command: Command, new_site: NewSite, copied: Path
) -> None:
    folder = new_site()
    ended = command("release-check", folder, copied, "--override", "a phantom, no patient")
    assert ended.code == 0
    assert ended.out.startswith("failed: ")
    check = read_release_check(folder / "release-check.json")
    assert check is not None
    assert check.override is not None
    checked, overridden = events(folder)
    assert (checked.outcome, checked.note) == ("checked", "")
    assert overridden.outcome == "overridden"
    assert overridden.note == f"{check.override.who}: a phantom, no patient"
    assert overridden.sha256 == checked.sha256
    assert verify(folder / "audit.jsonl") == []
    shown = command("audit", "show", folder).out.splitlines()
    assert shown[1].endswith(f"overridden incoming release-check round 0: {overridden.note}")


def test_what_cannot_be_decided_does_not_leave(
    command: Command, new_site: NewSite, clean: Path
) -> None:
    folder = new_site()
    ended = command("release-check", folder, clean, "--format", "json")
    assert ended.code == 5
    assert json.loads(ended.out)["verdict"] == "not decidable"
    assert [event.error for event in events(folder)] == ["not decidable"]
    assert command("release-check", folder, clean, "--override", "known risk").code == 0


def test_the_same_set_gives_the_same_result(
    command: Command, new_site: NewSite, clean: Path
) -> None:
    folder = new_site()
    results = []
    for _ in range(2):
        command("release-check", folder, clean)
        results.append((folder / "release-check.json").read_bytes())
    assert results[0] == results[1]
    one, same = events(folder)
    assert (one.sha256, one.plan_digest) == (same.sha256, same.plan_digest)


def test_with_held_out_patients_a_clean_set_passes(
    command: Command, new_site: NewSite, tmp_path: Path
) -> None:
    """Ten train, ten of the same folder do not: site.toml says which."""
    root = tmp_path / "data" / "site-a"
    write_patients(root, range(20))
    folder = new_site()
    source = {
        "kind": "folder",
        "root": str(root.parent),
        "data": {},
        "site": "site-a",
        "patients": [f"patient-{seed}" for seed in range(10)],
    }
    values = {
        "name": "site-a",
        "declared_patients": 10,
        "policy": {"epsilon_cap": 8.0, "delta": 1e-5, "stages": [], "minimum_patients": 1},
        "source": source,
    }
    (folder / "site.toml").write_text(tomli_w.dumps(values))
    # Of the folder's own making, so that anatomy comes from clustering as the patients' does.
    incoming = write_patients(tmp_path / "others" / "x", range(100, 106))
    ready = load_patients(
        PhantomSource(scanner=SITE_SCANNERS[0], patients=6, seed=500), GRID, cache=tmp_path / "c"
    )
    synthetic = write_set(tmp_path / "incoming", list(ready))
    ended = command("release-check", folder, synthetic)
    assert "10 training and 10 held-out patients" in ended.out
    assert ended.code == 0, ended.out
    assert [event.error for event in events(folder)] == [""]
    # Others can be given; a damaged one left lying in the folder is no control.
    given = command("release-check", folder, synthetic, "--held-out", incoming)
    assert "10 training and 6 held-out patients" in given.out
    assert given.code == 5
    # Whom the site trains on is no control, under another name either.
    shutil.copytree(root / "patient-3", incoming / "patient-3")
    twice = command("release-check", folder, synthetic, "--held-out", incoming)
    assert (twice.code, twice.out) == (4, "")
    assert "whom the site trains on, wanted patients that nothing was trained on" in twice.err
    (root / "patient-15" / "patient-15_t2.nii.gz").write_bytes(b"damaged")
    assert "and 9 held-out patients" in command("release-check", folder, synthetic).out


def test_bad_input_leaves_no_record(
    command: Command, new_site: NewSite, clean: Path, tmp_path: Path
) -> None:
    folder = new_site()
    for arguments in (
        (folder, tmp_path / "nowhere"),
        (folder, clean, "--override", "  "),
        (folder, clean, "--held-out", tmp_path / "nowhere"),
    ):
        ended = command("release-check", *arguments)
        assert ended.code == 4
        assert ended.out == ""
        assert ended.err.startswith("error: ")
    assert events(folder) == []
    assert not (folder / "release-check.json").exists()
    assert command("release-check", tmp_path / "no-site", clean).code == 4
    assert not (tmp_path / "no-site").exists()
