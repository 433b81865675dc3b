"""Stage segment, the coordinator's half: free training on synthetic pairs, then federated rounds.

Synthetic pairs are made from public label maps in the sites' released styles: post-processing of
the moments, so training on them costs no privacy. In the reference trials it was the larger part
of the gain.
"""

from collections.abc import Mapping, Sequence

import torch

from medsynth_common.plan import RoundPlan, SegmentSettings, Stage
from medsynth_common.tensors import under, with_prefix
from medsynth_server.budget import Budget
from medsynth_server.config import Segment
from medsynth_server.model import Model
from medsynth_server.segmenter_training import train_on
from medsynth_server.stages.asking import Asking
from medsynth_server.strategies import Answer, Combiner
from medsynth_server.synthesis import Painter, crop_batches


class SegmentStage:
    """Round 1 is the coordinator's own, on synthetic pairs; the others are the sites'."""

    name = Stage.SEGMENT

    def __init__(
        self, asking: Asking, budget: Budget, *, sites: Sequence[str], device: torch.device
    ) -> None:
        self._asking, self._budget = asking, budget
        self._settings: Segment = asking.config.segment
        self._sites, self._device = list(sites), device
        self._combiner = Combiner(asking.config.federation.strategy)
        self.rounds = 1 + self._settings.rounds

    def plan(self, model: Model, site: str, round: int) -> RoundPlan | None:
        """Ask for private steps on the segmenter."""
        if round == 1:
            return None
        own = SegmentSettings.model_fields.keys() - {"stage"}
        return self._asking.plan(
            stage=self.name,
            round=round,
            site=site,
            settings=SegmentSettings(**{key: getattr(self._settings, key) for key in own}),
            mechanisms=[self._budget.for_round("segmenter", steps=self._settings.steps)],
            weights=model.part("segmenter"),
        )

    def combine(self, model: Model, round: int, answers: Sequence[Answer]) -> Model:
        """Combine the privatised weights by the strategy."""
        memory = under("strategy.segment", model.tensors)
        weights, memory = self._combiner.combine(
            model.part("segmenter"), answers, round=round - 1, memory=memory
        )
        return model.updated({**weights, **with_prefix("strategy.segment", memory)})

    def after(self, model: Model, round: int) -> tuple[Model, Mapping[str, float]]:
        """In round 1, train on synthetic pairs."""
        if round > 1 or not self._settings.free_steps:
            return model, {}
        seed = self._asking.public_seed
        painter = Painter(model, self._sites, grid=self._asking.config.grid, device=self._device)
        segmenter, loss = train_on(
            crop_batches(
                painter.batches(seed=seed + 1, batch=2, fresh=48),
                crop=self._asking.config.crop,
                seed=seed + 1,
                device=self._device,
            ),
            model.segmenter(self._device),
            steps=self._settings.free_steps,
            spatial_dims=model.networks.spatial_dims,
            seed=seed + 2,
        )
        return model.updated(with_prefix("segmenter", segmenter)), {"segmenter": loss}
