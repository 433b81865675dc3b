"""What every plan of a run has in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from medsynth_common.plan import PlanHeader, RoundPlan, Settings, Stage
from medsynth_common.privacy.mechanism import Mechanism
from medsynth_server.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Makes plans for one arm of a run.

    Attributes:
        run: the arm's name, under which sites keep their ledger entries.
        config: the run's settings.
        public_seed: of public label maps.

    """

    run: str
    config: RunConfig
    public_seed: int

    def plan(
        self,
        *,
        stage: Stage,
        round: int,
        site: str,
        settings: Settings,
        mechanisms: Sequence[Mechanism],
        weights: Mapping[str, Tensor],
    ) -> RoundPlan:
        """Make one site's plan for one round."""
        return RoundPlan(
            header=PlanHeader(
                run=self.run,
                stage=stage,
                round=round,
                site=site,
                grid=self.config.grid,
                crop=self.config.crop,
                networks=self.config.networks,
                settings=settings,
                mechanisms=tuple(mechanisms),
                public_seed=self.public_seed,
                update_bits=self.config.federation.update_bits,
            ),
            weights=weights,
        )
