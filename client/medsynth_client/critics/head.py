"""A linear discriminator on frozen public features, its weights trained by DP-SGD."""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from medsynth_client.order import Order
from medsynth_common.learning.features import FeatureScale, patient_features, standard_features
from medsynth_common.learning.optimizer_state import load_optimizer, optimizer_tensors
from medsynth_common.networks import build_critic
from medsynth_common.plan import AdversarialSettings
from medsynth_common.privacy.patients import PatientOptimizer, poisson_sample
from medsynth_common.tensors import state_of, under, with_prefix

#: The stand-in's index.
_NOBODY: Final = -1


class HeadCritic:
    """The frozen trunk is public; only the head has seen patients, through DP-SGD."""

    def __init__(self, order: Order) -> None:
        assert isinstance(order.plan.settings, AdversarialSettings)
        self._order = order
        self._dims = order.plan.networks.spatial_dims
        self._scale = FeatureScale.from_tensors(
            {name: t.to(order.device) for name, t in under("features", order.weights).items()}
        )
        self._trunk = order.network("critic", build_critic).eval().requires_grad_(False)
        self._head = nn.Linear(self._scale.centre.numel(), 1).to(order.device)
        nn.init.zeros_(self._head.weight)
        nn.init.zeros_(self._head.bias)
        kept = under("head", order.state)
        if kept:
            self._head.load_state_dict(kept)
        self._adam = torch.optim.Adam(
            self._head.parameters(), lr=order.plan.settings.critic_learning_rate
        )
        load_optimizer(self._adam, under("head-optimizer", order.state))
        self._features: dict[int, Tensor] = {}

    def learn(self, fakes: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Take the mechanism's DP-SGD steps: patients clipped and noised, fakes added as public."""
        order, mechanism = self._order, self._order.mechanism("critic")
        optimizer = PatientOptimizer(
            self._adam,
            mechanism,
            expected_patients=mechanism.sampling_rate * order.declared,
            randomness=order.randomness,
        )
        for _ in order.steps("critic", mechanism.steps):
            chosen = poisson_sample(len(order.patients), mechanism.sampling_rate, order.randomness)
            optimizer.step(
                (self._real_loss(index) for index in chosen),
                lambda: self._fake_loss(*fakes()),
                stand_in=lambda: self._real_loss(_NOBODY)(),
            )

    def loss(self, classes: Tensor, image: Tensor) -> Tensor:
        """The generator's half of the hinge game."""
        return -self._judge(classes, image).mean()

    def state(self) -> dict[str, Tensor]:
        """Keep the head and its optimizer."""
        return {
            **with_prefix("head", state_of(self._head)),
            **with_prefix("head-optimizer", optimizer_tensors(self._adam)),
        }

    def _judge(self, classes: Tensor, image: Tensor) -> Tensor:
        features = standard_features(self._trunk, classes, image, self._scale, self._dims)
        return self._head(features)  # type: ignore[no-any-return] # nn.Module's call is untyped

    def _fake_loss(self, classes: Tensor, image: Tensor) -> Tensor:
        return torch.relu(1 + self._judge(classes, image)).mean()

    def _real_loss(self, index: int) -> Callable[[], Tensor]:
        if index not in self._features:
            # The trunk is frozen: a patient's features are the same at every step.
            with torch.no_grad():
                self._features[index] = patient_features(
                    self._trunk,
                    self._order.stand_in if index == _NOBODY else self._order.patients[index],
                    self._scale,
                    self._dims,
                    self._order.device,
                )
        features = self._features[index]
        return lambda: torch.relu(1 - self._head(features)).mean()
