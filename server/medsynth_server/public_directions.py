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

    # In place: of large networks these are gigabytes, and a list of them would be as much again.
    gradients = torch.empty(
        _GRADIENTS * count, sum(one.numel() for one in parameters), device=parameters[0].device
    )
    for row in gradients:
        row.copy_(gradient(*next(crops)))
    return Directions.of(gradients, count=count)
