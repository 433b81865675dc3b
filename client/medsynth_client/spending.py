"""What was charged, and what the patient who was charged most has spent by it.

A charge belongs to a data set, and so to every patient in it. A patient who joins later, or has
left, has a sum of their own: patients are told apart only by the set of data sets they have
belonged to (their history), and the accountant is asked once per history, not per patient.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from medsynth_client.charge import Charge, Kind
from medsynth_common.privacy.mechanism import Release

#: Charged to this, a release counts for every patient, those still to come included.
EVERYONE: Final = "everyone"


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Equal steps, as the accountant takes them."""

    noise_multiplier: float
    sampling_rate: float
    steps: int


#: Upper bound on epsilon of all steps together at this delta.
EpsilonOf = Callable[[Sequence[Spent], float], float]


@dataclass(frozen=True, kw_only=True)
class StatementLine:
    """All reservations of one mechanism in one project.

    Attributes:
        project: the run they were made for.
        name: what the mechanism protects.
        clip: largest norm of one patient's part; None when unprotected.
        noise_multiplier: noise SD over clip; 0 when unprotected.
        sampling_rate: probability with which each patient takes part in a step.
        steps: noisy sums charged, over all reservations.
        releases: number of reservations.

    """

    project: str
    name: str
    clip: float | None
    noise_multiplier: float
    sampling_rate: float
    steps: int
    releases: int


def fits(cap: float, *, before: float, after: float) -> bool:
    """Say whether releases may be charged that bring what a patient has spent to `after`.

    At a cap nothing is released any more, however little it would cost.
    """
    return after <= cap and (before < cap or math.isinf(cap))


def remembered(epsilon_of: EpsilonOf) -> EpsilonOf:
    """Ask the accountant once for the same question; unprotected or unsure is infinite."""

    @lru_cache(maxsize=64)
    def answer(spent: tuple[Spent, ...], delta: float) -> float:
        if not spent:
            return 0.0
        if any(one.noise_multiplier == 0 for one in spent):
            return math.inf
        epsilon = float(epsilon_of(spent, delta))
        return math.inf if math.isnan(epsilon) else epsilon

    return lambda spent, delta: answer(tuple(spent), delta)


class Spending:
    """Every charge and every membership of a ledger, added up as they come."""

    def __init__(self) -> None:
        self._members: dict[str, tuple[str, ...]] = {}
        self._datasets_of: defaultdict[str, set[str]] = defaultdict(set)
        self._steps: defaultdict[str, Counter[Kind]] = defaultdict(Counter)
        self._charges: list[tuple[str, str, Charge]] = []  # data set, project, charge
        self._of_project: defaultdict[str, Counter[Kind]] = defaultdict(Counter)

    def knows(self, dataset: str) -> bool:
        """Say whether the data set was registered, or is everyone."""
        return dataset == EVERYONE or dataset in self._members

    def register(self, dataset: str, patients: Iterable[str]) -> None:
        """Note who belongs to a data set."""
        self._members[dataset] = tuple(patients)
        for patient in self._members[dataset]:
            self._datasets_of[patient].add(dataset)

    def charge(self, dataset: str, project: str, charge: Charge) -> None:
        """Add a charge to all members of a data set."""
        self._steps[dataset][charge.kind] += charge.steps
        self._charges.append((dataset, project, charge))
        self._of_project[project][charge.kind] += charge.steps

    @property
    def datasets(self) -> int:
        """How many data sets were registered."""
        return len(self._members)

    @property
    def patients(self) -> int:
        """How many patients ever belonged to one."""
        return len(self._datasets_of)

    @property
    def projects(self) -> list[str]:
        """All that was charged for, in order of first appearance."""
        return list(dict.fromkeys(project for _, project, _ in self._charges))

    def within(self, project: str) -> "Spending":
        """What would have been spent by the same patients in this project alone."""
        alone = Spending()
        for dataset, members in self._members.items():
            alone.register(dataset, members)
        for dataset, other, charge in self._charges:
            if other == project:
                alone.charge(dataset, project, charge)
        return alone

    def worst(
        self, epsilon_of: EpsilonOf, delta: float, dataset: str, extra: Sequence[Charge] = ()
    ) -> float:
        """Epsilon of the member of `dataset` who was charged most, `extra` included."""
        return max(
            epsilon_of(self._total(history, extra), delta) for history in self._histories(dataset)
        )

    def all_of(self, project: str) -> tuple[Spent, ...]:
        """All that was charged for a project, to whichever data set."""
        return _steps_of(self._of_project.get(project, Counter()))

    def statement(self) -> list[StatementLine]:
        """Add up the charges per project and mechanism, in order of first appearance."""
        steps: Counter[tuple[str, Charge]] = Counter()
        releases: Counter[tuple[str, Charge]] = Counter()
        for _, project, charge in self._charges:
            mechanism = project, charge.model_copy(update={"steps": 1})
            steps[mechanism] += charge.steps
            releases[mechanism] += 1
        return [
            StatementLine(
                project=project,
                name=charge.name,
                clip=charge.clip,
                noise_multiplier=charge.noise_multiplier,
                sampling_rate=charge.sampling_rate,
                steps=steps[project, charge],
                releases=releases[project, charge],
            )
            for project, charge in steps
        ]

    def _histories(self, dataset: str) -> set[frozenset[str]]:
        """Sets of charged data sets that members belonged to; only the largest matter."""
        patients = self._datasets_of if dataset == EVERYONE else self._members[dataset]
        charged = self._steps.keys()
        histories = {frozenset(self._datasets_of[patient] & charged) for patient in patients}
        # Who was charged a part of what another was charged cannot have spent more.
        largest = {one for one in histories if not any(one < other for other in histories)}
        return largest or {frozenset()}

    def _total(self, history: frozenset[str], extra: Sequence[Charge]) -> tuple[Spent, ...]:
        total: Counter[Kind] = Counter()
        for dataset in (*history, EVERYONE):
            total += self._steps.get(dataset, Counter())
        for charge in extra:
            total[charge.kind] += charge.steps
        return _steps_of(total)


def _steps_of(total: Counter[Kind]) -> tuple[Spent, ...]:
    return tuple(
        Spent(noise_multiplier=noise, sampling_rate=rate, steps=steps)
        for (noise, rate), steps in sorted(total.items())
    )


def epsilon_of(spent: Sequence[Spent], delta: float) -> float:
    """What these releases cost one patient together, by the project's accountant."""
    return _composed(tuple(spent), delta)


def forget() -> None:
    """Work every epsilon out anew: for whoever times or checks the accountant."""
    _composed.cache_clear()


@lru_cache(maxsize=1024)  # sites that one process holds are mostly asked the same
def _composed(spent: tuple[Spent, ...], delta: float) -> float:
    # Here, since it takes Python seconds to load, and most questions are about records alone.
    from medsynth_common.privacy.accountant import epsilon

    releases = [
        Release(
            noise_multiplier=one.noise_multiplier,
            sampling_rate=one.sampling_rate,
            steps=one.steps,
        )
        for one in spent
    ]
    return epsilon(releases, delta)
