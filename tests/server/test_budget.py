"""From the run's epsilon to each stage's noise."""

import pytest

from medsynth_common.errors import BadInput
from medsynth_common.learning.dice import SCORES_CLIP
from medsynth_common.privacy.accountant import guarantee
from medsynth_common.privacy.mechanism import Gaussian, Unprotected
from medsynth_server.budget import check_budget, plan_budget
from tiny_run import public_model, tiny_config

MECHANISMS = {"level", "spread", "segmenter", "critic"}


@pytest.mark.parametrize(("epsilon", "rate"), [(0.5, 1.0), (8.0, 0.3)])
def test_all_mechanisms_together_cost_no_more_than_the_budget_and_hardly_less(
    epsilon: float, rate: float
) -> None:
    config = tiny_config({"privacy": {"epsilon": epsilon}, "segment": {"sampling_rate": rate}})
    budget = plan_budget(config, public_model())
    assert budget.mechanisms.keys() == MECHANISMS
    assert all(isinstance(one, Gaussian) for one in budget.mechanisms.values())
    found = guarantee(
        [one for one in budget.mechanisms.values() if isinstance(one, Gaussian)], delta=1e-3
    )
    assert 0.95 * epsilon < found.epsilon <= epsilon


def test_without_privacy_the_same_mechanisms_run_without_noise() -> None:
    private = plan_budget(tiny_config(), public_model())
    off = plan_budget(tiny_config({"privacy": "off"}), public_model())
    assert off.mechanisms.keys() == private.mechanisms.keys()
    for name, mechanism in off.mechanisms.items():
        assert isinstance(mechanism, Unprotected)
        assert mechanism.steps == private.mechanisms[name].steps
        assert mechanism.sampling_rate == private.mechanisms[name].sampling_rate


def test_steps_are_those_of_all_rounds_and_clips_those_measured_in_public() -> None:
    budget = plan_budget(tiny_config(), public_model())
    assert budget.mechanisms["segmenter"].steps == 2 * 2
    assert budget.mechanisms["critic"].steps == 2
    assert budget.mechanisms["segmenter"].clip == tiny_config().segment.clip
    prior = public_model().prior
    assert budget.mechanisms["level"].clip == float(prior.level_clip)
    assert budget.mechanisms["spread"].clip == float(prior.spread_clip)
    assert budget.mechanisms["critic"].clip == float(public_model().tensors["features.clip"])
    one_round = budget.for_round("segmenter", steps=2)
    assert one_round.steps == 2
    assert one_round.noise_multiplier == budget.mechanisms["segmenter"].noise_multiplier


def test_a_critic_trained_step_by_step_has_the_clip_of_the_settings() -> None:
    config = tiny_config({"adversarial": {"critic": "head", "clip": 0.7}})
    assert plan_budget(config, public_model()).mechanisms["critic"].clip == 0.7


def test_the_paired_loss_is_charged_when_it_is_on() -> None:
    changes = {"paired_weight": 1.0, "paired_sampling_rate": 0.7}
    config = tiny_config({"adversarial": changes})
    paired = plan_budget(config, public_model()).mechanisms["paired"]
    assert paired.protected
    assert (paired.steps, paired.sampling_rate) == (2 * 2, 0.7)


def test_metrics_cost_nothing_unless_they_are_asked_for() -> None:
    asked = tiny_config({"metrics": {"enabled": True}})
    budget = plan_budget(asked, public_model())
    assert budget.mechanisms.keys() == MECHANISMS | {"metrics"}
    assert budget.mechanisms["metrics"].clip == SCORES_CLIP
    found = guarantee(
        [one for one in budget.mechanisms.values() if isinstance(one, Gaussian)], delta=1e-3
    )
    assert 0.95 * 8.0 < found.epsilon <= 8.0
    with pytest.raises(BadInput, match="segment is not enabled"):
        tiny_config({"metrics": {"enabled": True}, "segment": {"enabled": False}})


@pytest.mark.parametrize("stage", ["moments", "segment", "adversarial"])
def test_a_stage_that_is_off_costs_nothing(stage: str) -> None:
    gone = {"moments": {"level", "spread"}, "segment": {"segmenter"}, "adversarial": {"critic"}}
    config = tiny_config({stage: {"enabled": False}})
    budget = plan_budget(config, public_model())
    assert budget.mechanisms.keys() == MECHANISMS - gone[stage]


def test_a_budget_that_no_noise_can_keep_is_refused_before_anything_is_trained() -> None:
    with pytest.raises(BadInput, match="epsilon"):
        check_budget(tiny_config({"privacy": {"epsilon": 1e-9, "delta": 1e-9}}))
    check_budget(tiny_config())
    check_budget(tiny_config({"privacy": "off"}))
