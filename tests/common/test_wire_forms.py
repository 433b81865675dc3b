import pytest

from medsynth_common.plan import Stage
from medsynth_common.style import Style
from medsynth_common.wire.forms import expected_update
from tiny import plan

STYLE = {f"own.style.{name}" for name in Style.neutral().tensors()}


@pytest.mark.parametrize(
    ("stage", "part", "own"),
    [
        (Stage.MOMENTS, None, STYLE),
        (Stage.SEGMENT, "segmenter", set()),
        (Stage.ADVERSARIAL, "generator", {"own.style.code"}),
        (Stage.METRICS, None, {"own.metrics.scores"}),
    ],
)
def test_a_stage_answers_with_its_own_part(stage: Stage, part: str, own: set[str]) -> None:
    asked = plan(stage)
    form = expected_update(asked)
    weights = {name for name in asked.weights if part and name.startswith(f"{part}.")}
    assert form.keys() == {f"weights.{name}" for name in weights} | own
    assert all(form[f"weights.{name}"].shape == asked.weights[name].shape for name in weights)
    assert bool(weights) == (part is not None)
