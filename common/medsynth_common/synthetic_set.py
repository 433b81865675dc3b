"""A synthetic set on disk: a folder a volume, NIfTI files in BraTS names, and `dataset.json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from medsynth_common.durable import write_json
from medsynth_common.errors import BadData, Problem
from medsynth_common.labels import BRATS_VALUES, Tissue
from medsynth_common.learning.volumes import Volume
from medsynth_common.set_layout import (
    BRATS_CONTRASTS,
    Layout,
    files_of,
    phantom_affine,
    write_file,
)
from medsynth_common.volumes import read_volume

DATASET_FILE: Final = "dataset.json"
_TUMOUR, _ANATOMY = "seg", "anatomy"


def write_synthetic(folder: Path, name: str, volume: Volume) -> None:
    """Write one volume into the set's `folder`: four contrasts, the tumour and the anatomy map.

    Each file is written whole or not at all, and one that is there is not written again.
    """
    affine = phantom_affine(tuple(volume.labels.shape))
    for path, voxels in files_of(Layout.BRATS, name, volume).items():
        write_file(folder, path, voxels, affine)


def read_synthetic_set(folder: Path) -> dict[str, Volume]:
    """Read every volume that `dataset.json` lists, by name, on the grid it was written on.

    Raises:
        BadData: a file is missing or damaged, a label value is unknown, or the grids differ; of
            each volume the first problem is told.

    """
    names = [str(entry["name"]) for entry in _training(folder)]
    volumes: dict[str, Volume] = {}
    problems: list[Problem] = []
    for name in names:
        try:
            volumes[name] = _read(folder / name, name)
        except BadData as error:
            problems.extend(error.problems[:1])
    grids = {tuple(volume.labels.shape) for volume in volumes.values()}
    if len(grids) > 1:
        problems.append(
            Problem(name=str(folder), value=f"grids {sorted(grids)}", wanted="one grid for all")
        )
    if problems:
        raise BadData(problems)
    return volumes


def add_to_dataset(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write more facts into `dataset.json`; those of a name that is there take its place."""
    path = folder / DATASET_FILE
    before = _parse(path)
    after = {**before, **facts}
    if after != before:
        write_json(path, after)


def _training(folder: Path) -> list[Mapping[str, Any]]:
    path = folder / DATASET_FILE
    entries = _parse(path).get("training")
    listed = isinstance(entries, list) and all(
        isinstance(entry, Mapping) and _is_name(entry.get("name")) for entry in entries
    )
    if not listed or not entries:
        raise BadData(
            Problem(
                name=f"{path}: training",
                value=repr(entries)[:80],
                wanted='a list of {"name": FOLDER}, one a volume',
            )
        )
    assert isinstance(entries, list)
    return entries


def _is_name(name: object) -> bool:
    """Say whether this is one folder's name: nothing outside the set is read."""
    return isinstance(name, str) and Path(name).name == name and name not in ("", "..")


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise BadData(
            Problem(
                name=str(path),
                value=error.strerror or "unreadable",
                wanted="the description of a synthetic set",
                mend="give the folder that holds dataset.json",
            )
        ) from error
    except ValueError as error:
        raise BadData(Problem(name=str(path), value="not JSON", wanted="JSON")) from error
    if not isinstance(content, dict):
        raise BadData(Problem(name=str(path), value=type(content).__name__, wanted="an object"))
    return content


def _read(folder: Path, name: str) -> Volume:
    parts = {
        suffix: read_volume(folder / _file(name, suffix)).data
        for suffix in (*BRATS_CONTRASTS, _TUMOUR, _ANATOMY)
    }
    if len({part.shape for part in parts.values()}) > 1:
        raise BadData(Problem(name=str(folder), value="grids that differ", wanted="one grid"))
    labels = np.zeros(parts[_TUMOUR].shape, dtype=np.uint8)
    anatomy = {int(tissue): tissue for tissue in Tissue if tissue < Tissue.CORE}
    for suffix, values in ((_ANATOMY, anatomy), (_TUMOUR, BRATS_VALUES)):
        unknown = set(np.unique(parts[suffix]).tolist()) - {0, *values}
        if unknown:
            raise BadData(
                Problem(
                    name=str(folder / _file(name, suffix)),
                    value=f"values {sorted(unknown)[:3]}",
                    wanted=f"0 or one of {sorted(values)}",
                )
            )
        for value, tissue in values.items():
            if value:
                labels[parts[suffix] == value] = tissue
    image = np.stack([parts[suffix] for suffix in BRATS_CONTRASTS])
    return Volume(image=torch.from_numpy(image), labels=torch.from_numpy(labels))


def _file(name: str, suffix: str) -> str:
    return f"{name}-{suffix}.nii.gz"
