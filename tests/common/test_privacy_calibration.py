import math

import pytest

from medsynth_common.errors import BadInput
from medsynth_common.privacy.accountant import Request, calibrate
from medsynth_common.privacy.accountant import epsilon as cost_of


def request_of(name: str, share: float, rate: float, steps: int) -> Request:
    return Request(name=name, share=share, clip=0.5, sampling_rate=rate, steps=steps)


THREE = [
    request_of("moments", 1.0, 1.0, 1),
    request_of("critic", 4.0, 0.25, 60),
    request_of("segmenter", 3.0, 0.1, 40),
]


@pytest.mark.parametrize(
    ("requests", "budget"),
    [(THREE, 8.0), (THREE[:2], 1.0), (THREE[1:2], 0.1), (THREE[:1], 8.0)],
)
def test_the_budget_is_kept_and_used(requests: list[Request], budget: float) -> None:
    found = calibrate(requests, epsilon=budget, delta=1e-3)
    spent = cost_of([one for mechanism in found for one in mechanism.releases], 1e-3)
    assert 0.995 * budget <= spent <= budget
    for mechanism, request in zip(found, requests, strict=True):
        assert mechanism.name == request.name
        assert mechanism.clip == request.clip
        assert mechanism.sampling_rate == request.sampling_rate
        assert mechanism.steps == request.steps


def test_shares_are_what_each_would_cost_alone() -> None:
    found = calibrate(THREE[1:], epsilon=4.0, delta=1e-3)
    alone = [cost_of(mechanism.releases, 1e-3) for mechanism in found]
    assert alone[0] / alone[1] == pytest.approx(4 / 3, rel=0.15)
    assert sum(alone) > 4.0  # together they cost less than one by one


def test_only_the_ratio_of_shares_counts() -> None:
    few = [request_of("a", 1.0, 1.0, 1), request_of("b", 3.0, 1.0, 5)]
    many = [request_of("a", 10.0, 1.0, 1), request_of("b", 30.0, 1.0, 5)]
    assert calibrate(few, epsilon=2.0, delta=1e-4) == calibrate(many, epsilon=2.0, delta=1e-4)


def test_where_the_cost_jumps_the_budget_is_still_kept() -> None:
    # Epsilon above 100 is charged by a looser accountant; 95 lies in the jump.
    found = calibrate([request_of("a", 1.0, 0.1, 20)], epsilon=95.0, delta=1e-3)
    assert 0.7 * 95 < cost_of(found[0].releases, 1e-3) <= 95


def test_no_requests_need_no_noise() -> None:
    assert calibrate([], epsilon=1.0, delta=1e-5) == []


def test_a_budget_that_is_none_is_refused_with_all_its_problems() -> None:
    with pytest.raises(BadInput) as refusal:
        calibrate(THREE, epsilon=math.nan, delta=0.0)
    assert [problem.name for problem in refusal.value.problems] == ["epsilon", "delta"]
    with pytest.raises(BadInput, match="epsilon"):
        calibrate(THREE, epsilon=-1.0, delta=1e-5)


def test_a_budget_that_no_noise_can_keep_is_refused() -> None:
    with pytest.raises(BadInput, match="budget that noise can keep"):
        calibrate(THREE[:1], epsilon=1e-200, delta=1e-30)
