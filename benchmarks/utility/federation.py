"""The bench's hospitals: their patients, and rounds without files, keys or processes.

What a site does with a plan and what the coordinator makes of the answers is the product's own
code; left out is only what stands between the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

import numpy as np
import torch

from benchmarks.utility.other_renderer import OtherScanner, draw_patient
from medsynth_client.stages import WORK, Order
from medsynth_common.learning.volumes import Volume
from medsynth_common.plan import RoundPlan
from medsynth_common.privacy.randomness import SimulatedRandomness
from medsynth_common.update import SiteUpdate, UpdateHeader
from medsynth_server.federation import FederatedStage
from medsynth_server.flower import start_identity
from medsynth_server.model import Model
from medsynth_server.strategies import Answer

#: The part of a patient's seed that says what the patient is for.
_TRAIN, _HELD_OUT = 0, 1
#: Of every epsilon of the bench, in plans and in answers; hospitals have a hundred or fewer.
DELTA: Final = 1e-3

Cohorts = Mapping[str, Sequence[Volume]]


class Everyone(Protocol):
    """Who trains and who is held out, by site."""

    @property
    def training(self) -> Cohorts:
        """Each site's own patients."""

    @property
    def same(self) -> Cohorts:
        """Held-out patients of the sites' scanners."""

    @property
    def other(self) -> Cohorts:
        """Held-out patients of a scanner that no site has."""

    @property
    def twins(self) -> Cohorts:
        """The same patients as `other`, as scanners of the sites show them."""

    def hospitals(self, count: int) -> Cohorts:
        """The training patients of `count` sites."""


@dataclass(frozen=True)
class Patients:
    """Everyone in the federation of one seed: another seed has other scanners and patients.

    Attributes:
        seed: of scanners and patients.
        side: of the grid, voxels.
        sites: hospitals.
        each: patients that each trains on.
        held_out: patients that each holds out.
        unseen: patients of one more scanner, which nobody trains on.

    """

    seed: int
    side: int
    sites: int
    each: int
    held_out: int
    unseen: int

    @cached_property
    def training(self) -> Cohorts:
        """Each site's own patients."""
        return {name: self._draw(name, _TRAIN, self.each) for name in self._names}

    def hospitals(self, count: int) -> Cohorts:
        """The training patients of `count` sites: the first ones, or these and more."""
        # The number after the sites' own is the unseen scanner's.
        more = [f"site-{number + 2}" for number in range(self.sites, count)]
        names = [*self._names[:count], *more]
        known = {name: self.training[name] for name in names if name in self.training}
        return known | {name: self._draw(name, _TRAIN, self.each) for name in more}

    @cached_property
    def same(self) -> Cohorts:
        """Held-out patients of the sites' scanners."""
        return {name: self._draw(name, _HELD_OUT, self.held_out) for name in self._names}

    @cached_property
    def other(self) -> Cohorts:
        """Patients of the scanner that no site has."""
        name = f"site-{self.sites + 1}"
        return {name: self._draw(name, _HELD_OUT, self.unseen)}

    @cached_property
    def twins(self) -> Cohorts:
        """The same heads, with the same tumours, in the sites' scanners: one in each by turns."""
        number, names = self.sites + 1, self._names
        return {
            name: [
                draw_patient((self.seed, number, _HELD_OUT, index), self._scanner(k), self.side)
                for index in range(k - 1, self.unseen, len(names))
            ]
            for k, name in enumerate(names, start=1)
        }

    @property
    def _names(self) -> list[str]:
        return [f"site-{number + 1}" for number in range(self.sites)]

    def _draw(self, name: str, purpose: int, count: int) -> list[Volume]:
        number = int(name.removeprefix("site-"))
        seeds = [(self.seed, number, purpose, index) for index in range(count)]
        return [draw_patient(seed, self._scanner(number), self.side) for seed in seeds]

    def _scanner(self, site: int) -> OtherScanner:
        return OtherScanner.draw(np.random.default_rng((self.seed, site)))


def run_rounds(
    model: Model,
    stages: Sequence[FederatedStage],
    sites: Cohorts,
    seed: int,
    *,
    last: int | None = None,
) -> Model:
    """Train through the rounds of the stages; noise comes from `seed`, so that a bench repeats.

    Of each stage no more than `last` rounds are run, where that is given.
    """
    start_identity(run_id=1)
    kept: dict[str, Mapping[str, torch.Tensor]] = {name: {} for name in sites}
    for stage in stages:
        for number in range(1, 1 + min(stage.rounds, last or stage.rounds)):
            answers: list[Answer] = []
            for name, patients in sorted(sites.items()):
                plan = stage.plan(model, name, number)
                if plan is None:
                    continue
                order = Order(
                    plan=plan.header,
                    weights=plan.weights,
                    patients=patients,
                    declared=len(patients),
                    state=kept[name],
                    randomness=SimulatedRandomness(seed, name, stage.name, number),
                    device=torch.device("cpu"),
                )
                outcome = WORK[plan.header.stage](order)
                kept[name] = outcome.state
                update = SiteUpdate(
                    header=_header(plan, len(patients)), weights=outcome.weights, own=outcome.own
                )
                answers.append(Answer(update=update))
            if answers:
                model = stage.combine(model, number, answers)
            model, _ = stage.after(model, number)
    return model


def _header(plan: RoundPlan, patients: int) -> UpdateHeader:
    header = plan.header
    return UpdateHeader(
        run=header.run,
        site=header.site,
        stage=header.stage,
        round=header.round,
        plan_digest=plan.digest(),
        declared_patients=patients,
        delta=DELTA,
    )
