"""What a hospital allows: the `[policy]` table of its own `site.toml`.

The coordinator never writes it. A plan outside it is refused, by the name of the key that
forbids it, before any patient's data is touched.

    [policy]
    epsilon_cap = 8.0
    delta = 1e-5
    stages = ["moments", "segment", "adversarial"]
    minimum_patients = 20
"""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from math import isinf, prod
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medsynth_client.charge import Mechanism
from medsynth_common.errors import PolicyRefusal, Problem

#: The stage whose releases are images, made from privatised weights alone.
SYNTHESIZE: Final = "synthesize"

_StageName = Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,63}$")]


class SitePolicy(BaseModel):
    """One hospital's limits.

    Attributes:
        epsilon_cap: what one patient may spend here for life. Infinite only where unprotected
            mechanisms are allowed.
        delta: the failure probability that epsilon is stated with.
        stages: which stages the site takes part in.
        minimum_patients: fewest patients a plan may train on.
        synthetic_may_leave: whether synthetic images may.
        maximum_bytes: largest single release.
        maximum_norm: largest L2 norm of all numbers of a release together.
        minimum_clip: smallest clip a plan may ask for.
        maximum_clip: largest clip a plan may ask for.
        minimum_noise_multiplier: least noise a plan may ask for, over clip.
        maximum_noise_multiplier: most noise. With more, a round costs next to nothing, and what
            it tells beside its release (by its time) would be had for next to nothing too.
        maximum_steps: most private steps in one round.
        maximum_rounds: last round of a stage that is answered.
        maximum_voxels: largest grid a plan may ask patients to be prepared on.
        minimum_side: smallest side of such a grid, in voxels. On a coarser one little is left of
            anybody, and nothing of a patient of few thin slices.
        retention_days: how long prepared patients and training state are kept after their last
            use. Ledger and audit log are kept for ever.
        allow_unprotected: lets mechanisms without noise pass. For simulations only.

    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    epsilon_cap: float = Field(gt=0, allow_inf_nan=True)
    delta: float = Field(gt=0, lt=1)
    stages: tuple[_StageName, ...]
    minimum_patients: int = Field(ge=1)
    synthetic_may_leave: bool = False
    maximum_bytes: int = Field(default=2**30, ge=1)
    maximum_norm: float = Field(default=1e6, gt=0)
    minimum_clip: float = Field(default=1e-6, gt=0)
    maximum_clip: float = Field(default=1e3, gt=0)
    minimum_noise_multiplier: float = Field(default=0.5, gt=0)
    maximum_noise_multiplier: float = Field(default=1e3, gt=0)
    maximum_steps: int = Field(default=10_000, ge=1)
    maximum_rounds: int = Field(default=1_000, ge=1)
    maximum_voxels: int = Field(default=256**3, ge=1)
    minimum_side: int = Field(default=24, ge=1)
    retention_days: int = Field(default=3_650, ge=1)
    allow_unprotected: bool = False

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if isinf(self.epsilon_cap) and not self.allow_unprotected:
            raise ValueError("epsilon_cap must be finite unless allow_unprotected is true")
        for least, most in (
            ("minimum_clip", "maximum_clip"),
            ("minimum_noise_multiplier", "maximum_noise_multiplier"),
        ):
            if (low := getattr(self, least)) > (high := getattr(self, most)):
                raise ValueError(f"{least} must be at most {most}, got {low} and {high}")
        return self


def check_plan(
    policy: SitePolicy,
    *,
    stage: str,
    round: int,
    mechanisms: Sequence[Mechanism],
    patients: int,
    grid: Sequence[int],
) -> None:
    """Raise PolicyRefusal unless the site allows this; told are all keys that forbid it.

    `mechanisms` is empty when the stage releases nothing that depends on patients.
    """
    problems = plan_problems(
        policy,
        stage=stage,
        round=round,
        mechanisms=mechanisms,
        patients=patients,
        grid=grid,
    )
    if problems:
        raise PolicyRefusal("\n".join(map(str, problems)))


def plan_problems(
    policy: SitePolicy,
    *,
    stage: str,
    round: int,
    mechanisms: Sequence[Mechanism],
    patients: int,
    grid: Sequence[int],
) -> list[Problem]:
    """List what forbids a plan, each named for the policy's key."""
    return [
        *_stage_problems(policy, stage),
        *_size_problems(policy, round, patients),
        *_grid_problems(policy, grid),
        *chain.from_iterable(_mechanism_problems(policy, one) for one in mechanisms),
    ]


def _stage_problems(policy: SitePolicy, stage: str) -> Iterator[Problem]:
    if stage not in policy.stages:
        allowed = ", ".join(policy.stages) or "no stage at all"
        yield Problem(name="stages", value=str(stage)[:64], wanted=f"one of: {allowed}")
    if stage == SYNTHESIZE and not policy.synthetic_may_leave:
        yield Problem(name="synthetic_may_leave", value="synthetic images", wanted="none to leave")


def _size_problems(policy: SitePolicy, round: int, patients: int) -> Iterator[Problem]:
    if not 0 <= round <= policy.maximum_rounds:
        wanted = f"round 0 to {policy.maximum_rounds}"
        yield Problem(name="maximum_rounds", value=f"round {round}", wanted=wanted)
    if patients < policy.minimum_patients:
        wanted = f"at least {policy.minimum_patients}"
        yield Problem(name="minimum_patients", value=f"{patients} patients", wanted=wanted)


def _grid_problems(policy: SitePolicy, grid: Sequence[int]) -> Iterator[Problem]:
    if (voxels := prod(grid)) > policy.maximum_voxels:
        wanted = f"at most {policy.maximum_voxels}"
        yield Problem(name="maximum_voxels", value=f"a grid of {voxels} voxels", wanted=wanted)
    if (side := min(grid)) < policy.minimum_side:
        wanted = f"at least {policy.minimum_side}"
        yield Problem(name="minimum_side", value=f"a grid with a side of {side}", wanted=wanted)


def _mechanism_problems(policy: SitePolicy, mechanism: Mechanism) -> Iterator[Problem]:
    # Written so that NaN is refused: no comparison with it holds.
    if not 1 <= mechanism.steps <= policy.maximum_steps:
        wanted = f"1 to {policy.maximum_steps}"
        yield Problem(name="maximum_steps", value=f"{mechanism.steps} steps", wanted=wanted)
    if not 0 < mechanism.sampling_rate <= 1:
        value = str(mechanism.sampling_rate)
        yield Problem(name="sampling_rate", value=value, wanted="above 0, at most 1")
    if mechanism.noise_multiplier == 0:
        if not policy.allow_unprotected:
            value = f"mechanism {mechanism.name} without noise"
            yield Problem(name="allow_unprotected", value=value, wanted="protected mechanisms only")
        return
    if not mechanism.noise_multiplier >= policy.minimum_noise_multiplier:
        yield Problem(
            name="minimum_noise_multiplier",
            value=str(mechanism.noise_multiplier),
            wanted=f"at least {policy.minimum_noise_multiplier}",
        )
    if mechanism.noise_multiplier > policy.maximum_noise_multiplier:
        yield Problem(
            name="maximum_noise_multiplier",
            value=str(mechanism.noise_multiplier),
            wanted=f"at most {policy.maximum_noise_multiplier:g}",
        )
    if not policy.minimum_clip <= mechanism.clip <= policy.maximum_clip:
        yield Problem(
            name="minimum_clip, maximum_clip",
            value=f"clip {mechanism.clip}",
            wanted=f"{policy.minimum_clip} to {policy.maximum_clip}",
        )


def key_problem(place: str, key: str, fault: Mapping[str, Any]) -> Problem:
    """Tell what pydantic found wrong with a key of `[policy]`; for an unknown one, the nearest."""
    match fault["type"]:
        case "extra_forbidden":
            near = get_close_matches(key, SitePolicy.model_fields, n=1)
            mend = f"did you mean {near[0]}?" if near else ""
            known = "one of " + ", ".join(SitePolicy.model_fields)
            return Problem(name=place, value="an unknown key", wanted=known, mend=mend)
        case "missing":
            return Problem(name=place, value="nothing", wanted="a value: it has no default")
        case _:
            return Problem(name=place, value=repr(fault["input"])[:80], wanted=fault["msg"])
