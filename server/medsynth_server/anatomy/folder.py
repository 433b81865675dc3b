"""Public heads out of a folder: label maps, and the images that lie beside them.

The folder must say in writing that it is public, as for `synthesize` (see `label_source.py`). A
file named like a contrast (`X_t1`, `X_t1ce`, `X-t2f` ...) is an image of the map `X_seg`, `X-seg`,
`X-anatomy` or `X`; every other volume is a label map.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medsynth_common.anatomy.network import VOXEL_MM
from medsynth_common.dataset import DataConfig
from medsynth_common.dataset.brain import bounding_box, brain_mask
from medsynth_common.dataset.files import SUFFIXES
from medsynth_common.dataset.frame import frames_between
from medsynth_common.errors import BadData, Problem
from medsynth_common.intensity import normalise
from medsynth_common.labels import CONTRASTS, Contrast, Tissue
from medsynth_common.volumes import read_volume
from medsynth_server.anatomy.heads import Head
from medsynth_server.label_source import ANATOMY_ENDING, Statement, read_statement, tissues_of

_MAP_ENDINGS: Final = (ANATOMY_ENDING, *(f"{end}{s}" for end in ("_seg", "-seg") for s in SUFFIXES))
_IMAGE_ENDINGS: Final = {
    contrast: tuple(glob.removeprefix("*") for glob in globs)
    for contrast, globs in DataConfig().contrasts.items()
}


def read_heads(folder: Path) -> tuple[list[Head], Statement]:
    """Read every label map below `folder`, with its images.

    Raises:
        PolicyRefusal: nobody says that the folder is public or synthetic.
        BadConfig: its statement cannot be read.
        BadData: there are no maps, or some cannot be used; all are told.

    """
    statement = read_statement(folder)
    volumes = sorted(path for path in folder.rglob("*") if path.name.endswith(SUFFIXES))
    every = tuple(ending for endings in _IMAGE_ENDINGS.values() for ending in endings)
    maps = [path for path in volumes if path.name.endswith(ANATOMY_ENDING)] or [
        path for path in volumes if not path.name.endswith(every)
    ]
    problems = []
    if not maps:
        problems.append(
            Problem(name=str(folder), value="no .nii or .nii.gz file", wanted="label maps")
        )
    heads = []
    for path in maps:
        try:
            heads.append(_read(path, statement))
        except BadData as error:
            problems.extend(error.problems)
    if problems:
        raise BadData(problems)
    return heads, statement


def _read(path: Path, statement: Statement) -> Head:
    read = read_volume(path)
    labels = tissues_of(path, read.data, statement)
    images = _images(path, labels.shape)
    if images:
        brain = brain_mask(list(images.values()))
        # Anatomy maps often leave out the CSF around the brain, as in preparation.
        labels = np.where(brain & (labels == Tissue.BACKGROUND), np.uint8(Tissue.CSF), labels)
        labels = np.where(brain, labels, np.uint8(Tissue.BACKGROUND))
    if not labels.any():
        raise BadData(Problem(name=str(path), value="background alone", wanted="a brain"))
    box = bounding_box(labels != Tissue.BACKGROUND)
    cut = labels[box]
    frame, _ = frames_between(cut.shape, read.affine, voxel_mm=VOXEL_MM, multiple=1)
    small = frame.resample_labels(cut)
    if not images:
        return Head(labels=small)
    inside = (cut != Tissue.BACKGROUND).astype(np.float32)
    share = np.maximum(frame.resample(inside), 1e-6)
    image = np.zeros((len(CONTRASTS), *small.shape), dtype=np.float32)
    for contrast, data in images.items():
        fitted = frame.resample(data[box].clip(min=0) * inside) / share
        image[CONTRASTS.index(contrast)] = normalise(fitted[None], small > 0)[0]
    return Head(labels=small, image=image)


def _images(path: Path, shape: Sequence[int]) -> Mapping[Contrast, NDArray[np.float32]]:
    endings = (*_MAP_ENDINGS, *SUFFIXES)
    name = path.name.removesuffix(next(end for end in endings if path.name.endswith(end)))
    found = {}
    for contrast, names in _IMAGE_ENDINGS.items():
        for beside in (path.with_name(name + ending) for ending in names):
            if beside.exists():
                found[contrast] = read_volume(beside).data
                if found[contrast].shape != tuple(shape):
                    raise BadData(Problem(name=str(beside), value="another grid", wanted=path.name))
                break
    return found
