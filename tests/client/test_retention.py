"""What a site keeps no longer than its policy says, and what it keeps for ever."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from medsynth_client import trainer as trainer_file
from medsynth_client.hash_chain import exclusive
from medsynth_client.privacy_command import tidy_site
from medsynth_client.retention import tidy
from medsynth_client.site import Site
from medsynth_client.site_file import SiteFile
from medsynth_client.trainer import run_trainer
from medsynth_client.verification import verify_site
from medsynth_common.dataset.source import load_patients
from medsynth_common.errors import AlreadyAnswered, TimedOut
from tiny import GRID, NewSite, gaussian, plan

DAY = 86_400.0


def age(path: Path, days: float) -> None:
    """Let a file, or a folder and all in it, be last used so long ago."""
    for one in (path, *path.rglob("*")):
        when = time.time() - days * DAY
        os.utime(one, (when, when), follow_symlinks=False)


@pytest.fixture
def folder(new_site: NewSite) -> Path:
    """A site that answered one plan, keeps things for thirty days, and is forty days old."""
    made = new_site(retention_days=30)
    Site(made, device=torch.device("cpu")).carry(plan())
    age(made, 40)
    return made


def test_what_is_too_old_goes_and_the_records_stay(folder: Path) -> None:
    records = {path: path.read_bytes() for path in folder.glob("*") if path.name[0] in "al"}
    removed = tidy_site(folder)
    assert {path.name for path in removed} >= {"run-1.safetensors"}
    assert list((folder / "state").iterdir()) == []
    assert list((folder / "prepared").iterdir()) == []
    assert {path: path.read_bytes() for path in records} == records
    assert {"ledger.db", "audit.jsonl"} <= {path.name for path in records}
    assert verify_site(folder).sound
    assert tidy_site(folder) == []


def test_a_site_goes_on_after_it_and_nothing_is_uncharged(folder: Path) -> None:
    tidy_site(folder)
    site = Site(folder, device=torch.device("cpu"))
    with pytest.raises(AlreadyAnswered):  # its answer was removed, and is not released anew
        site.carry(plan())
    site.carry(plan(round=2, mechanisms=(gaussian("spread"),)))
    checked = verify_site(folder)
    assert checked.sound
    assert checked.lines == 3


@pytest.mark.parametrize("days", [-400.0, 0.0, 29.0])
def test_what_was_used_lately_or_seems_of_the_future_stays(folder: Path, days: float) -> None:
    age(folder, days)
    assert tidy_site(folder) == []


def test_one_file_of_a_cache_used_lately_keeps_the_cache(folder: Path) -> None:
    [cache] = (folder / "prepared").iterdir()
    age(next(cache.iterdir()), 1)
    assert cache not in tidy_site(folder)


def test_preparing_and_loading_are_uses(folder: Path) -> None:
    source = SiteFile.load(folder / "site.toml").source
    load_patients(source, GRID, cache=folder / "prepared")  # all from the cache
    assert [path.name for path in tidy_site(folder)] == ["run-1.safetensors"]


def test_nothing_is_followed_out_of_the_folder(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "scan.nii.gz").write_bytes(b"a patient's")
    (folder / "prepared" / "link").symlink_to(outside)
    [cache] = (path for path in (folder / "prepared").iterdir() if not path.is_symlink())
    (cache / "link").symlink_to(outside)
    age(folder / "prepared", 40)
    tidy_site(folder)
    assert (outside / "scan.nii.gz").exists()
    assert not cache.exists()
    shutil.rmtree(folder / "prepared")
    (folder / "prepared").symlink_to(outside)
    age(outside, 40)
    assert tidy(folder, retention_days=30) == []
    assert (outside / "scan.nii.gz").exists()


def test_not_while_a_trainer_runs(folder: Path) -> None:
    with exclusive(folder / "trainer", timeout=0.0), pytest.raises(TimedOut):
        tidy_site(folder)
    assert (folder / "state" / "run-1.safetensors").exists()


class Stopped(Exception):
    """The trainer got as far as its sites."""


def test_a_trainer_tidies_when_it_starts(
    folder: Path, socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise Stopped

    monkeypatch.setattr(trainer_file, "Trainer", stop)
    try:
        with pytest.raises(Stopped):
            run_trainer([folder], socket, device="cpu", threads=1, watch_parent=False)
    finally:
        torch.use_deterministic_algorithms(False)  # as it was
    assert not (folder / "state" / "run-1.safetensors").exists()
    assert list((folder / "prepared").iterdir()) == []
    assert (folder / "ledger.db").exists()
