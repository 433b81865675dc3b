"""Painting whole volumes, in 2D or 3D: the generator's image, held to what its style promises."""

from typing import Final

import torch
from torch import Tensor

from medsynth_common.labels import Tissue
from medsynth_common.learning.losses import tissue_moments
from medsynth_common.learning.moments import ENOUGH_VOXELS
from medsynth_common.learning.volumes import as_batch, from_batch
from medsynth_common.networks.generator import Generator
from medsynth_common.style import Style

#: How far a tissue's contrast within itself may be stretched or pressed.
_STRETCH: Final = 2.0


def paint(generator: Generator, classes: Tensor, style: Style, draw: torch.Generator) -> Tensor:
    """Make images (n, 4, x, y, z) for one-hot label maps (n, tissue, x, y, z).

    `style` has a batch axis of n. A 2D generator paints axial slices, all in the volume's style.
    Each tissue has the mean and SD that the style gives it (see `held`). All of it is float32, also
    where a critic's steps are not: a tissue's SD is a small difference of large sums.
    """
    count, dims = classes.shape[0], generator.spatial_dims
    batch = as_batch(classes, dims)
    repeats = batch.shape[0] // count
    spread_out = Style(
        **{name: t.repeat_interleave(repeats, dim=0) for name, t in style.tensors().items()}
    )
    noise = generator.draw_noise(batch, draw)
    with torch.autocast(classes.device.type, enabled=False):
        return held(from_batch(generator(batch, spread_out, noise), dims, count), classes, style)


def held(image: Tensor, classes: Tensor, style: Style) -> Tensor:
    """Give every tissue of images (n, 4, x, y, z) the mean and SD of its style, as near as may be.

    The generator comes near them on the whole brain, but not in a small tumour: half its noise is
    slow, and moves a small region as one rather than varying within it. Held so, a segmenter that
    is trained on synthetic volumes alone finds thin rims that it would miss. A tissue too small to
    be measured stays as it was painted, and no SD changes by more than a factor of two.
    """
    mean, deviation, count = tissue_moments(image, classes)
    stretch = (style.gain / deviation).clamp(1 / _STRETCH, _STRETCH)
    shift = style.offset - stretch * mean
    there = (count >= ENOUGH_VOXELS).unsqueeze(-1).to(image)
    there[:, Tissue.BACKGROUND] = 0
    factor = torch.einsum("ntc,nt...->nc...", 1 + there * (stretch - 1), classes)
    moved = image * factor + torch.einsum("ntc,nt...->nc...", there * shift, classes)
    return moved.clamp(min=0)
