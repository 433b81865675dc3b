"""Stage segment: DP-SGD on the shared tumour segmenter, patient by patient."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from medsynth_client.order import Order, Outcome
from medsynth_common.errors import BadMessage, Problem
from medsynth_common.learning.directions import Directions
from medsynth_common.learning.guided_steps import GuidedOptimizer
from medsynth_common.learning.losses import segmenter_loss
from medsynth_common.learning.optimizer_state import load_optimizer, optimizer_tensors
from medsynth_common.learning.volumes import Volume, draw_crops
from medsynth_common.networks import build_segmenter
from medsynth_common.plan import Precision, SegmentSettings
from medsynth_common.privacy.patients import (
    Loss,
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
    parameters = list(segmenter.parameters())
    take_step, remembered = _stepping(order, settings, parameters)

    def loss_of(volume: Volume) -> Loss:
        images, labels = draw_crops(
            volume,
            crop=order.plan.crop,
            count=settings.crops,
            randomness=order.randomness,
        )
        return lambda: segmenter_loss(
            segmenter,
            images.to(order.device),
            labels.to(order.device),
            spatial_dims=order.plan.networks.spatial_dims,
        )

    for _ in order.steps("segmenter", mechanism.steps):
        chosen = poisson_sample(len(order.patients), mechanism.sampling_rate, order.randomness)
        # One after the other: memory must not tell how many they are.
        take_step(
            (loss_of(order.patients[index]) for index in chosen),
            lambda: loss_of(order.stand_in)(),
        )
    return Outcome(
        weights=with_prefix("segmenter", state_of(segmenter)),
        own={},
        state={**order.state, **with_prefix("segmenter-optimizer", remembered())},
    )


def _stepping(
    order: Order, settings: SegmentSettings, parameters: Sequence[nn.Parameter]
) -> tuple[Callable[[Iterable[Loss], Loss], None], Callable[[], Mapping[str, Tensor]]]:
    """Give what takes a private step, and what tells Adam's memory after all of them.

    A step takes the sampled patients' losses, and nobody's where nobody is sampled.
    """
    mechanism = order.mechanism("segmenter")
    expected = mechanism.sampling_rate * order.declared
    bfloat16 = settings.precision is Precision.BFLOAT16
    if settings.directions:
        brought = {
            name: tensor.to(order.device)
            for name, tensor in under("directions", order.weights).items()
        }
        guided = GuidedOptimizer(
            parameters,
            Directions.from_tensors(brought),
            mechanism,
            expected_patients=expected,
            randomness=order.randomness,
            learning_rate=settings.learning_rate,
            sites=settings.sites,
            proximal=settings.proximal,
            bfloat16=bfloat16,
        )
        return lambda losses, stand_in: guided.step(losses, stand_in=stand_in), dict
    adam = torch.optim.Adam(parameters, lr=settings.learning_rate, betas=(0.9, 0.99))
    load_optimizer(adam, under("segmenter-optimizer", order.state))
    everywhere = PatientOptimizer(
        adam,
        mechanism,
        expected_patients=expected,
        randomness=order.randomness,
        bfloat16=bfloat16,
    )
    start = [parameter.detach().clone() for parameter in parameters]

    def drift() -> Tensor:
        """FedProx (Li et al. 2020): depends on weights alone, so it needs no noise (R8)."""
        squares = [(p - p0).square().sum() for p, p0 in zip(parameters, start, strict=True)]
        return settings.proximal / 2 * torch.stack(squares).sum()

    def step(losses: Iterable[Loss], stand_in: Loss) -> None:
        everywhere.step(losses, drift if settings.proximal else None, stand_in=stand_in)

    return step, lambda: optimizer_tensors(adam)
