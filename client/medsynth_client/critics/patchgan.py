"""The seed paper's discriminator: a whole PatchGAN, trained by DP-SGD from public weights."""

from collections.abc import Callable

import torch
from torch import Tensor

from medsynth_client.order import Order
from medsynth_common.labels import one_hot
from medsynth_common.learning.optimizer_state import load_optimizer, optimizer_tensors
from medsynth_common.learning.volumes import Volume, as_batch, draw_crops
from medsynth_common.networks import build_critic
from medsynth_common.plan import AdversarialSettings
from medsynth_common.privacy.patients import (
    PatientOptimizer,
    poisson_sample,
    require_private_ready,
)
from medsynth_common.tensors import state_of, under, with_prefix


class PatchGanCritic:
    """A discriminator of crops; starts from the publicly trained one."""

    def __init__(self, order: Order) -> None:
        assert isinstance(order.plan.settings, AdversarialSettings)
        self._order = order
        self._settings = order.plan.settings
        self._dims = order.plan.networks.spatial_dims
        self._critic = build_critic(order.plan.networks)
        self._critic.load_state_dict(
            under("patchgan", order.state) or under("critic", order.weights)
        )
        self._critic.to(order.device).train()
        require_private_ready(self._critic)
        self._adam = torch.optim.Adam(
            self._critic.parameters(), lr=self._settings.critic_learning_rate, betas=(0.5, 0.99)
        )
        load_optimizer(self._adam, under("patchgan-optimizer", order.state))

    def learn(self, fakes: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Take the mechanism's DP-SGD steps: patients clipped and noised, fakes added as public."""
        order, mechanism = self._order, self._order.mechanism("critic")
        optimizer = PatientOptimizer(
            self._adam,
            mechanism,
            expected_patients=mechanism.sampling_rate * order.declared,
            randomness=order.randomness,
        )
        for _ in range(mechanism.steps):
            chosen = poisson_sample(len(order.patients), mechanism.sampling_rate, order.randomness)
            losses = [self._real_loss(order.patients[index]) for index in chosen]
            optimizer.step(losses, lambda: torch.relu(1 + self._judge_crops(*fakes())).mean())

    def loss(self, classes: Tensor, image: Tensor) -> Tensor:
        """The generator's half of the hinge game."""
        return -self._judge_crops(classes, image).mean()

    def state(self) -> dict[str, Tensor]:
        """Keep the discriminator and its optimizer."""
        return {
            **with_prefix("patchgan", state_of(self._critic)),
            **with_prefix("patchgan-optimizer", optimizer_tensors(self._adam)),
        }

    def _judge(self, classes: Tensor, image: Tensor) -> Tensor:
        logits: Tensor = self._critic(as_batch(torch.cat([classes, image], 1), self._dims))[-1]
        return logits

    def _judge_crops(self, classes: Tensor, image: Tensor) -> Tensor:
        """Judge fakes cut as patients are: else it learns to tell crops from whole volumes."""
        cut = [
            self._crops(Volume(image=one, labels=labels))
            for one, labels in zip(image, classes.argmax(1), strict=True)
        ]
        images, labels = (torch.cat(parts) for parts in zip(*cut, strict=True))
        return self._judge(one_hot(labels), images)

    def _crops(self, volume: Volume) -> tuple[Tensor, Tensor]:
        return draw_crops(
            volume,
            crop=self._order.plan.crop,
            count=self._settings.crops,
            randomness=self._order.randomness,
        )

    def _real_loss(self, volume: Volume) -> Callable[[], Tensor]:
        images, labels = self._crops(volume)
        device = self._order.device
        return lambda: torch.relu(
            1 - self._judge(one_hot(labels).to(device), images.to(device))
        ).mean()
