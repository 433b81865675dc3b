"""Stage moments, the coordinator's half: collect every site's style."""

from collections.abc import Mapping, Sequence

from medsynth_common.plan import MomentsSettings, RoundPlan, Stage
from medsynth_common.tensors import under, with_prefix
from medsynth_server.budget import Budget
from medsynth_server.model import Model
from medsynth_server.stages.asking import Asking
from medsynth_server.strategies import Answer

_MECHANISMS = ("level", "spread")


class MomentsStage:
    """Two rounds: the level of every tissue, then how far patients lie from it."""

    name = Stage.MOMENTS
    rounds = len(_MECHANISMS)

    def __init__(self, asking: Asking, budget: Budget) -> None:
        self._asking, self._budget = asking, budget

    def plan(self, model: Model, site: str, round: int) -> RoundPlan | None:
        """Send the public prior and the site's style so far."""
        return self._asking.plan(
            stage=self.name,
            round=round,
            site=site,
            settings=MomentsSettings(),
            mechanisms=[self._budget.for_round(_MECHANISMS[round - 1], steps=1)],
            weights={**model.part("prior"), **with_prefix("style", model.style(site).tensors())},
        )

    def combine(self, model: Model, round: int, answers: Sequence[Answer]) -> Model:
        """Put each site's style beside the others; styles are never averaged."""
        return collect_styles(model, answers)

    def after(self, model: Model, round: int) -> tuple[Model, Mapping[str, float]]:
        """Nothing is left to do."""
        return model, {}


def collect_styles(model: Model, answers: Sequence[Answer]) -> Model:
    """Store what each answer says of its own site's style."""
    for answer in answers:
        site = answer.update.header.site
        whole = {**model.style(site).tensors(), **under("style", answer.update.own)}
        model = model.updated(with_prefix(f"style.{site}", whole))
    return model
