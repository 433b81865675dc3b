import math
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from medsynth_client.policy import SitePolicy, check_plan
from medsynth_common.errors import PolicyRefusal


def policy(**changes: object) -> SitePolicy:
    fields: dict[str, object] = {
        "epsilon_cap": 8.0,
        "delta": 1e-5,
        "stages": ("moments", "segment"),
        "minimum_patients": 20,
        "maximum_steps": 100,
        "maximum_rounds": 10,
    }
    return SitePolicy.model_validate(fields | changes)


def plan(**changes: object) -> dict[str, object]:
    mechanism: dict[str, object] = {
        "name": "critic",
        "clip": 1.0,
        "noise_multiplier": 2.0,
        "sampling_rate": 0.1,
        "steps": 50,
    }
    rest = {"stage": "segment", "round": 3, "patients": 20, "grid": (48, 48, 48)}
    of_mechanism = {key: value for key, value in changes.items() if key in mechanism}
    of_rest = {key: value for key, value in changes.items() if key not in mechanism}
    return rest | of_rest | {"mechanisms": [SimpleNamespace(**(mechanism | of_mechanism))]}


def ask(site: SitePolicy, **changes: object) -> None:
    check_plan(site, **plan(**changes))  # type: ignore[arg-type]  # keywords made up above


def test_no_cap_only_where_nothing_is_protected() -> None:
    with pytest.raises(ValidationError, match="epsilon_cap must be finite"):
        policy(epsilon_cap=math.inf)
    assert math.isinf(policy(epsilon_cap=math.inf, allow_unprotected=True).epsilon_cap)
    with pytest.raises(ValidationError, match="minimum_clip"):
        policy(minimum_clip=2.0, maximum_clip=1.0)
    with pytest.raises(ValidationError, match=r"maximum_noise_multiplier, got 0\.5 and 0\.4"):
        policy(maximum_noise_multiplier=0.4)


def test_a_plan_within_the_policy_passes() -> None:
    ask(policy())
    check_plan(policy(), stage="moments", round=10, mechanisms=(), patients=20, grid=(24, 24, 24))
    ask(policy(allow_unprotected=True), noise_multiplier=0.0, clip=math.inf)


@pytest.mark.parametrize(
    ("change", "key", "value", "limit"),
    [
        ({"stage": "adversarial"}, "stages", "adversarial", "moments, segment"),
        ({"round": 11}, "maximum_rounds", "11", "10"),
        ({"round": 10**9}, "maximum_rounds", "1000000000", "10"),
        ({"round": -1}, "maximum_rounds", "-1", "10"),
        ({"patients": 19}, "minimum_patients", "19", "20"),
        ({"steps": 101}, "maximum_steps", "101", "100"),
        ({"steps": -1}, "maximum_steps", "-1", "100"),
        ({"noise_multiplier": 0.4}, "minimum_noise_multiplier", "0.4", "0.5"),
        ({"noise_multiplier": math.nan}, "minimum_noise_multiplier", "nan", "0.5"),
        ({"noise_multiplier": 1e9}, "maximum_noise_multiplier", "1000000000.0", "1000"),
        ({"noise_multiplier": 0.0}, "allow_unprotected", "critic", "protected"),
        ({"clip": math.nan}, "minimum_clip, maximum_clip", "nan", "1000"),
        ({"clip": 0.0}, "minimum_clip, maximum_clip", "0.0", "1e-06"),
        ({"sampling_rate": 1.5}, "sampling_rate", "1.5", "at most 1"),
    ],
)
def test_a_plan_outside_is_refused_by_key_value_and_limit(
    change: dict[str, object], key: str, value: str, limit: str
) -> None:
    with pytest.raises(PolicyRefusal) as caught:
        ask(policy(), **change)
    line = str(caught.value)
    assert line.startswith(f"{key}: got ")
    assert value in line
    assert limit in line


def test_all_that_forbids_a_plan_is_told() -> None:
    with pytest.raises(PolicyRefusal) as caught:
        ask(policy(), stage="nonsense", patients=1, steps=0)
    assert len(str(caught.value).splitlines()) == 3


def test_synthetic_images_leave_only_when_the_site_says_so() -> None:
    stages = ("synthesize",)
    with pytest.raises(PolicyRefusal, match="synthetic_may_leave"):
        check_plan(
            policy(stages=stages),
            stage="synthesize",
            round=1,
            mechanisms=(),
            patients=20,
            grid=(24, 24, 24),
        )
    allowed = policy(stages=stages, synthetic_may_leave=True)
    check_plan(allowed, stage="synthesize", round=1, mechanisms=(), patients=20, grid=(24, 24, 24))
