"""The seed paper's discriminator: a whole PatchGAN, trained by DP-SGD from public weights."""

from collections.abc import Callable

import torch
from torch import Tensor

from medsynth_client.order import Order
from medsynth_common.labels import one_hot
from medsynth_common.learning.losses import fake_loss, fooling_loss, real_loss
from medsynth_common.learning.optimizer_state import load_optimizer, optimizer_tensors
from medsynth_common.learning.volumes import Volume, as_batch, draw_crops, mirrored
from medsynth_common.networks import build_critic, load_network
from medsynth_common.plan import AdversarialSettings, Precision
from medsynth_common.privacy.patients import (
    Loss,
    PatientOptimizer,
    poisson_sample,
    require_private_ready,
)
from medsynth_common.tensors import state_of, under, with_prefix

#: Makes fakes like a patient's crops, images (n, 4, *crop), from their classes.
Imitate = Callable[[Tensor, Tensor], Tensor]


class PatchGanCritic:
    """A discriminator of crops; starts from the publicly trained one."""

    def __init__(self, order: Order) -> None:
        assert isinstance(order.plan.settings, AdversarialSettings)
        self._order = order
        self._settings = order.plan.settings
        self._dims = order.plan.networks.spatial_dims
        self._critic = load_network(
            build_critic,
            order.plan.networks,
            under("patchgan", order.state) or under("critic", order.weights),
            device=order.device,
        ).train()
        require_private_ready(self._critic)
        self._adam = torch.optim.Adam(
            self._critic.parameters(), lr=self._settings.critic_learning_rate, betas=(0.5, 0.99)
        )
        load_optimizer(self._adam, under("patchgan-optimizer", order.state))
        self._sampling_rate = order.mechanism("critic").sampling_rate
        self._optimizer = PatientOptimizer(
            self._adam,
            order.mechanism("critic"),
            expected_patients=self._sampling_rate * order.declared,
            randomness=order.randomness,
            bfloat16=self._settings.precision is Precision.BFLOAT16,
        )

    def learn(self, fakes: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Take the mechanism's DP-SGD steps: patients clipped and noised, fakes added as public."""
        game = self._settings.game
        for _ in self._order.steps("critic", self._order.mechanism("critic").steps):
            self._step(self._real_loss, lambda: fake_loss(self._judge_crops(*fakes()), game).mean())

    def learn_from_pairs(self, imitator: Callable[[], Imitate]) -> None:
        """Take one step in which each sampled patient brings fakes of its own label map.

        They are as private as the patient is: real and fake half make one gradient, clipped as
        one. In return the critic cannot tell the two apart by whose label map they are of. Each has
        an `imitator` of its own: the others' fakes must not change when a patient is left out.
        """
        self._step(lambda volume: self._pair_loss(volume, imitator()))

    def loss(self, classes: Tensor, image: Tensor) -> Tensor:
        """The generator's half of the game."""
        return fooling_loss(self._judge_crops(classes, image), self._settings.game).mean()

    def loss_of_crops(self, classes: Tensor, images: Tensor) -> Tensor:
        """The same, for crops as patients are cut: (n, ..., *crop)."""
        return fooling_loss(self._judge(classes, images), self._settings.game).mean()

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

    def _step(self, loss_of: Callable[[Volume], Loss], public_loss: Loss | None = None) -> None:
        patients = self._order.patients
        chosen = poisson_sample(len(patients), self._sampling_rate, self._order.randomness)
        self._optimizer.step(
            (loss_of(patients[index]) for index in chosen),
            public_loss,
            stand_in=lambda: loss_of(self._order.stand_in)(),
        )

    def _real_loss(self, volume: Volume) -> Loss:
        images, labels = self._crops(volume)
        device, game = self._order.device, self._settings.game
        return lambda: real_loss(
            self._judge(one_hot(labels).to(device), images.to(device)), game
        ).mean()

    def _pair_loss(self, volume: Volume, imitate: Imitate) -> Loss:
        images, labels = mirrored(*self._crops(volume), self._order.randomness)
        images, classes = images.to(self._order.device), one_hot(labels).to(self._order.device)
        game = self._settings.game

        def loss() -> Tensor:
            with torch.no_grad():
                fakes = imitate(images, classes)
            real, fake = self._judge(classes, images), self._judge(classes, fakes)
            return real_loss(real, game).mean() + fake_loss(fake, game).mean()

        return loss
