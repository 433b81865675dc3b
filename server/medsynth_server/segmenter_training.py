"""Training a segmenter on public or synthetic pairs, where no privacy is at stake."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from medsynth_common.learning.losses import segmenter_loss
from medsynth_common.tensors import state_of
from medsynth_server.augment import augment

_RATE = 1e-3


def train_on(
    batches: Iterator[tuple[Tensor, Tensor]],
    segmenter: nn.Module,
    *,
    steps: int,
    spatial_dims: int,
    seed: int,
) -> tuple[dict[str, Tensor], float]:
    """Train for `steps` on batches of images (n, 4, x, y, z) and labels (n, x, y, z).

    Returns the trained weights and the mean loss of the last quarter.
    """
    draw = torch.Generator().manual_seed(seed)
    segmenter.train()
    adam = torch.optim.Adam(segmenter.parameters(), lr=_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=max(steps, 1))
    losses: list[float] = []
    for _ in range(steps):
        images, labels = augment(*next(batches), draw)
        loss = segmenter_loss(segmenter, images, labels, spatial_dims=spatial_dims)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch's stub
        adam.step()
        schedule.step()
        losses.append(float(loss.detach()))
    last = losses[-max(1, steps // 4) :]
    return state_of(segmenter), sum(last) / max(1, len(last))
