"""The forms of plans and answers: which tensors a stage sends and takes, of which type and shape,
and which mechanisms it spends.

Both sides check against this one table: a site before it charges a plan and before anything
leaves, the coordinator before anything is used.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor, nn

from medsynth_common.errors import BadMessage, Problem
from medsynth_common.labels import CONTRASTS, TISSUES
from medsynth_common.learning.dice import SCORES
from medsynth_common.learning.directions import Directions
from medsynth_common.learning.features import FeatureScale
from medsynth_common.learning.moments import Prior
from medsynth_common.learning.variation import Variation
from medsynth_common.networks import Generator, NetworkSettings, build_critic, build_segmenter
from medsynth_common.plan import (
    AdversarialSettings,
    MetricsSettings,
    MomentsSettings,
    PlanHeader,
    RoundPlan,
    SegmentSettings,
    Stage,
)
from medsynth_common.style import TABLE, Style
from medsynth_common.tensors import under, with_prefix
from medsynth_common.update import check_tensors
from medsynth_common.wire.rounding import rounded_form

#: Texture statistics are of two scales in every tissue but air.
_TEXTURES = 2 * (len(TISSUES) - 1) * len(CONTRASTS)
#: What the rounds of stage moments release; later ones repeat the last.
MOMENTS: Final = ("level", "spread")


def check_plan_form(plan: RoundPlan) -> None:
    """Check a plan's mechanisms and weights before anything is charged for it.

    Raises:
        BadMessage: with the first problems found.

    """
    found = [mechanism.name for mechanism in plan.header.mechanisms]
    wanted = expected_mechanisms(plan.header)
    if found != wanted:
        name = f"plan: mechanisms of {plan.header.stage} round {plan.header.round}"
        raise BadMessage(Problem(name=name, value=str(found), wanted=str(wanted)))
    check_tensors(plan.weights, expected_plan(plan.header))


def expected_mechanisms(header: PlanHeader) -> list[str]:
    """Name the mechanisms that the work of this plan spends, in order."""
    match header.settings:
        case MomentsSettings():
            return [MOMENTS[min(header.round, len(MOMENTS)) - 1]]
        case SegmentSettings():
            return ["segmenter"]
        case AdversarialSettings(paired_weight=paired):
            return ["critic", "paired"] if paired else ["critic"]
        case MetricsSettings():
            return ["metrics"]


def expected_plan(header: PlanHeader) -> dict[str, Tensor]:
    """Give tensors of the form the weights of this plan must have."""
    style = with_prefix("style", Style.neutral().tensors())
    match header.stage:
        case Stage.MOMENTS:
            return style | with_prefix("prior", _prior().tensors())
        case Stage.SEGMENT | Stage.METRICS:
            return {**_form("segmenter", header.networks), **_directions(header)}
        case Stage.ADVERSARIAL:
            networks = [_form(part, header.networks) for part in _BUILDERS]
            features = with_prefix("features", _features(header.networks).tensors())
            variation = with_prefix("variation", Variation.independent().tensors())
            parts = (*networks, features, variation, style)
            return {name: t for part in parts for name, t in part.items()}
        case _:
            return {}


def expected_update(plan: RoundPlan) -> dict[str, Tensor]:
    """Give tensors of the form the update to `plan` must have, under `weights.*` and `own.*`."""
    weights = rounded_form(answered_weights(plan), plan.header.update_bits)
    return {
        **with_prefix("weights", weights),
        **with_prefix("own", _own(plan.header.stage)),
    }


def answered_weights(plan: RoundPlan) -> Mapping[str, Tensor]:
    """Give those of the plan's weights that the answer holds anew."""
    part = {Stage.SEGMENT: "segmenter", Stage.ADVERSARIAL: "generator"}.get(plan.header.stage)
    return with_prefix(part, under(part, plan.weights)) if part else {}


def _own(stage: Stage) -> Mapping[str, Tensor]:
    style = with_prefix("style", Style.neutral().tensors())
    match stage:
        case Stage.MOMENTS:
            return style
        case Stage.ADVERSARIAL:
            return {"style.code": style["style.code"]}
        case Stage.METRICS:
            return {"metrics.scores": torch.zeros(SCORES)}
        case _:
            return {}


_BUILDERS = {"generator": Generator, "segmenter": build_segmenter, "critic": build_critic}


@lru_cache(maxsize=16)  # every plan is checked against them, also those that are refused
def _form(part: str, networks: NetworkSettings) -> Mapping[str, Tensor]:
    with torch.device("meta"):  # shapes alone: nothing is allocated
        module: nn.Module = _BUILDERS[part](networks)
    return with_prefix(part, module.state_dict())


def _directions(header: PlanHeader) -> Mapping[str, Tensor]:
    if not (isinstance(header.settings, SegmentSettings) and header.settings.directions):
        return {}
    weights = sum(t.numel() for t in _form("segmenter", header.networks).values())
    with torch.device("meta"):
        return with_prefix(
            "directions", Directions.none(header.settings.directions, weights).tensors()
        )


def _prior() -> Prior:
    table, number = torch.zeros(TABLE), torch.zeros(())
    return Prior(
        level=table,
        level_scale=table,
        log_gain=table,
        log_gain_scale=table,
        spread=table,
        level_clip=number,
        spread_clip=number,
    )


def _features(networks: NetworkSettings) -> FeatureScale:
    levels = range(networks.critic_layers + 1)
    pooled = sum(networks.critic_channels * 2**level for level in levels)
    vector = torch.zeros(pooled + _TEXTURES)
    return FeatureScale(centre=vector, scale=vector, clip=torch.zeros(()))
