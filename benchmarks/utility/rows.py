"""What is compared: every row of the table, and how its segmenter and its images come about."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import nn

from benchmarks.utility.federation import Cohorts, Everyone, run_rounds
from benchmarks.utility.kept import Kept
from benchmarks.utility.measures import dice_of, frechet_distance, image_errors
from benchmarks.utility.presets import Preset
from medsynth_common.learning.volumes import Volume
from medsynth_common.networks import build_segmenter
from medsynth_common.plan import AdversarialSettings, Critic, Stage
from medsynth_server.budget import plan_budget
from medsynth_server.config import RunConfig
from medsynth_server.federation import FederatedStage
from medsynth_server.model import Model
from medsynth_server.segmenter_training import train_on
from medsynth_server.stages.adversarial import AdversarialStage
from medsynth_server.stages.asking import Asking
from medsynth_server.stages.moments import MomentsStage
from medsynth_server.stages.segment import SegmentStage
from medsynth_server.synthesis import Painter, crop_batches, repeat_batches

#: What was measured of one row; its keys are the table's columns.
Measured = Mapping[str, float]

_CPU: Final = torch.device("cpu")
_EPSILONS: Final = (8.0, 4.0, 2.0, 1.0)
#: The whole product's budget, in the rows about synthetic images.
_WHOLE: Final = 8.0
#: Generator's loss: weight of the critic, of the segmenter's consistency; one of them, as it is
#: by default.
_DEFAULT: Final = AdversarialSettings()
_ALONE: Final = {
    "consistency": (0.0, _DEFAULT.consistency_weight),
    "critic": (_DEFAULT.critic_weight, 0.0),
}


@dataclass(frozen=True)
class Comparison:
    """One seed's federation at one size, and what has been trained on it so far."""

    preset: Preset
    seed: int
    patients: Everyone
    public: Model
    kept: Kept

    @cached_property
    def rows(self) -> dict[str, Callable[[], Measured]]:
        """Every row's name, and what measures it."""
        rows: dict[str, Callable[[], Measured]] = {
            "public weights": lambda: self._found(self.public),
            "pooled": lambda: self._found(self._federated(None, self._pooled)),
            "pooled, as on a set": lambda: self._dice(self._trained(self._pooled["everyone"])),
            "own site only": self._local,
            "FedAvg": lambda: self._found(self._federated(None)),
            f"before private steps, epsilon {_WHOLE:g}": self._before_private_steps,
        }
        for budget in _EPSILONS:
            rows[f"FedAvg, epsilon {budget:g}"] = self._private_row(budget)
        for count in self.preset.hospitals:
            rows[f"FedAvg, epsilon {_WHOLE:g}, sites: {count}"] = self._size_row(count)
        rows["synthetic: public"] = lambda: self._synthetic(self.public)
        for whole, suffix in ((None, ""), (_WHOLE, f", epsilon {_WHOLE:g}")):
            rows |= {f"synthetic: {k}{suffix}": v for k, v in self._synthetic_rows(whole).items()}
        return rows

    def _private_row(self, budget: float) -> Callable[[], Measured]:
        return lambda: self._found(self._federated(budget))

    def _size_row(self, count: int) -> Callable[[], Measured]:
        return lambda: self._found(self._federated(_WHOLE, self.patients.hospitals(count)))

    def _synthetic_rows(self, budget: float | None) -> dict[str, Callable[[], Measured]]:
        def after(critic: Critic, weights: tuple[float, float] | None) -> Callable[[], Measured]:
            return lambda: self._synthetic(self._adversarial(budget, critic, weights))

        return {
            "moments": lambda: self._synthetic(self._moments(budget)),
            "+ consistency": after(Critic.MEAN_FEATURES, _ALONE["consistency"]),
            "+ mean-features": after(Critic.MEAN_FEATURES, _ALONE["critic"]),
            **{f"+ consistency + {critic}": after(critic, None) for critic in Critic},
        }

    # --- models

    @property
    def _pooled(self) -> Cohorts:
        return {"everyone": [v for volumes in self.patients.training.values() for v in volumes]}

    def _federated(self, budget: float | None, sites: Cohorts | None = None) -> Model:
        """Stages moments and segment, with all of the budget."""
        config = self.preset.config(epsilon=budget)
        sites = self.patients.training if sites is None else sites
        return self._run(config, (Stage.MOMENTS, Stage.SEGMENT), self.public, sites)

    def _before_private_steps(self) -> Measured:
        """What free training in the released styles has taught before patients are asked."""
        # Directions of private steps would be found after free training, and not be used.
        config = self.preset.model_copy(update={"directions": 0}).config(epsilon=_WHOLE)
        stages = (Stage.MOMENTS, Stage.SEGMENT)
        sites = self.patients.training
        # Moments have two rounds; of stage segment the first is the coordinator's.
        styled = self._run(config, stages[:1], self.public, sites)
        return self._found(self._run(config, stages[1:], styled, sites, last=1))

    def _moments(self, budget: float | None) -> Model:
        """Stage moments, with its share of the whole product's budget."""
        config = self.preset.config(epsilon=budget, adversarial=True)
        return self._run(config, (Stage.MOMENTS,), self.public, self.patients.training)

    def _adversarial(
        self, budget: float | None, critic: Critic, weights: tuple[float, float] | None
    ) -> Model:
        sites, preset = self.patients.training, self.preset
        # A critic's steps decide what noise keeps the whole budget, so each has its own way there.
        before = Critic.MEAN_FEATURES if budget is None else critic
        config = preset.config(epsilon=budget, adversarial=True, critic=before)
        model = self._run(config, (Stage.MOMENTS, Stage.SEGMENT), self.public, sites)
        config = preset.config(epsilon=budget, adversarial=True, critic=critic, weights=weights)
        return self._run(config, (Stage.ADVERSARIAL,), model, sites)

    def _run(
        self,
        config: RunConfig,
        stages: Sequence[Stage],
        start: Model,
        sites: Cohorts,
        *,
        last: int | None = None,
    ) -> Model:
        def train() -> Model:
            seed = self.seed
            made = [stage for stage in _stages(config, start, sites, seed) if stage.name in stages]
            return run_rounds(start, made, sites, seed, last=last)

        return self.kept.model(config, (*stages, f"to {last}"), start, sites, train)

    # --- rows

    def _found(self, model: Model) -> Measured:
        return self._dice(model.segmenter(_CPU))

    def _local(self) -> Measured:
        """Each site alone: the mean over sites of what its segmenter finds at all of them."""
        config = self.preset.config(epsilon=None)
        found = [
            self._found(
                self._run(config, (Stage.MOMENTS, Stage.SEGMENT), self.public, {name: volumes})
            )
            for name, volumes in self.patients.training.items()
        ]
        return {key: sum(one[key] for one in found) / len(found) for key in found[0]}

    def _synthetic(self, model: Model) -> Measured:
        """Train on synthetic volumes and no patient, from the public weights."""
        preset, sites = self.preset, list(self.patients.training)
        painter = Painter(model, sites, grid=(preset.side,) * 3, device=_CPU)
        volumes = [v for _, v in painter.volumes(seed=self.seed, count=preset.synthetic)]
        segmenter = self._trained(volumes)
        errors = image_errors(painter, self.patients.same, seed=self.seed)
        held_out = [v for volumes in self.patients.same.values() for v in volumes]
        errors["frechet"] = frechet_distance(volumes, held_out)
        return {**self._dice(segmenter), **errors}

    def _trained(self, volumes: Sequence[Volume]) -> nn.Module:
        """Train on volumes from the public weights on: patients and images of them alike."""
        preset = self.preset
        weights, _ = train_on(
            crop_batches(
                repeat_batches(volumes, batch=2, seed=self.seed),
                crop=(preset.crop,) * 3,
                seed=self.seed,
                device=_CPU,
            ),
            self.public.segmenter(_CPU),
            steps=preset.synthetic_steps,
            spatial_dims=3,
            seed=self.seed,
        )
        segmenter = build_segmenter(self.public.networks)
        segmenter.load_state_dict(weights)
        return segmenter

    def _dice(self, segmenter: nn.Module) -> Measured:
        crop = self.preset.crop
        same = dice_of(segmenter, self.patients.same, crop=crop)
        other = dice_of(segmenter, self.patients.other, crop=crop)
        twins = dice_of(segmenter, self.patients.twins, crop=crop)
        return {
            **same,
            **{f"{key}, unseen": other[key] for key in ("tumour", "lesion")},
            "tumour, twins": twins["tumour"],
        }


def _stages(config: RunConfig, model: Model, sites: Cohorts, seed: int) -> list[FederatedStage]:
    budget = plan_budget(config, model)
    asking = Asking(run=config.name, config=config, public_seed=seed)
    stages: list[FederatedStage] = [
        MomentsStage(asking, budget),
        SegmentStage(asking, budget, sites=list(sites), device=_CPU),
    ]
    return [*stages, AdversarialStage(asking, budget)] if config.adversarial.enabled else stages
