"""Stage metrics, the coordinator's half: pool the sites' noisy scores into one Dice per region.

It is off unless the settings ask for it, it comes last, and nothing that a run does depends on it.
"""

from collections.abc import Mapping, Sequence

import torch

from medsynth_common.learning.dice import mean_dice
from medsynth_common.plan import MetricsSettings, RoundPlan, Stage
from medsynth_server.budget import Budget
from medsynth_server.model import Model
from medsynth_server.record import NoisedMetric
from medsynth_server.stages.asking import Asking
from medsynth_server.strategies import Answer

_SCORES, _NOISE = "metrics.scores", "metrics.noise"


class MetricsStage:
    """One round: every site scores the federated segmenter on its own patients."""

    name = Stage.METRICS
    rounds = 1

    def __init__(self, asking: Asking, budget: Budget) -> None:
        self._asking = asking
        self._mechanism = budget.for_round("metrics", steps=1)

    def plan(self, model: Model, site: str, round: int) -> RoundPlan | None:
        """Send the segmenter as it is."""
        return self._asking.plan(
            stage=self.name,
            round=round,
            site=site,
            settings=MetricsSettings(),
            mechanisms=[self._mechanism],
            weights=model.part("segmenter"),
        )

    def combine(self, model: Model, round: int, answers: Sequence[Answer]) -> Model:
        """Add the sites' sums, and the noise that is on each of their numbers."""
        sizes = [answer.update.header.declared_patients for answer in answers]
        sums = [
            size * answer.update.own[_SCORES].double()
            for size, answer in zip(sizes, answers, strict=True)
        ]
        # Each site put noise on a sum over rate * size patients, and gave it back over those.
        each = self._mechanism.noise_std / self._mechanism.sampling_rate
        noise = torch.tensor(each * len(answers) ** 0.5 / sum(sizes))
        return model.updated({_SCORES: torch.stack(sums).sum(0) / sum(sizes), _NOISE: noise})

    def after(self, model: Model, round: int) -> tuple[Model, Mapping[str, float]]:
        """Nothing is left to do."""
        return model, {}

    def site_metrics(self, model: Model) -> Mapping[str, NoisedMetric]:
        """Give Dice of each region over all sites' training patients, with the noise's SD."""
        found = mean_dice(model.tensors[_SCORES], noise=float(model.tensors[_NOISE]))
        return {
            f"Dice at the sites, {region}": NoisedMetric(
                value=dice[0] if dice else None, noise_sd=dice[1] if dice else None
            )
            for region, dice in found.items()
        }
