"""What the anatomy network sees in a training step: crops of public heads, never twice alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medsynth_common.anatomy.network import CLASSES
from medsynth_common.labels import CONTRASTS, Contrast, Tissue
from medsynth_server.anatomy.heads import Head
from medsynth_server.anatomy.painting import Floats, Labels, paint, scaled, shaded, smooth

#: Share of samples that have all contrasts, and that have T1 alone; the others have any subset.
_ALL: Final = 0.35
_T1_ALONE: Final = 0.35
#: Share of samples of a head with an image of its own that are painted nevertheless.
_PAINTED: Final = 0.4
#: Share of samples that lose fluid at the brain's surface, as skull stripping takes it, and how
#: deep it is taken, voxels at most.
_STRIPPED: Final = (0.7, 4.0)
#: Largest turn (rad), share of stretch, and SD of the bending (voxels).
_TURN, _STRETCH, _BEND = 0.2, 0.14, 1.0
_TARGET: Final = np.full(len(Tissue), -1, dtype=np.int64)
_TARGET[list(CLASSES)] = np.arange(len(CLASSES))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A batch.

    Attributes:
        seen: (n, INPUTS, *crop): contrasts, zeros outside the brain and for those that are
            missing; then the depth.
        target: (n, *crop) channel numbers; -1 outside the brain and under tumours, where nobody
            knows what a healthy brain would have had.

    """

    seen: Tensor
    target: Tensor


def draw_sample(
    heads: Sequence[Head], crop: Sequence[int], rng: np.random.Generator, *, batch: int
) -> Sample:
    """Draw a batch; the same generator draws the same one."""
    pairs = [_draw(heads[int(rng.integers(len(heads)))], crop, rng) for _ in range(batch)]
    seen, labels = zip(*pairs, strict=True)
    return Sample(
        seen=torch.from_numpy(np.stack(seen)),
        target=torch.from_numpy(_TARGET[np.stack(labels)]),
    )


def _draw(head: Head, crop: Sequence[int], rng: np.random.Generator) -> tuple[Floats, Labels]:
    places = _places(head.labels.shape, crop, rng)
    labels = ndimage.map_coordinates(head.labels, places, order=0, mode="constant")
    if head.image is None or rng.random() < _PAINTED:
        image = paint(labels, _kept(rng, np.ones(len(CONTRASTS), dtype=bool)), rng)
        labels = _stripped(labels, rng)
    else:
        kept = _kept(rng, np.asarray(head.image.any(axis=(1, 2, 3))))
        image = np.zeros((len(CONTRASTS), *crop), dtype=np.float32)
        for one in np.flatnonzero(kept):
            image[one] = ndimage.map_coordinates(head.image[one], places, order=1, mode="constant")
        image = shaded(image, rng)
    brain = labels != Tissue.BACKGROUND
    if not brain.any():  # a crop beside the head says nothing; take another
        return _draw(head, crop, rng)
    depth = ndimage.map_coordinates(head.depth, places, order=1, mode="constant") * brain
    return np.concatenate([scaled(image, brain, rng), depth[None]]), labels


def _places(shape: tuple[int, ...], crop: Sequence[int], rng: np.random.Generator) -> Floats:
    """Give where in a head of `shape` each voxel of a crop comes from, (3, *crop).

    The crop is mirrored left to right half the time, turned, stretched and bent a little.
    """
    axes = [np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2) for side in crop]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))  # (3, *crop)
    x, y, z = rng.uniform(-_TURN, _TURN, 3)
    turn = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    stretch = np.diag(rng.uniform(1 - _STRETCH, 1 + _STRETCH, 3))
    if rng.random() < 0.5:
        stretch[0] *= -1
    places = np.tensordot((np.eye(3) + turn) @ stretch, grid, axes=1).astype(np.float32)
    middle = [(side - 1) / 2 for side in shape]
    for axis in range(3):
        slack = max(shape[axis] - crop[axis], 0) / 2 + 4
        places[axis] += np.float32(middle[axis] + rng.uniform(-slack, slack))
        places[axis] += np.float32(_BEND * rng.uniform(0, 1)) * smooth(tuple(crop), 12, rng)
    return places


def _stripped(labels: Labels, rng: np.random.Generator) -> Labels:
    share, deepest = _STRIPPED
    if rng.random() > share:
        return labels
    depth = ndimage.distance_transform_edt(np.pad(labels != Tissue.BACKGROUND, 1, mode="edge"))
    lost = (labels == Tissue.CSF) & (depth[1:-1, 1:-1, 1:-1] <= rng.uniform(0, deepest))
    return np.where(lost, np.uint8(Tissue.BACKGROUND), labels)


def _kept(rng: np.random.Generator, there: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Choose which of the contrasts that are there a sample has; at least one."""
    chance = rng.random()
    kept = np.ones(len(CONTRASTS), dtype=bool)
    if chance > _ALL + _T1_ALONE:
        kept = rng.random(len(CONTRASTS)) < 0.5
    elif chance > _ALL:
        kept = np.array([contrast is Contrast.T1 for contrast in CONTRASTS])
    kept &= there
    if not kept.any():
        kept[int(rng.choice(np.flatnonzero(there)))] = True
    return kept
