"""The privacy promises of the stages, held as promises: two neighbouring hospitals, one bound.

Chance is switched off (everyone is sampled, crops lie where they lie, noise is none), so that
two hospitals that differ by one patient differ in a release by that patient's part alone.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from medsynth_client.critics.head import HeadCritic
from medsynth_client.critics.mean_features import MeanFeaturesCritic
from medsynth_client.critics.patchgan import PatchGanCritic
from medsynth_client.order import Order, Outcome
from medsynth_client.stages import WORK
from medsynth_client.stages import adversarial as adversarial_file
from medsynth_common.labels import one_hot
from medsynth_common.learning.painting import paint
from medsynth_common.learning.volumes import Volume
from medsynth_common.plan import (
    AdversarialSettings,
    Critic,
    Game,
    RoundPlan,
    SegmentSettings,
    Stage,
)
from medsynth_common.privacy.mechanism import Gaussian
from medsynth_common.style import Style, stack
from tiny import PATIENTS, Quiet, adversarial, gaussian, plan, volumes

OUTLIER = replace(volumes(3, 900, 1)[0], image=volumes(3, 900, 1)[0].image * 50)
EVERYONE = (*volumes()[:2], OUTLIER)
CRITICS = {
    Critic.MEAN_FEATURES: MeanFeaturesCritic,
    Critic.HEAD: HeadCritic,
    Critic.PATCHGAN: PatchGanCritic,
}


def work(
    asked: RoundPlan, patients: Sequence[Volume], state: Mapping[str, Tensor] | None = None
) -> Outcome:
    return WORK[asked.header.stage](
        Order(
            plan=asked.header,
            weights=asked.weights,
            patients=patients,
            declared=PATIENTS,
            state=state or {},
            randomness=Quiet(),
            device=torch.device("cpu"),
        )
    )


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Tensor]]:
    """What each mechanism was about to put noise on, in order."""
    seen: dict[str, list[Tensor]] = defaultdict(list)
    noised = Gaussian.noised

    def spy(self: Gaussian, total: Tensor, randomness: Any) -> Tensor:
        seen[self.name].append(total.clone().flatten())
        return noised(self, total, randomness)

    monkeypatch.setattr(Gaussian, "noised", spy)
    return seen


def adversarial_plan(critic: Critic, clip: float, **changes: Any) -> RoundPlan:
    return plan(
        Stage.ADVERSARIAL,
        settings=adversarial(critic=critic, generator_steps=0, **changes),
        mechanisms=(gaussian("critic", clip=clip), gaussian("paired", clip=clip)),
    )


def pix2pix_plan(clip: float) -> RoundPlan:
    """The seed paper's training. The critic hardly moves: a release is bounded given those before
    it, and the generator's comes after the critic's."""
    return adversarial_plan(
        Critic.PATCHGAN,
        clip,
        game=Game.CROSS_ENTROPY,
        critic_learning_rate=1e-12,
        paired_weight=100.0,
        lesion_share=0.5,
        lesion_patch=(6, 6, 6),
        lock_weight=0.0,
        consistency_weight=0.0,
    )


#: One private step of each kind, and the mechanism that it is about; `clip` is still open.
STEPS: dict[str, tuple[str, Callable[[float], RoundPlan]]] = {
    "level": ("level", lambda clip: plan(mechanisms=(gaussian("level", clip=clip),))),
    "spread": ("spread", lambda clip: plan(round=2, mechanisms=(gaussian("spread", clip=clip),))),
    "segment": (
        "segmenter",
        lambda clip: plan(
            Stage.SEGMENT,
            settings=SegmentSettings(crops=2, proximal=0.1),
            mechanisms=(gaussian("segmenter", clip=clip),),
        ),
    ),
    "segment along directions": (
        "segmenter",
        lambda clip: plan(
            Stage.SEGMENT,
            settings=SegmentSettings(crops=2, proximal=0.1, directions=4),
            mechanisms=(gaussian("segmenter", clip=clip),),
        ),
    ),
    "mean-features": ("critic", lambda clip: adversarial_plan(Critic.MEAN_FEATURES, clip)),
    "head": ("critic", lambda clip: adversarial_plan(Critic.HEAD, clip)),
    "patchgan": ("critic", lambda clip: adversarial_plan(Critic.PATCHGAN, clip)),
    "paired": (
        "paired",
        lambda clip: adversarial_plan(Critic.MEAN_FEATURES, clip, paired_weight=1.0),
    ),
    "weighted pairs": (
        "paired",
        lambda clip: adversarial_plan(
            Critic.HEAD, clip, paired_weight=100.0, lesion_share=0.5, lesion_patch=(6, 6, 6)
        ),
    ),
    "pix2pix critic": ("critic", pix2pix_plan),
    "pix2pix generator": ("paired", pix2pix_plan),
}


def released(
    step: str, clip: float, patients: Sequence[Volume], sums: dict[str, list[Tensor]]
) -> Tensor:
    """All that one private step releases of these patients, before noise, as one vector."""
    name, asked = STEPS[step]
    sums.clear()
    work(asked(clip), patients)
    return torch.cat(sums[name])


def largest_influence(step: str, clip: float, sums: dict[str, list[Tensor]]) -> float:
    """The most that any one patient changes of the step's sum, over the clip."""
    whole = released(step, clip, EVERYONE, sums)
    without = [
        released(step, clip, EVERYONE[:k] + EVERYONE[k + 1 :], sums) for k in range(len(EVERYONE))
    ]
    changes = [float((whole - other).norm()) / clip for other in without]
    assert min(changes) > 1e-6  # everyone takes part, or the bound says nothing
    return max(changes)


@pytest.mark.parametrize("step", STEPS)
def test_one_patient_changes_a_release_by_at_most_the_clip(
    step: str, sums: dict[str, list[Tensor]]
) -> None:
    assert largest_influence(step, 1e-3, sums) <= 1 + 1e-6


@pytest.mark.parametrize("step", STEPS)
def test_without_the_clip_the_same_check_fails(
    step: str, sums: dict[str, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gaussian, "clip_factor", lambda _self, _norm: 1.0)
    assert largest_influence(step, 1e-3, sums) > 1.5


@pytest.mark.parametrize("step", STEPS)
def test_a_patient_that_is_not_finite_adds_nothing(
    step: str, sums: dict[str, list[Tensor]]
) -> None:
    spoiled = replace(OUTLIER, image=OUTLIER.image * float("nan"))
    with_it = released(step, 0.5, [*volumes(), spoiled], sums)
    assert torch.equal(with_it, released(step, 0.5, volumes(), sums))


@pytest.mark.parametrize("step", STEPS)
def test_nobody_is_a_release_too(step: str, sums: dict[str, list[Tensor]]) -> None:
    nobody = released(step, 0.5, [], sums)
    assert nobody.shape == released(step, 0.5, volumes(), sums).shape
    assert not bool(nobody.any())


# The generator's public step.


OTHERS = tuple(
    replace(volume, labels=volume.labels.flip(0), image=volume.image.flip(0) * 0.5)
    for volume in volumes(2, 700)
)


def generator_follows_patients(critic: Critic, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether, with the critic held still, the generator's update depends on the patients."""
    monkeypatch.setattr(CRITICS[critic], "learn", lambda _self, _fakes: None)
    settings = adversarial(critic=critic, generator_steps=2)
    asked = plan(Stage.ADVERSARIAL, settings=settings)
    first, second = work(asked, volumes()), work(asked, OTHERS)
    assert any(not torch.equal(first.weights[key], asked.weights[key]) for key in first.weights)
    pairs = [
        (one[key], two[key])
        for one, two in ((first.weights, second.weights), (first.own, second.own))
        for key in one
    ]
    return any(not torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize("critic", Critic)
def test_the_generator_reaches_patients_through_the_critic_alone(
    critic: Critic, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not generator_follows_patients(critic, monkeypatch)


def paints_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: the fakes are painted on the patients' own label maps."""

    def paint_patients(self: Any) -> tuple[Tensor, Style, Tensor]:
        classes = one_hot(torch.stack([volume.labels for volume in self.order.patients[:2]]))
        styles = stack([self.style, self.style])
        return classes, styles, paint(self.generator, classes, styles, self.draw)

    monkeypatch.setattr(adversarial_file._GeneratorTraining, "public_pairs", paint_patients)


def banks_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: one of the patients' label maps is among the bank's."""
    begin = adversarial_file._GeneratorTraining.__init__

    def faulty(self: Any, order: Order, settings: AdversarialSettings) -> None:
        begin(self, order, settings)
        self.bank = torch.cat([order.patients[0].labels[None], self.bank[1:]])

    monkeypatch.setattr(adversarial_file._GeneratorTraining, "__init__", faulty)


@pytest.mark.parametrize("fault", [paints_patients, banks_patients])
@pytest.mark.parametrize("critic", Critic)
def test_a_private_label_map_in_the_generator_s_step_is_found(
    critic: Critic,
    fault: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault(monkeypatch)
    assert generator_follows_patients(critic, monkeypatch)


def test_the_public_fakes_do_not_tell_how_many_patients_were_sampled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = adversarial_file._GeneratorTraining
    drawn: list[Tensor] = []
    public_pairs = training.public_pairs

    def spy(self: Any) -> Any:
        drawn.append(self.draw.get_state())
        return public_pairs(self)

    monkeypatch.setattr(training, "public_pairs", spy)
    asked = plan(
        Stage.ADVERSARIAL,
        settings=adversarial(critic=Critic.HEAD, paired_weight=1.0),
        mechanisms=(gaussian("critic", steps=2), gaussian("paired", steps=2)),
    )
    work(asked, volumes())
    of_three = list(drawn)
    drawn.clear()
    work(asked, volumes()[:1])
    assert len(drawn) == len(of_three) == 4
    assert all(torch.equal(one, three) for one, three in zip(drawn, of_three, strict=True))
