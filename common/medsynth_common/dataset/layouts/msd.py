"""Medical Segmentation Decathlon (Antonelli et al. 2022) and nnU-Net: a folder of `dataset.json`.

dataset.json        "modality" (MSD) or "channel_names" (nnU-Net 2), "labels", "training"
imagesTr/<patient>.nii.gz                       one 4D image, its channels in that order
imagesTr/<patient>_0000.nii.gz, _0001 ...       or one file for each channel
labelsTr/<patient>.nii.gz                       whose values "labels" explains
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from medsynth_common.dataset.config import DataConfig
from medsynth_common.dataset.files import ANATOMY_MAP, TUMOUR_MAP, PatientFiles, is_volume, stem
from medsynth_common.errors import BadData, Problem
from medsynth_common.labels import CONTRASTS, Contrast, Tissue

_CONTRASTS: Final = {
    Contrast.T1: ("t1", "t1w", "t1n"),
    Contrast.T1GD: ("t1gd", "t1ce", "t1c", "t1wce", "t1wgd", "cet1w", "cet1", "t1post"),
    Contrast.T2: ("t2", "t2w"),
    Contrast.FLAIR: ("flair", "t2f", "t2flair"),
}
#: In this order: a `non-enhancing tumour` is not an `enhancing tumour`.
_TISSUES: Final = (
    (re.compile("background|unlabel", re.IGNORECASE), Tissue.BACKGROUND),
    (re.compile("o?edema", re.IGNORECASE), Tissue.OEDEMA),
    (re.compile("non.?enhanc|necro|core", re.IGNORECASE), Tissue.CORE),
    (re.compile("enhanc", re.IGNORECASE), Tissue.ENHANCING),
)


def looks_like(root: Path) -> bool:
    """Say whether a folder holds a `dataset.json` and its images."""
    return (root / "dataset.json").is_file() and (root / "imagesTr").is_dir()


def patients(root: Path, config: DataConfig) -> list[PatientFiles]:
    """Find the training patients. Raises BadData with all that is wrong in `dataset.json`."""
    table = _read(root / "dataset.json")
    channels = _channels(root / "dataset.json", table)
    values = config.tumour_values
    if values is None:
        values = _values(root / "dataset.json", table)
    return [
        PatientFiles(
            site="",
            name=name,
            folder=root / "imagesTr",
            matches=_matches(root, name, label, channels, config),
            wanted=_wanted(name, channels),
            channels=channels if _is_4d(root, name) else {},
            tumour_values=values,
        )
        for name, label in _cases(root, table)
    ]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadData(
            Problem(name=str(path), value=type(error).__name__, wanted="a readable JSON file")
        ) from error
    if not isinstance(table, Mapping):
        raise BadData(Problem(name=str(path), value="no table", wanted="a JSON object"))
    return table


def _channels(path: Path, table: Mapping[str, Any]) -> dict[str, int]:
    named = _mapping(table.get("channel_names", table.get("modality")))
    found = {
        str(contrast): int(index)
        for index, name in named.items()
        for contrast, spellings in _CONTRASTS.items()
        if index.isdecimal() and re.sub("[^a-z0-9]", "", str(name).lower()) in spellings
    }
    problems = [
        Problem(
            name=f"{path}: modality",
            value=", ".join(map(str, named.values())) or "none",
            wanted=f"one that is {contrast}",
            mend=f"write {_CONTRASTS[contrast][0]!r} for it",
        )
        for contrast in CONTRASTS
        if contrast not in found
    ]
    if problems:
        raise BadData(problems)
    return found


def _values(path: Path, table: Mapping[str, Any]) -> dict[int, Tissue]:
    values: dict[int, Tissue] = {}
    unknown: list[str] = []
    for key, other in _mapping(table.get("labels")).items():
        # MSD writes {"1": "edema"}, nnU-Net 2 {"edema": 1}; its regions are lists.
        number, meaning = (key, other) if key.isdecimal() else (other, key)
        tissue = next((tissue for name, tissue in _TISSUES if name.search(str(meaning))), None)
        if tissue is None or not str(number).isdecimal():
            unknown.append(f"{key}: {other}")
        else:
            values[int(number)] = tissue
    if unknown or not values:
        raise BadData(
            Problem(
                name=f"{path}: labels",
                value=", ".join(unknown) or "none",
                wanted="background, oedema, non-enhancing or necrotic core, enhancing tumour",
                mend="say what the values mean in tumour_values",
            )
        )
    return values


def _mapping(value: Any) -> dict[str, Any]:
    return {str(key): one for key, one in value.items()} if isinstance(value, Mapping) else {}


def _cases(root: Path, table: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """Return each training case with its label; listed by `training`, else by the folder."""
    listed = table.get("training")
    if isinstance(listed, list) and listed and all(isinstance(one, Mapping) for one in listed):
        labels = [root / "labelsTr" / Path(str(one.get("label", ""))).name for one in listed]
    else:
        labels = sorted(filter(is_volume, (root / "labelsTr").glob("*")))
    return sorted((stem(label), label) for label in labels)


def _image(root: Path, name: str) -> Path:
    plain = root / "imagesTr" / f"{name}.nii"
    return plain if plain.is_file() else plain.with_name(f"{name}.nii.gz")


def _is_4d(root: Path, name: str) -> bool:
    return _image(root, name).is_file() or not _channel_file(root, name, 0).is_file()


def _channel_file(root: Path, name: str, channel: int) -> Path:
    return root / "imagesTr" / f"{name}_{channel:04d}.nii.gz"


def _matches(
    root: Path, name: str, label: Path, channels: Mapping[str, int], config: DataConfig
) -> dict[str, tuple[Path, ...]]:
    whole = _is_4d(root, name)
    found = {
        role: _image(root, name) if whole else _channel_file(root, name, channel)
        for role, channel in channels.items()
    }
    matches = {str(one): _there(found[one]) for one in CONTRASTS} | {TUMOUR_MAP: _there(label)}
    if config.anatomy is not None:
        maps = sorted(filter(is_volume, (root / "anatomyTr").glob(f"{name}.nii*")))
        matches[ANATOMY_MAP] = tuple(maps)
    return matches


def _there(path: Path) -> tuple[Path, ...]:
    return (path,) if path.is_file() else ()


def _wanted(name: str, channels: Mapping[str, int]) -> dict[str, str]:
    images = {
        role: f"imagesTr/{name}.nii.gz, or {name}_{channel:04d}.nii.gz beside it"
        for role, channel in channels.items()
    }
    maps = {TUMOUR_MAP: f"labelsTr/{name}.nii.gz", ANATOMY_MAP: f"anatomyTr/{name}.nii.gz"}
    return images | maps
