"""Prepared patients as tensors, crops of them, and networks laid over whole volumes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medsynth_common.privacy.randomness import Randomness


@dataclass(frozen=True, kw_only=True)
class Volume:
    """One patient on the training grid.

    Attributes:
        image: float32 (4, x, y, z), normalised, 0 outside the brain.
        labels: uint8 (x, y, z) of `Tissue` values.

    """

    image: Tensor
    labels: Tensor


def random_box(
    grid: Sequence[int], crop: Sequence[int], randomness: Randomness
) -> tuple[slice, ...]:
    """Choose where a crop lies in a grid, every place alike."""
    where = randomness.uniform(len(crop))
    starts = [int(u * (side - size + 1)) for u, side, size in zip(where, grid, crop, strict=True)]
    return tuple(slice(s, s + size) for s, size in zip(starts, crop, strict=True))


def draw_crops(
    volume: Volume, *, crop: tuple[int, ...], count: int, randomness: Randomness
) -> tuple[Tensor, Tensor]:
    """Cut `count` random crops out of one patient, every other one around a tumour voxel.

    Crops are of one patient, so however many are drawn they cost no more privacy: the unit is the
    patient. Returns images (count, 4, *crop) and labels (count, *crop).
    """
    tumour = (volume.labels >= 6).nonzero()  # (voxel, axis); core, oedema, enhancing
    images, labels = [], []
    for index in range(count):
        box = random_box(volume.labels.shape, crop, randomness)
        if index % 2 and len(tumour):
            centre = tumour[int(randomness.uniform(1)[0] * len(tumour))].tolist()
            box = tuple(
                slice(start := min(max(middle - size // 2, 0), side - size), start + size)
                for middle, size, side in zip(centre, crop, volume.labels.shape, strict=True)
            )
        images.append(volume.image[(slice(None), *box)])
        labels.append(volume.labels[box])
    return torch.stack(images), torch.stack(labels)


def mirrored(images: Tensor, labels: Tensor, randomness: Randomness) -> tuple[Tensor, Tensor]:
    """Let left and right change places in images (n, 4, x, y, z) and labels, every other time."""
    if randomness.uniform(1)[0] < 0.5:
        return images, labels
    return images.flip(2), labels.flip(1)


def as_batch(stacked: Tensor, spatial_dims: int) -> Tensor:
    """Turn (n, c, x, y, z) into what a network of `spatial_dims` takes: for 2, axial slices."""
    if spatial_dims == 3:
        return stacked
    return stacked.permute(0, 4, 1, 2, 3).flatten(0, 1).contiguous()  # (n*z, c, x, y)


def from_batch(batch: Tensor, spatial_dims: int, count: int) -> Tensor:
    """Undo `as_batch` for `count` volumes."""
    if spatial_dims == 3:
        return batch
    return batch.view(count, -1, *batch.shape[1:]).permute(0, 2, 3, 4, 1)


def over_volumes(network: Callable[[Tensor], Tensor], volumes: Tensor, spatial_dims: int) -> Tensor:
    """Apply a 2D or 3D network to volumes (n, c, x, y, z); returns (n, c', x, y, z)."""
    return from_batch(
        network(as_batch(volumes, spatial_dims)), spatial_dims, count=volumes.shape[0]
    )
