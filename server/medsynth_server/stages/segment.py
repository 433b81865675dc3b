"""Stage segment, the coordinator's half: free training on synthetic pairs, then federated rounds.

Synthetic pairs are made from public label maps in the sites' released styles: post-processing of
the moments, so training on them costs no privacy. In the reference trials it was the larger part
of the gain. They also tell along which directions private steps are worth their noise.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from medsynth_common.plan import RoundPlan, SegmentSettings, Stage
from medsynth_common.tensors import under, with_prefix
from medsynth_server.budget import Budget
from medsynth_server.config import Segment
from medsynth_server.model import Model
from medsynth_server.public_directions import find_directions
from medsynth_server.segmenter_training import train_on
from medsynth_server.stages.asking import Asking
from medsynth_server.strategies import Answer, Combiner
from medsynth_server.synthesis import Painter, crop_batches

#: Label maps that synthetic pairs are painted from, anew every time one comes up.
_MAPS: Final = 48
#: Gradients from each volume that is painted for directions, crops being drawn anew.
_CUTS: Final = 4
#: By how much of the learning rate steps along directions have slowed down at the end.
_SLOWER: Final = 0.8


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
        own = SegmentSettings.model_fields.keys() - {
            "stage",
            "directions",
            "sites",
            "learning_rate",
        }
        weights = model.part("segmenter")
        if self._directions:
            weights |= model.part("directions")
        return self._asking.plan(
            stage=self.name,
            round=round,
            site=site,
            settings=SegmentSettings(
                directions=self._directions,
                sites=len(self._sites),
                learning_rate=self._rate(round),
                **{key: getattr(self._settings, key) for key in own},
            ),
            mechanisms=[self._budget.for_round("segmenter", steps=self._settings.steps)],
            weights=weights,
        )

    def combine(self, model: Model, round: int, answers: Sequence[Answer]) -> Model:
        """Combine the privatised weights by the strategy."""
        memory = under("strategy.segment", model.tensors)
        weights, memory = self._combiner.combine(
            model.part("segmenter"), answers, round=round - 1, memory=memory
        )
        return model.updated({**weights, **with_prefix("strategy.segment", memory)})

    def after(self, model: Model, round: int) -> tuple[Model, Mapping[str, float]]:
        """In round 1, train on synthetic pairs, and find where gradients point after that."""
        if round == self.rounds:
            return model.without("directions"), {}
        if round > 1:
            return model, {}
        told: dict[str, float] = {}
        if self._settings.free_steps:
            segmenter, told["segmenter"] = train_on(
                self._crops(model, seed=1, volumes=2),
                model.segmenter(self._device),
                steps=self._settings.free_steps,
                spatial_dims=model.networks.spatial_dims,
                seed=self._asking.public_seed + 2,
            )
            model = model.updated(with_prefix("segmenter", segmenter))
        if self._directions:
            found = find_directions(
                model.segmenter(self._device),
                self._crops(model, seed=3, volumes=1, cuts=_CUTS),
                count=self._directions,
                spatial_dims=model.networks.spatial_dims,
            )
            model = model.updated(with_prefix("directions", found.tensors()))
        return model, told

    def _crops(
        self, model: Model, *, seed: int, volumes: int, cuts: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of crops from so many volumes in the released styles, each cut so often."""
        seed += self._asking.public_seed
        painter = Painter(model, self._sites, grid=self._asking.config.grid, device=self._device)
        painted = painter.batches(seed=seed, batch=volumes, fresh=_MAPS)
        return crop_batches(
            (batch for batch in painted for _ in range(cuts)),
            crop=self._asking.config.crop,
            seed=seed,
            device=self._device,
        )

    def _rate(self, round: int) -> float:
        """How fast to go in this round; along directions slower and slower, since noise stays."""
        gone = (round - 2) / self._settings.rounds if self._directions else 0.0
        return self._settings.learning_rate * (1 - _SLOWER * gone)

    @property
    def _directions(self) -> int:
        """How many directions private steps go along; without noise, they go wherever they like."""
        protected = self._budget.mechanisms["segmenter"].protected
        return self._settings.directions if protected else 0
