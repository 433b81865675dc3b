"""Small trainings to be attacked, made of the private steps that hospitals take.

Each trains with or without one more patient, the canary, and gives the score of an attacker who
sees every released step (white-box), knows every patient, and does not know who was sampled and
what the noise was. That is what differential privacy grants an attacker.

The canary is chosen to weigh as much as it may: its gradient, or vector, is far longer than the
clip, and all of its crops pull the same way.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import cycle
from typing import Final, Protocol

import torch
from torch import Tensor, nn

from medsynth_common.labels import CONTRASTS, Tissue, one_hot
from medsynth_common.learning.directions import Directions
from medsynth_common.learning.guided_steps import GuidedOptimizer
from medsynth_common.learning.losses import segmenter_loss
from medsynth_common.learning.volumes import Volume, as_batch, draw_crops
from medsynth_common.networks import NetworkSettings, build_critic, build_segmenter
from medsynth_common.privacy.accountant import Request
from medsynth_common.privacy.mechanism import Gaussian
from medsynth_common.privacy.patients import (
    Loss,
    PatientOptimizer,
    poisson_sample,
    release_mean,
    require_private_ready,
)
from medsynth_common.privacy.randomness import Randomness
from medsynth_server.public_directions import find_directions

#: Patients beside the canary, and the size that the site declares, in both worlds.
OTHERS: Final = 3
DECLARED: Final = OTHERS + 1
#: Crops of each patient in a step.
CROPS: Final = 4

_SIDES: Final = (8, 8, 1)  # a crop is the whole volume: the attacker knows it
_NETWORKS: Final = NetworkSettings(
    spatial_dims=2, critic_channels=4, critic_layers=1, segmenter_channels=(2, 4)
)
_LEARNING_RATE: Final = 0.1
#: Of steps along directions, with how many and from how many public volumes these come.
_GUIDED_RATE: Final = 1e-3
_DIRECTIONS: Final = 8
_PUBLIC: Final = 16
_VECTOR: Final = 56  # as long as the vector of tissue intensities


class Target(StrEnum):
    """What can be audited."""

    SEGMENTER = "segmenter"
    CRITIC = "critic"
    MOMENTS = "moments"


class Training(Protocol):
    """A small private training that an attacker watches."""

    def request(self) -> Request:
        """What it asks of patients; its noise is still open."""

    def score(self, mechanism: Gaussian, *, canary: bool, randomness: Randomness) -> float:
        """Train once, with the canary or without; larger: the attacker believes it was there."""


@dataclass(frozen=True, kw_only=True)
class GradientTraining:
    """DP-SGD, patient by patient: `PatientOptimizer` on Poisson samples.

    Attributes:
        name: of the mechanism.
        network: where every training starts; never changed.
        patient_loss: the mean loss of a network over one patient's crops.
        public_loss: a loss that no patient has a part in; None for none.
        patients: the canary is the last.

    """

    name: str
    network: nn.Module
    patient_loss: Callable[[nn.Module, Volume, Randomness], Tensor]
    public_loss: Callable[[nn.Module], Tensor] | None
    patients: Sequence[Volume]

    def request(self) -> Request:
        """Eight steps in which about half of the patients take part."""
        return _eight_steps(self.name)

    def score(self, mechanism: Gaussian, *, canary: bool, randomness: Randomness) -> float:
        """Sum, over the steps, of what was released along the canary's own gradient."""
        network = deepcopy(self.network)
        parameters = list(network.parameters())
        watched = _Watched(parameters)
        expected = mechanism.sampling_rate * DECLARED
        optimizer = PatientOptimizer(
            watched, mechanism, expected_patients=expected, randomness=randomness
        )
        public = self._bound_public(network)

        def loss_of(patient: Volume) -> Loss:
            return lambda: self.patient_loss(network, patient, randomness)

        there = self.patients if canary else self.patients[:-1]
        score = 0.0
        for _ in range(mechanism.steps):
            # Known before the step: the weights were released by the step before it.
            direction = _gradient(loss_of(self.patients[-1]), parameters)
            known = 0.0 if public is None else _gradient(public, parameters)
            chosen = poisson_sample(len(there), mechanism.sampling_rate, randomness)
            optimizer.step([loss_of(there[index]) for index in chosen], public)
            released = (watched.released - known) * expected / mechanism.clip
            score += float(released @ direction / direction.norm())
        return score

    def _bound_public(self, network: nn.Module) -> Loss | None:
        loss = self.public_loss
        return None if loss is None else lambda: loss(network)


@dataclass(frozen=True, kw_only=True)
class GuidedTraining:
    """DP-SGD along a few public directions: `GuidedOptimizer` on Poisson samples.

    Attributes:
        name: of the mechanism.
        network: where every training starts; never changed.
        directions: along which it goes.
        patient_loss: the mean loss of a network over one patient's crops.
        patients: the canary is the last.

    """

    name: str
    network: nn.Module
    directions: Directions
    patient_loss: Callable[[nn.Module, Volume, Randomness], Tensor]
    patients: Sequence[Volume]

    def request(self) -> Request:
        """Eight steps in which about half of the patients take part."""
        return _eight_steps(self.name)

    def score(self, mechanism: Gaussian, *, canary: bool, randomness: Randomness) -> float:
        """Sum, over the steps, of what was released along the canary's own coordinates."""
        network = deepcopy(self.network)
        parameters = list(network.parameters())
        watched = _WatchedDirections(
            roots=self.directions.roots,
            scale=self.directions.scale,
            reach=self.directions.reach,
        )
        expected = mechanism.sampling_rate * DECLARED
        optimizer = GuidedOptimizer(
            parameters,
            watched,
            mechanism,
            expected_patients=expected,
            randomness=randomness,
            learning_rate=_GUIDED_RATE,
        )

        def loss_of(patient: Volume) -> Loss:
            return lambda: self.patient_loss(network, patient, randomness)

        there = self.patients if canary else self.patients[:-1]
        score = 0.0
        for _ in range(mechanism.steps):
            own = watched.coordinates(_gradient(loss_of(self.patients[-1]), parameters))
            chosen = poisson_sample(len(there), mechanism.sampling_rate, randomness)
            optimizer.step(loss_of(there[index]) for index in chosen)
            released = watched.released[-1] * expected / mechanism.clip
            score += float(released @ own / own.norm())
        return score


@dataclass(frozen=True, kw_only=True)
class MeanTraining:
    """Two releases of a mean of one vector per patient, as the moments are: `release_mean`.

    Attributes:
        name: of the mechanism.
        vectors: one per patient; the canary is the last.

    """

    name: str
    vectors: Sequence[Tensor]

    def request(self) -> Request:
        """Two releases, each of all patients."""
        return Request(name=self.name, share=1.0, clip=1.0, sampling_rate=1.0, steps=2)

    def score(self, mechanism: Gaussian, *, canary: bool, randomness: Randomness) -> float:
        """Sum of what was released along the canary's own vector."""
        there = self.vectors if canary else self.vectors[:-1]
        expected = mechanism.sampling_rate * DECLARED
        direction = self.vectors[-1] / self.vectors[-1].norm()
        score = 0.0
        for _ in range(mechanism.steps):
            chosen = poisson_sample(len(there), mechanism.sampling_rate, randomness)
            mean = release_mean(
                [there[index] for index in chosen],
                mechanism,
                expected_patients=expected,
                randomness=randomness,
                shape=direction.shape,
            )
            score += float(mean @ direction) * expected / mechanism.clip
        return score


class _Watched(torch.optim.SGD):
    """Plain SGD whose gradient an attacker reads off the weights before and after a step."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters, lr=_LEARNING_RATE)
        self.released = torch.empty(0)

    def step(self, closure: object = None) -> None:  # type: ignore[override]  # no closure here
        """Note the released gradient, float64 (parameters,), and take the step."""
        parameters = [one for group in self.param_groups for one in group["params"]]
        self.released = torch.cat([one.grad.double().flatten() for one in parameters])
        super().step()


@dataclass(frozen=True, kw_only=True)
class _WatchedDirections(Directions):
    """Directions along which an attacker reads off the weights how far each step went."""

    released: list[Tensor] = field(default_factory=list)

    def step(self, coordinates: Tensor) -> Tensor:
        """Note the released mean of coordinates, and go on."""
        self.released.append(coordinates.double())
        return super().step(coordinates)


def _eight_steps(name: str) -> Request:
    return Request(name=name, share=1.0, clip=0.01, sampling_rate=0.5, steps=8)


def _gradient(loss: Loss, parameters: Sequence[Tensor]) -> Tensor:
    parts = torch.autograd.grad(loss(), parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([part.double().flatten() for part in parts])


def _segmenter_loss(network: nn.Module, patient: Volume, randomness: Randomness) -> Tensor:
    images, labels = draw_crops(patient, crop=_SIDES, count=CROPS, randomness=randomness)
    return segmenter_loss(network, images, labels, spatial_dims=2)


def _critic_patient_loss(network: nn.Module, patient: Volume, randomness: Randomness) -> Tensor:
    images, labels = draw_crops(patient, crop=_SIDES, count=CROPS, randomness=randomness)
    return torch.relu(1 - _judge(network, one_hot(labels), images)).mean()


def _judge(network: nn.Module, classes: Tensor, images: Tensor) -> Tensor:
    logits: Tensor = network(as_batch(torch.cat([classes, images], 1), 2))[-1]
    return logits


def _segmenter() -> GuidedTraining:
    network = _ready(build_segmenter)
    public = zip(*_volumes(_PUBLIC, seed=4), strict=True)
    crops = ((image[None], labels[None]) for image, labels in cycle(public))
    return GuidedTraining(
        name=Target.SEGMENTER,
        network=network,
        directions=find_directions(network, crops, count=_DIRECTIONS, spatial_dims=2),
        patient_loss=_segmenter_loss,
        patients=_patients(),
    )


def _critic() -> GradientTraining:
    fakes, labels = _volumes(4, seed=2)
    classes = one_hot(labels)
    return GradientTraining(
        name=Target.CRITIC,
        network=_ready(build_critic),
        patient_loss=_critic_patient_loss,
        public_loss=lambda network: torch.relu(1 + _judge(network, classes, fakes)).mean(),
        patients=_patients(),
    )


def _moments() -> MeanTraining:
    draw = torch.Generator().manual_seed(3)
    vectors = torch.randn(DECLARED, _VECTOR, generator=draw, dtype=torch.float64)
    return MeanTraining(name=Target.MOMENTS, vectors=list(vectors))


def _ready(build: Callable[[NetworkSettings], nn.Module]) -> nn.Module:
    """Build a network that starts from the same public weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = build(_NETWORKS).train()
    require_private_ready(network)
    return network


def _volumes(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Noise for brains: images (count, 4, x, y, z) and labels (count, x, y, z)."""
    draw = torch.Generator().manual_seed(seed)
    images = torch.randn(count, len(CONTRASTS), *_SIDES, generator=draw)
    return images, torch.randint(len(Tissue), (count, *_SIDES), generator=draw).byte()


def _patients() -> list[Volume]:
    pairs = zip(*_volumes(DECLARED, seed=0), strict=True)
    return [Volume(image=image, labels=labels) for image, labels in pairs]


#: How each target's training is made.
TRAININGS: Final[Mapping[Target, Callable[[], Training]]] = {
    Target.SEGMENTER: _segmenter,
    Target.CRITIC: _critic,
    Target.MOMENTS: _moments,
}
