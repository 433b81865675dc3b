"""What a stage's work takes and gives back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from medsynth_common.errors import BadMessage, Problem
from medsynth_common.labels import CONTRASTS
from medsynth_common.learning.volumes import Volume
from medsynth_common.networks import Network, NetworkSettings, load_network
from medsynth_common.plan import PlanHeader
from medsynth_common.privacy.mechanism import Mechanism
from medsynth_common.privacy.randomness import Randomness
from medsynth_common.tensors import under


@dataclass(frozen=True, kw_only=True)
class Order:
    """One round's work at this site.

    Attributes:
        plan: what the coordinator asks.
        weights: what it starts from.
        patients: the site's own; they stay here.
        declared: the site's public size, the denominator of every private mean.
        state: what this site kept from earlier rounds (its critic, its optimizers).
        randomness: where noise and the choice of patients come from.
        device: where to train.
        tell_step: hears which step of how many is next, and for what; the site's eyes alone.

    """

    plan: PlanHeader
    weights: Mapping[str, Tensor]
    patients: Sequence[Volume]
    declared: int
    state: Mapping[str, Tensor]
    randomness: Randomness
    device: torch.device
    tell_step: Callable[[str, int, int], None] = lambda _of, _step, _steps: None

    def steps(self, of: str, count: int) -> Iterator[int]:
        """Count `count` steps from 0, telling of each before it is taken."""
        for number in range(count):
            self.tell_step(of, number + 1, count)
            yield number

    @cached_property
    def stand_in(self) -> Volume:
        """Nobody: an empty volume on the plan's grid, worked on where no patient was sampled.

        What comes of it is dropped. Whether a step can be done, in memory above all, is then the
        same with and without patients, and an error does not tell of them.
        """
        grid = self.plan.grid
        return Volume(
            image=torch.zeros(len(CONTRASTS), *grid),
            labels=torch.zeros(grid, dtype=torch.uint8),
        )

    def mechanism(self, name: str) -> Mechanism:
        """Find the plan's mechanism of this name. Raises `BadMessage` when it has none."""
        for mechanism in self.plan.mechanisms:
            if mechanism.name == name:
                return mechanism
        raise BadMessage(
            Problem(
                name="plan: mechanisms",
                value=str([mechanism.name for mechanism in self.plan.mechanisms]),
                wanted=f"one named {name!r} for stage {self.plan.stage}",
            )
        )

    def network(self, part: str, build: Callable[[NetworkSettings], Network]) -> Network:
        """Build a network on the device with the plan's weights of `part`."""
        weights = under(part, self.weights)
        return load_network(build, self.plan.networks, weights, device=self.device)

    def torch_generator(self) -> torch.Generator:
        """Give a fresh generator for what is not privacy noise: crops' fakes, augmentation."""
        seed = int(self.randomness.uniform(1)[0] * 2**53)
        return torch.Generator().manual_seed(seed)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a stage gives back.

    Attributes:
        weights: privatised, for the strategy to combine.
        own: privatised, stays this site's at the coordinator.
        state: stays at the site.

    """

    weights: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
