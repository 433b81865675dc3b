import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from medsynth_common.errors import BadMessage
from medsynth_common.plan import Stage
from medsynth_common.update import LARGEST_WEIGHT, UpdateHeader, check_tensors

FORM = {"head": torch.zeros(2, 3), "steps": torch.zeros((), dtype=torch.int64)}
GOOD = {"head": torch.full((2, 3), LARGEST_WEIGHT), "steps": torch.tensor(7)}


def spoiled(value: float) -> dict[str, Tensor]:
    head = torch.zeros(2, 3)
    head[1, 2] = value
    return GOOD | {"head": head}


def test_tensors_of_the_wanted_form_pass() -> None:
    check_tensors(GOOD, FORM)
    check_tensors(spoiled(-LARGEST_WEIGHT), FORM)
    check_tensors({}, {})
    check_tensors({"empty": torch.zeros(0)}, {"empty": torch.zeros(0)})


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        ({"steps": GOOD["steps"]}, "head: got nothing, wanted a tensor"),
        (GOOD | {"patient": torch.zeros(1)}, "patient: got a tensor, wanted no tensor"),
        (GOOD | {"head": torch.zeros(3, 2)}, r"head: got torch.float32 \(3, 2\)"),
        (GOOD | {"head": torch.zeros(2, 3).double()}, "head: got torch.float64"),
        (GOOD | {"steps": torch.zeros(())}, "steps: got torch.float32"),
        (spoiled(math.nan), "head: got not finite"),
        (spoiled(-math.inf), "head: got not finite"),
        (GOOD | {"head": torch.tensor([[math.nan, 1e30, 0], [0, 0, 0]])}, "head: got not finite"),
        (spoiled(1e30), r"head: got 1e\+30"),
        (spoiled(-1e30), r"head: got 1e\+30"),
        (spoiled(LARGEST_WEIGHT * 1.01), r"head: got 1.01e\+04, wanted finite, at most 10000"),
    ],
)
def test_other_tensors_are_told(tensors: dict[str, Tensor], told: str) -> None:
    with pytest.raises(BadMessage, match=told) as caught:
        check_tensors(tensors, FORM)
    assert len(caught.value.problems) == 1


def test_every_problem_is_told_and_long_names_are_cut() -> None:
    with pytest.raises(BadMessage) as caught:
        check_tensors(
            {"x" * 1000: torch.zeros(1), **spoiled(math.nan)}, FORM | {"tail": GOOD["head"]}
        )
    assert [problem.name for problem in caught.value.problems] == ["tail", "x" * 80, "head"]


def update(**changes: Any) -> UpdateHeader:
    fields: dict[str, Any] = {
        "run": "run-1",
        "site": "site-a",
        "stage": Stage.SEGMENT,
        "round": 1,
        "plan_digest": "a" * 64,
        "declared_patients": 20,
        "delta": 1e-5,
    }
    return UpdateHeader(**{**fields, **changes})


def test_an_update_holds_nothing_but_its_receipt() -> None:
    assert update().epsilon is None
    assert update(epsilon=1.5, cap=8.0).cap == 8.0
    assert set(UpdateHeader.model_fields) == {
        *("run", "site", "stage", "round", "plan_digest"),
        *("declared_patients", "epsilon", "cap", "delta", "rehearsal"),
    }


@pytest.mark.parametrize(
    "change",
    [
        {"loss": 0.3},
        {"patients": 31},
        {"plan_digest": "a" * 63},
        {"plan_digest": "A" * 64},
        {"epsilon": math.inf},
        {"epsilon": -1.0},
        {"declared_patients": 0},
        {"delta": 0.0},
        {"site": "a b"},
    ],
)
def test_an_update_that_says_more_or_less_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        update(**change)
