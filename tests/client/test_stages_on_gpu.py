"""Every stage and critic carried out on a GPU, where there is one: no tensor is left on the way.

A stage that breaks off half way has been charged, so a site would pay for nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from medsynth_client.order import Order, Outcome
from medsynth_client.stages import WORK
from medsynth_common.learning.volumes import Volume
from medsynth_common.plan import Critic, Game, Precision, RoundPlan, SegmentSettings, Stage
from medsynth_common.privacy.randomness import SimulatedRandomness
from medsynth_common.tensors import with_prefix
from medsynth_common.update import check_tensors
from medsynth_common.wire.forms import check_plan_form, expected_update
from tiny import PATIENTS, adversarial, gaussian, plan, volumes

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="a GPU is wanted: torch finds no CUDA device here"
)

CRITIC = (gaussian("critic", steps=2),)
PAIRED = (gaussian("critic", steps=2), gaussian("paired", steps=2))
#: Made when they are wanted: where there is no GPU they would be made for nothing.
PLANS: Mapping[str, Callable[[], RoundPlan]] = {
    "moments, level": plan,
    "moments, spread": partial(plan, round=2, mechanisms=(gaussian("spread"),)),
    "metrics": partial(plan, Stage.METRICS),
    **{
        f"segment, {precision}, {directions} directions": partial(
            plan,
            Stage.SEGMENT,
            settings=SegmentSettings(
                crops=2, precision=precision, directions=directions, proximal=0.1
            ),
            mechanisms=(gaussian("segmenter", steps=2),),
        )
        for precision in Precision
        for directions in (0, 4)
    },
    **{
        f"adversarial, {critic}": partial(
            plan, Stage.ADVERSARIAL, settings=adversarial(critic=critic), mechanisms=CRITIC
        )
        for critic in Critic
    },
    "adversarial, patchgan, bfloat16": partial(
        plan,
        Stage.ADVERSARIAL,
        settings=adversarial(critic=Critic.PATCHGAN, precision=Precision.BFLOAT16),
        mechanisms=CRITIC,
    ),
    "adversarial, paired": partial(
        plan, Stage.ADVERSARIAL, settings=adversarial(paired_weight=1.0), mechanisms=PAIRED
    ),
    "adversarial, pix2pix": partial(
        plan,
        Stage.ADVERSARIAL,
        settings=adversarial(
            critic=Critic.PATCHGAN,
            game=Game.CROSS_ENTROPY,
            consistency_weight=0.0,
            lock_weight=0.0,
            paired_weight=100.0,
            lesion_share=0.5,
            lesion_patch=(6, 6, 6),
        ),
        mechanisms=PAIRED,
    ),
}


def carried(
    asked: RoundPlan,
    device: str,
    *,
    patients: Sequence[Volume] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> Outcome:
    return WORK[asked.header.stage](
        Order(
            plan=asked.header,
            weights=asked.weights,
            patients=volumes() if patients is None else patients,
            declared=PATIENTS,
            state=state or {},
            randomness=SimulatedRandomness("gpu"),
            device=torch.device(device),
        )
    )


@pytest.mark.parametrize("name", PLANS)
def test_a_gpu_s_answer_is_accepted_like_the_cpu_s(name: str) -> None:
    asked = PLANS[name]()
    check_plan_form(asked)
    first = carried(asked, "cuda")
    kept = first.state  # serves the next round, wherever that is carried out
    later = [carried(asked, device, state=kept) for device in ("cuda", "cpu")]
    for outcome in (first, *later, carried(asked, "cuda", patients=())):
        answer = with_prefix("weights", outcome.weights) | with_prefix("own", outcome.own)
        check_tensors(answer, expected_update(asked))  # finite, too
        everything = [*answer.values(), *outcome.state.values()]
        assert {tensor.device.type for tensor in everything} <= {"cpu"}
        assert all(bool(tensor.isfinite().all()) for tensor in outcome.state.values())
