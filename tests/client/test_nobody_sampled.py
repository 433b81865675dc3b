"""A step that no patient takes part in: work on a stand-in, which leaves no trace.

Without it a round that cannot be done (too little memory) fails with patients and is answered
without, and so tells for nothing whether anybody was sampled.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from medsynth_client.critics.mean_features import MeanFeaturesCritic
from medsynth_client.order import Order, Outcome
from medsynth_client.stages import WORK
from medsynth_common.errors import BadMessage
from medsynth_common.learning.volumes import Volume
from medsynth_common.plan import Critic, Game, RoundPlan, SegmentSettings, Stage
from tiny import PATIENTS, Quiet, adversarial, plan, unprotected, volumes

_PAIRS: dict[str, Any] = {"paired_weight": 1.0, "consistency_weight": 0.0}


def _adversarial(mechanisms: tuple[str, ...], **settings: Any) -> RoundPlan:
    return plan(
        Stage.ADVERSARIAL,
        settings=adversarial(**settings),
        mechanisms=tuple(map(unprotected, mechanisms)),
    )


#: Every private work there is.
WORKS: dict[str, Callable[[], RoundPlan]] = {
    "level": lambda: plan(mechanisms=(unprotected("level"),)),
    "spread": lambda: plan(round=2, mechanisms=(unprotected("spread"),)),
    "metrics": lambda: plan(Stage.METRICS, mechanisms=(unprotected("metrics"),)),
    **{
        f"segmenter, {count} directions": lambda count=count: plan(  # type: ignore[misc]
            Stage.SEGMENT,
            settings=SegmentSettings(directions=count),
            mechanisms=(unprotected("segmenter"),),
        )
        for count in (0, 8)
    },
    **{
        critic.value: lambda critic=critic: _adversarial(("critic",), critic=critic)  # type: ignore[misc]
        for critic in Critic
    },
    "pairs": lambda: _adversarial(("critic", "paired"), **_PAIRS),
    "critic of pairs": lambda: _adversarial(
        ("critic", "paired"),
        **_PAIRS,
        critic=Critic.PATCHGAN,
        game=Game.CROSS_ENTROPY,
        lock_weight=0.0,
    ),
}


def ordered(
    asked: RoundPlan, patients: tuple[Volume, ...], state: Mapping[str, Tensor] | None = None
) -> Order:
    return Order(
        plan=asked.header,
        weights=asked.weights,
        patients=patients,
        declared=PATIENTS,
        state=state or {},
        randomness=Quiet(),
        device=torch.device("cpu"),
    )


def done(asked: RoundPlan, patients: tuple[Volume, ...]) -> Outcome:
    torch.manual_seed(0)
    return WORK[asked.header.stage](ordered(asked, patients))


@pytest.mark.parametrize("work", WORKS)
def test_work_that_cannot_be_done_fails_without_patients_too(
    work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(_: Order) -> Volume:
        raise MemoryError

    monkeypatch.setattr(Order, "stand_in", property(too_large))
    done(WORKS[work](), volumes())  # whoever is sampled needs no stand-in
    with pytest.raises(MemoryError):
        done(WORKS[work](), ())


@pytest.mark.parametrize("work", WORKS)
def test_a_stand_in_leaves_no_trace(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def left(stand_in: Volume) -> dict[str, Tensor]:
        monkeypatch.setattr(Order, "stand_in", stand_in)
        outcome = done(WORKS[work](), ())
        return {**outcome.weights, **outcome.own, **outcome.state}

    one, other = (left(volume) for volume in volumes()[:2])
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("work", WORKS)
def test_an_empty_volume_can_stand_in(work: str) -> None:
    outcome = done(WORKS[work](), ())
    assert all(tensor.isfinite().all() for tensor in {**outcome.weights, **outcome.own}.values())


def test_a_stand_in_is_as_large_as_a_patient() -> None:
    nobody, patient = ordered(plan(), ()).stand_in, volumes()[0]
    for one, other in ((nobody.image, patient.image), (nobody.labels, patient.labels)):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize("patients", [(), volumes()], ids=["nobody", "patients"])
def test_a_critic_kept_of_other_networks_is_refused_whoever_is_sampled(
    patients: tuple[Volume, ...],
) -> None:
    asked = WORKS[Critic.MEAN_FEATURES.value]()
    kept = {"mean-features.sum": torch.zeros(5), "mean-features.releases": torch.ones(())}
    with pytest.raises(BadMessage, match="wanted the 5 of the run's earlier rounds"):
        MeanFeaturesCritic(ordered(asked, patients, kept))
