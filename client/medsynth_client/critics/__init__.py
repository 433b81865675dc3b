"""The site's discriminator, in three sizes behind one small interface. It never leaves the site."""

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from torch import Tensor

from medsynth_client.critics.head import HeadCritic
from medsynth_client.critics.mean_features import MeanFeaturesCritic
from medsynth_client.critics.patchgan import PatchGanCritic
from medsynth_client.order import Order
from medsynth_common.plan import Critic


class SiteCritic(Protocol):
    """A discriminator that learns from patients privately and judges fakes publicly."""

    def learn(self, fakes: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Spend the plan's `critic` mechanism on the patients.

        `fakes` draws public (classes, image) pairs from the generator, without gradient.
        """

    def loss(self, classes: Tensor, image: Tensor) -> Tensor:
        """How real the critic finds fakes; lower is more real. Post-processing: costs nothing."""

    def state(self) -> dict[str, Tensor]:
        """What the site keeps until the next round."""


CRITICS: Final[Mapping[Critic, Callable[[Order], SiteCritic]]] = {
    Critic.MEAN_FEATURES: MeanFeaturesCritic,
    Critic.HEAD: HeadCritic,
    Critic.PATCHGAN: PatchGanCritic,
}
