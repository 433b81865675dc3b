"""Where a segmenter's gradients point on synthetic patients: the directions of private steps."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from medsynth_common.learning.directions import Directions
from medsynth_common.learning.losses import segmenter_loss
from medsynth_common.privacy.patients import loss_gradient

#: Gradients for each direction that is wanted: with fewer, each bends toward its few crops.
_GRADIENTS = 8


def find_directions(
    segmenter: nn.Module, crops: Iterator[tuple[Tensor, Tensor]], *, count: int, spatial_dims: int
) -> Directions:
    """Find `count` directions from the gradients on synthetic crops.

    Args:
        segmenter: where private steps will start.
        crops: batches of images (n, 4, *crop) and labels (n, *crop), a gradient each, like those
            of one patient.
        count: of directions.
        spatial_dims: of the segmenter.

    """
    parameters = list(segmenter.train().parameters())

    def gradient(images: Tensor, labels: Tensor) -> Tensor:
        parts = loss_gradient(
            parameters, lambda: segmenter_loss(segmenter, images, labels, spatial_dims=spatial_dims)
        )
        return torch.cat([part.flatten() for part in parts])

    gradients = [gradient(*next(crops)) for _ in range(_GRADIENTS * count)]
    return Directions.of(torch.stack(gradients), count=count)
