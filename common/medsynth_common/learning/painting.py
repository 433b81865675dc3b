"""Running the generator over whole volumes, in 2D or 3D."""

import torch
from torch import Tensor

from medsynth_common.learning.volumes import as_batch, from_batch
from medsynth_common.networks.generator import Generator
from medsynth_common.style import Style


def paint(generator: Generator, classes: Tensor, style: Style, draw: torch.Generator) -> Tensor:
    """Make images (n, 4, x, y, z) for one-hot label maps (n, tissue, x, y, z).

    `style` has a batch axis of n. A 2D generator paints axial slices, all in the volume's style.
    """
    count, dims = classes.shape[0], generator.spatial_dims
    batch = as_batch(classes, dims)
    repeats = batch.shape[0] // count
    spread_out = Style(
        **{name: t.repeat_interleave(repeats, dim=0) for name, t in style.tensors().items()}
    )
    noise = generator.draw_noise(batch, draw)
    return from_batch(generator(batch, spread_out, noise), dims, count)
