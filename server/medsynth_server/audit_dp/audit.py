"""The experiment: many small trainings, half with a canary, and what they say of the claim."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
from pydantic import Field

from medsynth_common.errors import BadInput, Problem
from medsynth_common.privacy.accountant import Guarantee, calibrate, guarantee
from medsynth_common.privacy.mechanism import Gaussian, Value
from medsynth_common.privacy.randomness import (
    Randomness,
    SimulatedRandomness,
    SystemRandomness,
)
from medsynth_server.audit_dp.bounds import (
    Scores,
    clopper_pearson_bound,
    clopper_pearson_ceiling,
    gaussian_bound,
)
from medsynth_server.audit_dp.targets import TRAININGS, Target, Training

#: With fewer, neither bound says anything.
LEAST_RUNS: Final = 20
#: A claim beyond this is no protection, and is not worth an experiment.
MOST_EPSILON: Final = 50.0
_BOUNDS: Final = 2  # each target is judged by this many

#: Told after every training: the target, how many are done, of how many.
Progress = Callable[[Target, int, int], None]


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """What to audit, and how thoroughly.

    Attributes:
        targets: which trainings.
        runs: trainings of each target; half of them with the canary.
        epsilon: what the noise is calibrated to, and so the claim.
        delta: of the claim.
        confidence: with which all lower bounds of the audit hold together.
        seed: makes the audit repeatable; None takes the noise of real releases.

    Raises BadInput with everything that is wrong.

    """

    targets: tuple[Target, ...] = tuple(Target)
    runs: int = 300
    epsilon: float = 3.0
    delta: float = 1e-3
    confidence: float = 0.95
    seed: int | None = None

    def __post_init__(self) -> None:
        wishes = (
            ("runs", self.runs, self.runs >= LEAST_RUNS, f"at least {LEAST_RUNS}"),
            (
                "epsilon",
                self.epsilon,
                0 < self.epsilon <= MOST_EPSILON,
                f"above 0, at most {MOST_EPSILON:g}",
            ),
            ("delta", self.delta, 0 < self.delta < 1, "between 0 and 1"),
            ("confidence", self.confidence, 0.5 <= self.confidence < 1, "at least 0.5, below 1"),
        )
        problems = [
            Problem(name=name, value=str(value), wanted=wanted)
            for name, value, good, wanted in wishes
            if not good
        ]
        if problems:
            raise BadInput(problems)

    @property
    def confidence_of_each(self) -> float:
        """Of one bound, so that all hold together (Bonferroni)."""
        return 1 - (1 - self.confidence) / (_BOUNDS * len(self.targets))


Bound = Annotated[float, Field(ge=0)]


class Finding(Value):
    """What the trainings of one target say.

    Attributes:
        target: what was trained.
        claim: the accountant's upper bound, with its delta, unit and mechanism.
        gaussian: lower bound on epsilon if scores are normal.
        clopper_pearson: lower bound on epsilon without assumption.
        clopper_pearson_ceiling: the most that it could have been with so many runs.
        violated: whether a lower bound passes the claim.

    """

    target: Target
    claim: Guarantee
    gaussian: Bound
    clopper_pearson: Bound
    clopper_pearson_ceiling: Bound
    violated: bool


class Audit(Value):
    """A whole audit, with all that its figures need to mean something.

    Attributes:
        runs: trainings of each target, half of them with the canary.
        confidence: with which all lower bounds hold together.
        seeded: whether the noise can be repeated; real releases' cannot.
        findings: one for each target.

    """

    runs: int
    confidence: float
    seeded: bool
    findings: tuple[Finding, ...]

    @property
    def violated(self) -> bool:
        """Whether any claim was found to be false."""
        return any(finding.violated for finding in self.findings)


def run_audit(settings: AuditSettings, progress: Progress) -> Audit:
    """Train every target with and without the canary, and compare its claim with the bounds."""
    return Audit(
        runs=settings.runs,
        confidence=settings.confidence,
        seeded=settings.seed is not None,
        findings=tuple(_find(target, settings, progress) for target in settings.targets),
    )


def _find(target: Target, settings: AuditSettings, progress: Progress) -> Finding:
    training = TRAININGS[target]()
    (mechanism,) = calibrate([training.request()], epsilon=settings.epsilon, delta=settings.delta)
    claim = guarantee([mechanism], delta=settings.delta)
    scores = _attack(training, mechanism, target, settings, progress)
    asked = {"delta": settings.delta, "confidence": settings.confidence_of_each}
    gaussian = gaussian_bound(scores, **asked)
    exact = clopper_pearson_bound(scores, **asked)
    return Finding(
        target=target,
        claim=claim,
        gaussian=gaussian,
        clopper_pearson=exact,
        clopper_pearson_ceiling=clopper_pearson_ceiling(
            len(scores.present), len(scores.absent), **asked
        ),
        violated=max(gaussian, exact) > claim.epsilon,
    )


def _attack(
    training: Training,
    mechanism: Gaussian,
    target: Target,
    settings: AuditSettings,
    progress: Progress,
) -> Scores:
    scores: dict[bool, list[float]] = {True: [], False: []}
    worlds: Iterable[bool] = itertools.cycle((True, False))
    for run, canary in zip(range(settings.runs), worlds, strict=False):
        randomness = _randomness(settings.seed, target, run)
        scores[canary].append(training.score(mechanism, canary=canary, randomness=randomness))
        progress(target, run + 1, settings.runs)
    return Scores(present=np.array(scores[True]), absent=np.array(scores[False]))


def _randomness(seed: int | None, target: Target, run: int) -> Randomness:
    if seed is None:
        return SystemRandomness()
    return SimulatedRandomness("audit-dp", seed, target, run)
