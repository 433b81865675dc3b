"""The default critic: the closed-form linear discriminator on frozen public features.

After DP-MERF and DP-MEPF (Harder et al. 2021, 2023): a few Gaussian releases of the patients'
mean feature vector replace thousands of noisy gradient steps. Releases of several rounds are
averaged: that loses nothing against one release of the same total cost.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from medsynth_client.order import Order
from medsynth_common.learning.features import FeatureScale, patient_features, standard_features
from medsynth_common.networks import build_critic
from medsynth_common.privacy.patients import poisson_sample, release_mean
from medsynth_common.tensors import under


class MeanFeaturesCritic:
    """Compares the noisy mean of the patients' features with the fakes'."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._dims = order.plan.networks.spatial_dims
        self._scale = FeatureScale.from_tensors(
            {name: t.to(order.device) for name, t in under("features", order.weights).items()}
        )
        self._trunk = build_critic(order.plan.networks)
        self._trunk.load_state_dict(under("critic", order.weights))
        self._trunk.to(order.device).eval().requires_grad_(False)
        kept = under("mean-features", order.state)
        self._sum = kept.get("sum", torch.zeros_like(self._scale.centre, device="cpu"))
        self._releases = kept.get("releases", torch.zeros(()))

    @torch.no_grad()
    def learn(self, fakes: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Release the patients' mean features `steps` times."""
        order, mechanism = self._order, self._order.mechanism("critic")
        for _ in range(mechanism.steps):
            chosen = poisson_sample(len(order.patients), mechanism.sampling_rate, order.randomness)
            vectors = (
                patient_features(
                    self._trunk, order.patients[index], self._scale, self._dims, order.device
                )
                for index in chosen
            )
            released = release_mean(
                vectors,
                mechanism,
                expected_patients=mechanism.sampling_rate * order.declared,
                randomness=order.randomness,
                shape=self._sum.shape,
            )
            self._sum = self._sum + released.float()
            self._releases = self._releases + 1

    def loss(self, classes: Tensor, image: Tensor) -> Tensor:
        """Squared distance of mean features, unbiased: the batch's halves are multiplied."""
        target = (self._sum / self._releases.clamp(min=1)).to(image.device)
        features = standard_features(self._trunk, classes, image, self._scale, self._dims)
        first, second = features[0::2].mean(0) - target, features[1::2].mean(0) - target
        return (first * second).mean()

    def state(self) -> dict[str, Tensor]:
        """Keep the sum of the releases and their number."""
        return {"mean-features.sum": self._sum, "mean-features.releases": self._releases}
