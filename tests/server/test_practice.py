"""Hospitals of phantoms as files: whole or begun anew, and good enough for a hospital's check."""

from itertools import islice
from pathlib import Path

import pytest

from medsynth_common.dataset import DataConfig, check_patients, find_patients
from medsynth_common.errors import BadConfig
from medsynth_server.practice import write_hospitals


def written(folder: Path, *, patients: int = 4) -> dict[str, bytes]:
    made = list(write_hospitals(folder, sites=2, patients=patients, side=32, seed=1))
    assert len(made) == 2 * patients
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_hospital_s_check_finds_nothing(tmp_path: Path) -> None:
    """Of phantoms as a simulation has them, one in eight has no tumour, which is an error here."""
    written(tmp_path / "practice", patients=10)
    found = find_patients(tmp_path / "practice", DataConfig())
    assert {site: len(patients) for site, patients in found.items()} == {"site-1": 10, "site-2": 10}
    assert check_patients(found, DataConfig()) == []


def test_cut_off_the_same_command_goes_on_and_no_other_does(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole")
    cut = tmp_path / "cut"
    list(islice(write_hospitals(cut, sites=2, patients=4, side=32, seed=1), 3))
    with pytest.raises(BadConfig, match="something there already"):
        written(cut, patients=5)
    mark = (cut / ".phantoms.json").read_bytes()
    (cut / ".phantoms.json").write_bytes(mark[:-3])
    with pytest.raises(BadConfig, match="something there already"):
        written(cut)
    (cut / ".phantoms.json").write_bytes(mark)
    assert written(cut) == whole
    with pytest.raises(BadConfig, match="something there already"):
        written(cut)
