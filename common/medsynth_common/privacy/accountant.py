"""What releases cost together, and how much noise a budget asks for.

Neighbouring data sets differ by one patient added or removed. Every epsilon is an upper bound.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Final

from pydantic import Field

from medsynth_common.errors import BadInput, Problem
from medsynth_common.privacy.bounds import ERROR, History, composed_epsilon
from medsynth_common.privacy.mechanism import (
    MAX_NOISE,
    Gaussian,
    Name,
    Positive,
    SamplingRate,
    Steps,
    Unprotected,
    Value,
)
from medsynth_common.privacy.mechanism import Release as Release  # part of this file's interface

#: The composed epsilon lies at most this far below what was asked for.
_TOLERANCE: Final = 0.005
#: Shares are weights: how they are met decides nothing about privacy.
_SHARE_TOLERANCE: Final = 0.03
_SHARE_ERROR: Final = 5 * ERROR


class Guarantee(Value):
    """An epsilon with all it needs to mean something."""

    epsilon: Annotated[float, Field(ge=0, allow_inf_nan=True)]
    delta: float
    unit: str = "patient"
    mechanisms: tuple[Gaussian | Unprotected, ...]

    def __str__(self) -> str:
        names = "; ".join(_described(mechanism) for mechanism in self.mechanisms) or "none"
        return f"epsilon {self.epsilon:.3g} at delta {self.delta:g} per {self.unit} ({names})"


def guarantee(mechanisms: Iterable[Gaussian | Unprotected], *, delta: float) -> Guarantee:
    """Say what `mechanisms` cost one patient together."""
    used = tuple(mechanisms)
    releases = [release for mechanism in used for release in mechanism.releases]
    return Guarantee(epsilon=epsilon(releases, delta), delta=delta, mechanisms=used)


def epsilon(releases: Iterable[Release], delta: float) -> float:
    """Give an upper bound on epsilon of all `releases` together; 0 for none.

    It is infinite when a release is unprotected. Raises ValueError unless 0 < delta < 1.
    """
    return _cost(releases, delta)


def _cost(releases: Iterable[Release], delta: float, error: float = ERROR) -> float:
    """The same; a larger `error` gives a looser bound sooner."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, got {delta}")
    history: History = defaultdict(int)
    for release in releases:
        history[release.noise_multiplier, release.sampling_rate] += release.steps
    if not history:
        return 0.0
    if any(noise_multiplier == 0 for noise_multiplier, _ in history):
        return math.inf
    return composed_epsilon(history, delta, error)


def _described(mechanism: Gaussian | Unprotected) -> str:
    noise = (
        f"noise multiplier {mechanism.noise_multiplier:.3g}" if mechanism.protected else "no noise"
    )
    return (
        f"{mechanism.name}: {noise}, sampling rate {mechanism.sampling_rate:g}, "
        f"{mechanism.steps} steps"
    )


class Request(Value):
    """A mechanism whose noise is still to be found.

    Attributes:
        name: what it protects, such as `critic`.
        share: its weight in the budget beside the other requests.
        clip: largest L2 norm that one patient adds to a step's sum.
        sampling_rate: probability with which each patient takes part in a step.
        steps: number of noisy sums to be released.

    """

    name: Name
    share: Positive
    clip: Positive
    sampling_rate: SamplingRate
    steps: Steps

    def release(self, noise_multiplier: float) -> Release:
        """What it would cost with that noise."""
        return Release(
            noise_multiplier=noise_multiplier,
            sampling_rate=self.sampling_rate,
            steps=self.steps,
        )

    def mechanism(self, noise_multiplier: float) -> Gaussian:
        """The mechanism with that noise."""
        return Gaussian(
            name=self.name,
            clip=self.clip,
            noise_multiplier=noise_multiplier,
            sampling_rate=self.sampling_rate,
            steps=self.steps,
        )


def calibrate(requests: Sequence[Request], *, epsilon: float, delta: float) -> list[Gaussian]:
    """Give `requests` the least noise whose composed cost is within (epsilon, delta).

    Each first gets the noise that alone would cost its share of epsilon. Together they cost
    less than the sum of the shares, so one common factor then takes noise from all of them
    until they cost epsilon, or up to 0.5 % less (more where the bound itself jumps, near an
    epsilon of 100). Raises BadInput for a budget that is none or that no noise can keep.
    """
    _check_budget(epsilon, delta)
    if not requests:
        return []
    shares = sum(request.share for request in requests)
    alone = [_noise_alone(one, epsilon * one.share / shares, delta) for one in requests]

    def composed(scale: float, error: float) -> float:
        noises = (scale * noise for noise in alone)
        return _cost(map(Request.release, requests, noises), delta, error)

    rough = _least_noise(lambda scale: composed(scale, _SHARE_ERROR), epsilon, _SHARE_TOLERANCE, 1)
    scale = _least_noise(lambda scale: composed(scale, ERROR), epsilon, _TOLERANCE, rough)
    return [one.mechanism(scale * noise) for one, noise in zip(requests, alone, strict=True)]


def _check_budget(epsilon: float, delta: float) -> None:
    problems = []
    if not (math.isfinite(epsilon) and epsilon > 0):
        problems.append(Problem(name="epsilon", value=str(epsilon), wanted="a number above 0"))
    if not 0 < delta < 1:
        problems.append(Problem(name="delta", value=str(delta), wanted="a number between 0 and 1"))
    if problems:
        raise BadInput(problems)


def _noise_alone(request: Request, epsilon: float, delta: float) -> float:
    def cost(noise: float) -> float:
        return _cost([request.release(noise)], delta, _SHARE_ERROR)

    # About right for many steps: the noise grows with the root of the sampled steps.
    start = request.sampling_rate * math.sqrt(request.steps) / epsilon + 0.5
    return _least_noise(cost, epsilon, _SHARE_TOLERANCE, start)


def _least_noise(
    cost: Callable[[float], float], target: float, tolerance: float, start: float
) -> float:
    """Find noise that costs at most `target` and, where the cost has no jump, hardly less.

    A secant on logarithms, where the cost is nearly a line, kept between what was too little
    and what was enough.
    """
    too_little, enough = -math.inf, math.inf  # logarithms of noise
    slope, before = -1.2, None
    at = math.log(start)
    while enough - too_little > 1e-3:
        if at > math.log(MAX_NOISE):
            raise BadInput(
                Problem(
                    name="epsilon",
                    value=f"{target:g} for a mechanism",
                    wanted="a budget that noise can keep",
                    mend="raise epsilon or the mechanism's share",
                )
            )
        found = cost(math.exp(at))
        if (1 - tolerance) * target <= found <= target:
            return math.exp(at)
        if found > target:
            too_little = at
        else:
            enough = at
        # The aim is the middle of the tolerance; the bounds keep 0 and infinity out.
        excess = max(-4.0, min(4.0, _log(found / target) + tolerance / 2))
        if before is not None and abs(excess) < 4 and excess != before[1]:
            slope = max(-4.0, min(-0.25, (excess - before[1]) / (at - before[0])))
        before = (at, excess)
        at -= excess / slope
        if not too_little < at < enough:
            at = (too_little + enough) / 2
    return math.exp(enough)


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio > 0 else -math.inf
