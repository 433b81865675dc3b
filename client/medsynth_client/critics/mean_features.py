"""The default critic: the closed-form linear discriminator on frozen public features.

After DP-MERF and DP-MEPF (Harder et al. 2021, 2023): a few Gaussian releases of the patients'
mean feature vector replace thousands of noisy gradient steps. Releases of several rounds are
averaged: that loses nothing against one release of the same total cost.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from medsynth_client.order import Order
from medsynth_common.errors import BadMessage, Problem
from medsynth_common.labels import TISSUES, TUMOUR, one_hot
from medsynth_common.learning.features import (
    FeatureScale,
    feature_presence,
    patient_features,
    spread_over_features,
    standard_features,
    tissue_presence,
)
from medsynth_common.learning.volumes import Volume
from medsynth_common.networks import build_critic
from medsynth_common.privacy.patients import poisson_sample, release_mean
from medsynth_common.tensors import under

#: However few patients seem to have a tissue: below it, noise would be blown up without end.
_LEAST_SHARE: Final = 0.2


class MeanFeaturesCritic:
    """Compares the noisy mean of the patients' features with the fakes'."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._dims = order.plan.networks.spatial_dims
        self._scale = FeatureScale.from_tensors(
            {name: t.to(order.device) for name, t in under("features", order.weights).items()}
        )
        self._trunk = order.network("critic", build_critic).eval().requires_grad_(False)
        length = self._scale.centre.numel() + len(TUMOUR)
        kept = under("mean-features", order.state)
        self._sum = kept.get("sum", torch.zeros(length))
        self._releases = kept.get("releases", torch.zeros(()))
        # Now, whoever is sampled: found out at the first patient it would tell that there is one.
        if self._sum.numel() != length:
            raise BadMessage(
                Problem(
                    name="plan: networks",
                    value=f"a critic of {length} numbers",
                    wanted=f"the {self._sum.numel()} of the run's earlier rounds",
                )
            )

    @torch.no_grad()
    def learn(self, fakes: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Release the patients' mean features `steps` times."""
        order, mechanism = self._order, self._order.mechanism("critic")
        for _ in order.steps("critic", mechanism.steps):
            chosen = poisson_sample(len(order.patients), mechanism.sampling_rate, order.randomness)
            released = release_mean(
                (self._vector(order.patients[index]) for index in chosen),
                mechanism,
                expected_patients=mechanism.sampling_rate * order.declared,
                randomness=order.randomness,
                shape=self._sum.shape,
                stand_in=lambda: self._vector(order.stand_in),
            )
            self._sum = self._sum + released.float().cpu()  # kept as all state is
            self._releases = self._releases + 1

    def loss(self, classes: Tensor, image: Tensor) -> Tensor:
        """Squared distance of mean features, unbiased: the batch's halves are multiplied."""
        target = self._target().to(image.device)
        features = standard_features(self._trunk, classes, image, self._scale, self._dims)
        here = feature_presence(classes, features.shape[1])
        first, second = (
            (features[half::2] * here[half::2]).sum(0) / here[half::2].sum(0).clamp(min=1) - target
            for half in (0, 1)
        )
        both = ((here[0::2].sum(0) > 0) & (here[1::2].sum(0) > 0)).float()
        return (first * second * both).sum() / both.sum().clamp(min=1)

    def state(self) -> dict[str, Tensor]:
        """Keep the sum of the releases and their number."""
        return {"mean-features.sum": self._sum, "mean-features.releases": self._releases}

    def _vector(self, patient: Volume) -> Tensor:
        """What of one patient is released: its features, and which tumour tissues it has."""
        features = patient_features(
            self._trunk, patient, self._scale, self._dims, self._order.device
        )
        return torch.cat([features, _tumour(patient.labels.unsqueeze(0))[0].to(features)])

    def _target(self) -> Tensor:
        """Mean features of those patients that have the tissue a feature is of.

        Patients without a tumour bring 0 for its features. How many there are differs between
        hospitals and public label maps, and would else be taken for a difference of texture.
        """
        mean = self._sum / self._releases.clamp(min=1)
        features, seen = mean[: -len(TUMOUR)], mean[-len(TUMOUR) :]
        share = torch.ones(len(TISSUES))
        share[list(TUMOUR)] = seen.clamp(min=_LEAST_SHARE, max=1.0)
        return features / spread_over_features(share.unsqueeze(0), len(features))[0]


def _tumour(labels: Tensor) -> Tensor:
    """Which tumour tissues label maps (n, *grid) have: (n, 3)."""
    return tissue_presence(one_hot(labels))[:, list(TUMOUR)]
