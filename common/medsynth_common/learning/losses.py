"""Losses of the three networks. Each is a mean over its batch."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsynth_common.labels import CONTRASTS, TUMOUR, Tissue, segmenter_target
from medsynth_common.learning.volumes import as_batch
from medsynth_common.plan import Game
from medsynth_common.style import Style


@cache
def _dice_ce() -> Any:
    from monai.losses import DiceCELoss  # late, as in networks/build.py

    return DiceCELoss(
        to_onehot_y=True, softmax=True, include_background=False, smooth_nr=1.0, smooth_dr=1.0
    )


def segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Dice + cross-entropy: logits (n, k, *grid) against channel numbers (n, *grid)."""
    loss: Tensor = _dice_ce()(logits, target.unsqueeze(1))
    return loss


def segmenter_loss(
    segmenter: nn.Module, images: Tensor, labels: Tensor, *, spatial_dims: int
) -> Tensor:
    """How far a segmenter is from labels (n, x, y, z) of images (n, 4, x, y, z)."""
    target = as_batch(segmenter_target(labels).unsqueeze(1), spatial_dims)[:, 0]
    return segmentation_loss(segmenter(as_batch(images, spatial_dims)), target)


def real_loss(logits: Tensor, game: Game) -> Tensor:
    """A discriminator's loss for what it should find real, logit by logit.

    Hinge (Lim and Ye 2017): above 1. Cross-entropy: pix2pix' (Isola et al. 2017).
    """
    return F.relu(1 - logits) if game is Game.HINGE else F.softplus(-logits)


def fake_loss(logits: Tensor, game: Game) -> Tensor:
    """A discriminator's loss for what it should find fake, logit by logit."""
    return F.relu(1 + logits) if game is Game.HINGE else F.softplus(logits)


def fooling_loss(logits: Tensor, game: Game) -> Tensor:
    """The generator's half of the game, logit by logit; lower is more real."""
    return -logits if game is Game.HINGE else F.softplus(-logits)


def critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """A discriminator's hinge loss on a batch of each."""
    return real_loss(real, Game.HINGE).mean() + fake_loss(fake, Game.HINGE).mean()


def lesion_weights(labels: Tensor, *, share: float, patch: Sequence[int]) -> Tensor:
    """How much each voxel of a label map counts in the seed paper's patch loss.

    Its code (the ported Shin et al. 2018) takes the L1 distance in a thousand random patches
    centred on lesion voxels and as many centred on brain voxels, each pushed inside the volume:
    a small lesion is lost in the mean over all voxels. This is the weight each voxel has in the
    mean over *all* such patches: the same loss in expectation, without its chance, in one pass.

    Args:
        labels: (n, x, y, z) of `Tissue` values.
        share: of patches around lesion voxels; where there is no lesion, all are around brain.
        patch: sides of a patch; one that is longer than the volume's is as long.

    Returns:
        (n, x, y, z) float32 with a mean of 1 in each map.

    """
    return torch.stack([_weights_of(one, share, patch) for one in labels])


def _weights_of(labels: Tensor, share: float, patch: Sequence[int]) -> Tensor:
    brain = labels != Tissue.BACKGROUND
    lesion = torch.isin(labels, torch.tensor(TUMOUR, dtype=labels.dtype, device=labels.device))
    if not bool(brain.any()):
        return torch.ones(labels.shape, device=labels.device)
    if not bool(lesion.any()):
        share = 0.0
    parts = [(1 - share, brain), (share, lesion)]
    weights = [part * _cover(where, patch) for part, where in parts if part > 0]
    return torch.stack(weights).sum(0).float()


def _cover(centres: Tensor, patch: Sequence[int]) -> Tensor:
    """How often each voxel is in the patches around `centres` (x, y, z), over the mean of that."""
    sides = [min(size, side) for size, side in zip(patch, centres.shape, strict=True)]
    starts = centres.nonzero()  # (patch, axis)
    for axis, (size, side) in enumerate(zip(sides, centres.shape, strict=True)):
        starts[:, axis] = (starts[:, axis] - size // 2).clamp(0, side - size)
    count = torch.zeros(centres.shape, dtype=torch.float64, device=centres.device)
    one = torch.ones(len(starts), dtype=torch.float64, device=centres.device)
    count.index_put_(tuple(starts.T), one, accumulate=True)
    for axis, size in enumerate(sides):  # a patch covers the `size` voxels from its start on
        total = count.cumsum(axis)
        gone = total.narrow(axis, 0, total.shape[axis] - size)
        count = total.clone()
        count.narrow(axis, size, total.shape[axis] - size).sub_(gone)
    return count / count.mean()


def tissue_moments(image: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Measure each tissue's brightness.

    Args:
        image: (n, 4, *grid).
        classes: (n, tissue, *grid) one-hot.

    Returns:
        mean and standard deviation (n, tissue, contrast), and the voxel count (n, tissue).

    """
    flat, masks = image.flatten(2), classes.flatten(2)
    count = masks.sum(-1)  # (n, tissue)
    divisor = count.clamp(min=1).unsqueeze(-1)
    mean = torch.einsum("ncv,ntv->ntc", flat, masks) / divisor
    square = torch.einsum("ncv,ntv->ntc", flat.square(), masks) / divisor
    deviation = (square - mean.square()).clamp(min=1e-6).sqrt()
    return mean, deviation, count


def lock_loss(image: Tensor, classes: Tensor, style: Style) -> Tensor:
    """Hold each tissue's mean and spread of intensity to what the style says.

    Adversarial steps undo a moment match unless it is held (the reference trials: a tissue mean
    error of .14 without, .008 with). Being held image by image, it also holds the variance
    between patients, which drifts when only batch means are held.
    """
    mean, deviation, count = tissue_moments(image, classes)
    present = (count >= 8).float().unsqueeze(-1)
    present[:, Tissue.BACKGROUND] = 0
    off = (mean - style.offset).abs() + (deviation - style.gain).abs()
    return (off * present).sum() / (present.sum() * len(CONTRASTS)).clamp(min=1)
