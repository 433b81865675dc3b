import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medsynth_common.dataset import DataConfig, Patient, PatientFiles, prepare
from medsynth_common.dataset import source as patients_file
from medsynth_common.dataset.source import FolderSource, PhantomSource, load_patients
from medsynth_common.errors import BadData
from medsynth_common.labels import Tissue
from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom import SITE_SCANNERS
from small_patients import SHAPE, spoil, write_patient

GRID = (24, 24, 24)
PHANTOMS = PhantomSource(scanner=SITE_SCANNERS[0], patients=2, seed=100)


def same(first: Volume, second: Volume) -> bool:
    return torch.equal(first.image, second.image) and torch.equal(first.labels, second.labels)


def forbid_making(monkeypatch: pytest.MonkeyPatch) -> None:
    def making(*_: object, **__: object) -> None:
        raise AssertionError("prepared anew")

    monkeypatch.setattr(patients_file, "make_phantom", making)
    monkeypatch.setattr(patients_file, "prepare", making)


def test_phantoms_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load_patients(PHANTOMS, GRID, cache=tmp_path)
    assert [one.image.shape for one in made] == [(4, *GRID)] * 2
    assert made[0].image.dtype == torch.float32
    assert made[0].labels.dtype == torch.uint8
    assert not same(made[0], made[1])
    forbid_making(monkeypatch)
    again = load_patients(PHANTOMS, GRID, cache=tmp_path)
    assert all(same(one, other) for one, other in zip(made, again, strict=True))
    with pytest.raises(AssertionError, match="anew"):  # another scanner sees other patients
        load_patients(
            PHANTOMS.model_copy(update={"scanner": SITE_SCANNERS[1]}), GRID, cache=tmp_path
        )
    with pytest.raises(AssertionError, match="anew"):
        load_patients(PHANTOMS, (32, 24, 24), cache=tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    """A hospital of two patients in files, of which it trains on both."""
    for name in ("p-1", "p-2"):
        write_patient(tmp_path / "data" / "sites" / "a" / name, seed=len(name))
    return FolderSource(
        root=str(tmp_path / "data"), data=DataConfig(), site="a", patients=("p-1", "p-2")
    )


def test_patients_are_read_from_files_once(
    source: FolderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    read = load_patients(source, GRID, cache=cache)
    assert [one.image.shape for one in read] == [(4, *GRID)] * 2
    assert bool((read[0].labels == Tissue.ENHANCING).any())
    assert float(read[0].image.max()) <= 1.25
    # Their names are in none of the cache's paths.
    assert not any("p-1" in str(path) for path in cache.rglob("*"))
    with monkeypatch.context() as patched:
        forbid_making(patched)
        again = load_patients(source, GRID, cache=cache)
    assert all(same(one, other) for one, other in zip(read, again, strict=True))


def test_a_changed_file_is_read_anew(source: FolderSource, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    before = load_patients(source, GRID, cache=cache)
    write_patient(Path(source.root) / "sites" / "a" / "p-1", seed=99)
    after = load_patients(source, GRID, cache=cache)
    assert not same(before[0], after[0])
    assert same(before[1], after[1])


def test_only_what_changed_is_prepared_again(
    source: FolderSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    before = load_patients(source, GRID, cache=cache)
    made: list[str] = []

    def counted(files: PatientFiles, *rest: Any) -> Patient:
        made.append(files.name)
        return prepare(files, *rest)

    monkeypatch.setattr(patients_file, "prepare", counted)
    # Moved, and so touched: the content decides, not the name and the time.
    moved = tmp_path / "moved"
    Path(source.root).rename(moved)
    for path in moved.rglob("*.nii.gz"):
        os.utime(path, (1, 1))
    elsewhere = source.model_copy(update={"root": str(moved)})
    after = load_patients(elsewhere, GRID, cache=cache)
    assert made == []
    assert all(same(one, other) for one, other in zip(before, after, strict=True))
    # Of the same size, and with the time set back, as `cp -p` and rsync do.
    path = moved / "sites" / "a" / "p-2" / "p-2_seg.nii.gz"
    content, times = path.read_bytes(), path.stat()
    spoil(path.parent, "_seg", np.ones(SHAPE, dtype=np.uint8))
    changed = path.read_bytes()
    path.write_bytes(changed[: len(content)].ljust(len(content), b"\0"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    load_patients(elsewhere, GRID, cache=cache)
    assert made == ["p-2"]
    # What a value means is part of what a patient is made from.
    data = DataConfig.model_validate({"tumour_values": {1: "core", 2: "core", 4: "core"}})
    load_patients(elsewhere.model_copy(update={"data": data}), GRID, cache=cache)
    assert made == ["p-2", "p-1", "p-2"]


def test_prepared_patients_are_mapped_not_read(source: FolderSource, tmp_path: Path) -> None:
    load_patients(source, GRID, cache=tmp_path)
    again = load_patients(source, GRID, cache=tmp_path)
    written = {str(path) for path in tmp_path.rglob("volume.safetensors")}
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux shows what a process has mapped")
    mapped = [line for line in maps.read_text().splitlines() if str(tmp_path) in line]
    assert {line.split()[-1] for line in mapped} == written
    assert again


def test_a_missing_patient_is_told(source: FolderSource, tmp_path: Path) -> None:
    asked = source.model_copy(update={"patients": ("p-1", "p-8", "p-9")})
    with pytest.raises(BadData) as caught:
        load_patients(asked, GRID, cache=tmp_path / "cache")
    assert [problem.name for problem in caught.value.problems] == ["a/p-8", "a/p-9"]
    assert not (tmp_path / "cache").exists()


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    made = load_patients(PHANTOMS, GRID, cache=tmp_path)
    [first, _] = sorted(tmp_path.rglob("*.safetensors"))
    first.write_bytes(first.read_bytes()[:1000])
    again = load_patients(PHANTOMS, GRID, cache=tmp_path)
    assert same(made[0], again[0])
    assert first.stat().st_size > 1000
