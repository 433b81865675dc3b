"""Stage adversarial, the coordinator's half: average the generators, keep the styles apart."""

from collections.abc import Mapping, Sequence

from medsynth_common.plan import AdversarialSettings, RoundPlan, Stage
from medsynth_common.tensors import under, with_prefix
from medsynth_server.budget import Budget
from medsynth_server.config import Adversarial
from medsynth_server.model import Model
from medsynth_server.stages.asking import Asking
from medsynth_server.stages.moments import collect_styles
from medsynth_server.strategies import Answer, Combiner

#: Weight of the past in the average of the generator over rounds (EMA).
_EMA = 0.5


class AdversarialStage:
    """Every round: each site's critic learns, its copy of the generator follows, copies meet."""

    name = Stage.ADVERSARIAL

    def __init__(self, asking: Asking, budget: Budget) -> None:
        self._asking, self._budget = asking, budget
        self._settings: Adversarial = asking.config.adversarial
        self._combiner = Combiner(asking.config.federation.strategy)
        self.rounds = self._settings.rounds

    def plan(self, model: Model, site: str, round: int) -> RoundPlan | None:
        """Send generator, segmenter, public critic and the site's own style."""
        own = AdversarialSettings.model_fields.keys() - {"stage"}
        mechanisms = [self._budget.for_round("critic", steps=self._settings.steps)]
        if self._settings.paired_weight:
            steps = self._settings.generator_steps
            mechanisms.append(self._budget.for_round("paired", steps=steps))
        return self._asking.plan(
            stage=self.name,
            round=round,
            site=site,
            settings=AdversarialSettings(**{key: getattr(self._settings, key) for key in own}),
            mechanisms=mechanisms,
            weights={
                **model.part("generator"),
                **model.part("segmenter"),
                **model.part("critic"),
                **model.part("features"),
                **model.part("variation"),
                **with_prefix("style", model.style(site).tensors()),
            },
        )

    def combine(self, model: Model, round: int, answers: Sequence[Answer]) -> Model:
        """Combine the generators by the strategy, and collect the style codes."""
        memory = under("strategy.adversarial", model.tensors)
        current = model.part("generator")
        weights, memory = self._combiner.combine(current, answers, round=round, memory=memory)
        model = model.updated({**weights, **with_prefix("strategy.adversarial", memory)})
        return collect_styles(model, answers)

    def after(self, model: Model, round: int) -> tuple[Model, Mapping[str, float]]:
        """Keep a running average of the generator; the last round puts it in its place."""
        now = under("generator", model.tensors)
        past = under("average", model.tensors) or now
        average = {name: _EMA * past[name] + (1 - _EMA) * now[name] for name in now}
        if round < self.rounds:
            return model.updated(with_prefix("average", average)), {}
        return model.updated(with_prefix("generator", average)), {}
