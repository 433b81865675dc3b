"""The coordinator's half of stage segment: it finds directions and sends them while needed."""

import pytest
import torch

from medsynth_common.learning.directions import Directions
from medsynth_common.plan import SegmentSettings
from medsynth_common.tensors import under
from medsynth_common.wire.forms import check_plan_form
from medsynth_server.budget import plan_budget
from medsynth_server.model import Model
from medsynth_server.stages.asking import Asking
from medsynth_server.stages.segment import SegmentStage
from tiny_run import public_model, tiny_config


def stage(privacy: object = None, **segment: object) -> SegmentStage:
    changes = {"segment": segment} | ({} if privacy is None else {"privacy": privacy})
    config = tiny_config(changes)
    return SegmentStage(
        Asking(run="run", config=config, public_seed=1),
        plan_budget(config, public_model()),
        sites=["site-1", "site-2"],
        device=torch.device("cpu"),
    )


def asked(made: SegmentStage, model: Model) -> tuple[int, set[str]]:
    """How many directions round 2 asks a site to keep to, and the parts its plan brings."""
    plan = made.plan(model, "site-1", 2)
    assert plan is not None
    check_plan_form(plan)
    assert isinstance(plan.header.settings, SegmentSettings)
    return plan.header.settings.directions, {name.split(".")[0] for name in plan.weights}


def test_private_steps_are_sent_directions_until_the_last_round() -> None:
    made = stage(directions=3)
    model, _ = made.after(public_model(), 1)
    assert asked(made, model) == (3, {"segmenter", "directions"})
    basis = Directions.from_tensors(under("directions", model.tensors)).basis
    torch.testing.assert_close(basis @ basis.T, torch.eye(3), rtol=0, atol=5e-3)
    assert made.after(model, 2)[0].part("directions")
    assert not made.after(model, made.rounds)[0].part("directions")


@pytest.mark.parametrize(
    ("privacy", "directions"), [("off", 3), (None, 0)], ids=["no noise", "none wanted"]
)
def test_steps_go_anywhere_where_there_is_no_noise_or_no_directions_are_wanted(
    privacy: object, directions: int
) -> None:
    made = stage(privacy, directions=directions)
    model, _ = made.after(public_model(), 1)
    assert not model.part("directions")
    assert asked(made, model) == (0, {"segmenter"})
