"""Stage segment: DP-SGD on the shared tumour segmenter, patient by patient."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from medsynth_client.order import Order, Outcome
from medsynth_common.errors import BadMessage, Problem
from medsynth_common.labels import segmenter_target
from medsynth_common.learning.losses import segmentation_loss
from medsynth_common.learning.optimizer_state import load_optimizer, optimizer_tensors
from medsynth_common.learning.volumes import Volume, as_batch, draw_crops
from medsynth_common.networks import build_segmenter
from medsynth_common.plan import Precision, SegmentSettings
from medsynth_common.privacy.patients import (
    PatientOptimizer,
    poisson_sample,
    require_private_ready,
)
from medsynth_common.tensors import state_of, under, with_prefix


def train_segmenter(order: Order) -> Outcome:
    """Take the plan's private steps from the plan's weights; return the privatised weights."""
    settings = order.plan.settings
    if not isinstance(settings, SegmentSettings):
        raise BadMessage(
            Problem(name="plan: settings", value=settings.stage, wanted="settings of segment")
        )
    mechanism = order.mechanism("segmenter")
    segmenter = order.network("segmenter", build_segmenter).train()
    require_private_ready(segmenter)
    parameters = _trained(segmenter, few=settings.parameters == "few")
    start = [parameter.detach().clone() for parameter in parameters]
    adam = torch.optim.Adam(parameters, lr=settings.learning_rate, betas=(0.9, 0.99))
    load_optimizer(adam, under("segmenter-optimizer", order.state))
    optimizer = PatientOptimizer(
        adam,
        mechanism,
        expected_patients=mechanism.sampling_rate * order.declared,
        randomness=order.randomness,
        bfloat16=settings.precision is Precision.BFLOAT16,
    )

    def loss_of(volume: Volume) -> Callable[[], Tensor]:
        images, labels = draw_crops(
            volume,
            crop=order.plan.crop,
            count=settings.crops,
            randomness=order.randomness,
        )
        return lambda: _loss(segmenter, images.to(order.device), labels.to(order.device), order)

    def drift() -> Tensor:
        """FedProx (Li et al. 2020): depends on weights alone, so it needs no noise (R8)."""
        squares = [(p - p0).square().sum() for p, p0 in zip(parameters, start, strict=True)]
        return settings.proximal / 2 * torch.stack(squares).sum()

    for _ in order.steps("segmenter", mechanism.steps):
        chosen = poisson_sample(len(order.patients), mechanism.sampling_rate, order.randomness)
        losses = [loss_of(order.patients[index]) for index in chosen]
        optimizer.step(losses, drift if settings.proximal else None)
    return Outcome(
        weights=with_prefix("segmenter", state_of(segmenter)),
        own={},
        state={
            **order.state,
            **with_prefix("segmenter-optimizer", optimizer_tensors(adam)),
        },
    )


def _trained(segmenter: nn.Module, *, few: bool) -> list[nn.Parameter]:
    """Choose what private steps move, and hold the rest: norms, activations, biases and the head.

    Of a vector every entry stands for a whole channel, which is why so few of them go so far.
    """
    if few:
        last = [m for m in segmenter.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)][-1]
        for parameter in segmenter.parameters():
            parameter.requires_grad_(parameter.dim() == 1 or parameter is last.weight)
    return [parameter for parameter in segmenter.parameters() if parameter.requires_grad]


def _loss(segmenter: nn.Module, images: Tensor, labels: Tensor, order: Order) -> Tensor:
    dims = order.plan.networks.spatial_dims
    target = as_batch(segmenter_target(labels).unsqueeze(1), dims)[:, 0]
    return segmentation_loss(segmenter(as_batch(images, dims)), target)
