"""What each stage and critic learns, with the noise off."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from medsynth_client.critics import CRITICS
from medsynth_client.critics import mean_features as mean_features_file
from medsynth_client.critics.mean_features import MeanFeaturesCritic
from medsynth_client.critics.patchgan import PatchGanCritic
from medsynth_client.order import Order
from medsynth_client.stages import adversarial as adversarial_file
from medsynth_client.stages.adversarial import train_generator
from medsynth_client.stages.moments import release_moments
from medsynth_client.stages.segment import train_segmenter
from medsynth_common.errors import BadMessage
from medsynth_common.labels import TISSUES, TUMOUR, Tissue, one_hot
from medsynth_common.learning.directions import Directions
from medsynth_common.learning.features import (
    FeatureScale,
    patient_features,
    spread_over_features,
)
from medsynth_common.learning.losses import segmenter_loss, tissue_moments
from medsynth_common.learning.volumes import Volume
from medsynth_common.networks import build_critic, build_segmenter
from medsynth_common.plan import Critic, Game, Precision, RoundPlan, SegmentSettings, Stage
from medsynth_common.privacy.randomness import SimulatedRandomness
from medsynth_common.tensors import under
from tiny import (
    NETWORKS,
    PATIENTS,
    Quiet,
    adversarial,
    gaussian,
    header,
    model,
    plan,
    unprotected,
    volumes,
)

CPU = torch.device("cpu")


def order(
    asked: RoundPlan,
    *,
    patients: Sequence[Volume] | None = None,
    state: Mapping[str, Tensor] | None = None,
    randomness: Any = None,
) -> Order:
    return Order(
        plan=asked.header,
        weights=asked.weights,
        patients=volumes() if patients is None else patients,
        declared=PATIENTS,
        state=state or {},
        randomness=randomness or Quiet(),
        device=CPU,
    )


def test_moments_find_the_scanner() -> None:
    asked = plan(mechanisms=(unprotected("level"),))
    style = under("style", release_moments(order(asked)).own)
    images = torch.stack([volume.image for volume in volumes()])
    classes = one_hot(torch.stack([volume.labels for volume in volumes()]))
    truth = tissue_moments(images, classes)[0].mean(0)
    for tissue in (Tissue.CSF, Tissue.GREY, Tissue.WHITE):
        before = (asked.weights["style.offset"][tissue] - truth[tissue]).abs()
        after = (style["offset"][tissue] - truth[tissue]).abs()
        assert float(after.max()) < 1e-3 < float(before.max())


def test_more_noise_leaves_less_of_the_scanner() -> None:
    prior = model()["style.offset"]

    def moved(noise: float) -> float:
        mechanism = gaussian("level", clip=100.0, noise_multiplier=noise)
        own = release_moments(order(plan(mechanisms=(mechanism,)))).own
        return float((own["style.offset"] - prior).abs().sum())

    assert moved(1e-6) > 1.5 * moved(0.03) > 1.5 * moved(1.0)


def test_the_second_round_of_moments_finds_the_spread() -> None:
    asked = plan(round=2, mechanisms=(unprotected("spread"),))
    own = under("style", release_moments(order(asked)).own)
    assert torch.equal(own["offset"], asked.weights["style.offset"])
    assert not torch.equal(own["spread"], asked.weights["style.spread"])
    later = plan(round=5, mechanisms=(unprotected("spread"),))
    assert torch.equal(release_moments(order(later)).own["style.spread"], own["spread"])


@pytest.mark.parametrize("directions", [0, 8])
@pytest.mark.parametrize("precision", Precision)
def test_the_segmenter_learns(precision: Precision, directions: int) -> None:
    settings = SegmentSettings(
        learning_rate=0.01, crops=2, precision=precision, directions=directions
    )
    asked = plan(Stage.SEGMENT, settings=settings, mechanisms=(unprotected("segmenter", steps=15),))

    def loss_of(weights: Mapping[str, Tensor]) -> float:
        segmenter = build_segmenter(asked.header.networks)
        segmenter.load_state_dict(under("segmenter", weights))
        images = torch.stack([volume.image for volume in volumes()])
        labels = torch.stack([volume.labels for volume in volumes()])
        with torch.no_grad():
            return float(segmenter_loss(segmenter, images, labels, spatial_dims=3))

    outcome = train_segmenter(order(asked, randomness=SimulatedRandomness("segment")))
    assert loss_of(outcome.weights) < 0.9 * loss_of(asked.weights)
    assert {weight.dtype for weight in outcome.weights.values()} == {torch.float32}


@pytest.mark.parametrize("directions", [0, 8])
def test_the_proximal_term_holds_the_segmenter_back(directions: int) -> None:
    def moved(proximal: float) -> float:
        settings = SegmentSettings(learning_rate=0.01, proximal=proximal, directions=directions)
        mechanisms = (unprotected("segmenter", steps=6),)
        asked = plan(Stage.SEGMENT, settings=settings, mechanisms=mechanisms)
        weights = train_segmenter(order(asked)).weights
        return float(sum((weights[key] - asked.weights[key]).abs().sum() for key in weights))

    assert moved(100.0) < 0.9 * moved(0.0)


def critic_order(
    critic: Critic, *, steps: int = 1, state: Mapping[str, Tensor] | None = None
) -> Order:
    settings = adversarial(critic=critic, critic_learning_rate=0.002)
    mechanisms = (unprotected("critic", steps=steps),)
    return order(plan(Stage.ADVERSARIAL, settings=settings, mechanisms=mechanisms), state=state)


def test_a_critics_precision_changes_its_steps_a_little() -> None:
    kept = []
    for precision in Precision:
        settings = adversarial(critic=Critic.PATCHGAN, precision=precision)
        asked = plan(
            Stage.ADVERSARIAL, settings=settings, mechanisms=(unprotected("critic", steps=2),)
        )
        kept.append(under("patchgan", train_generator(order(asked)).state))
    one, other = kept
    assert any(not torch.equal(one[name], other[name]) for name in one)
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=0.01, rtol=0.1)


def batch(chosen: Sequence[Volume]) -> tuple[Tensor, Tensor]:
    classes = one_hot(torch.stack([volume.labels for volume in chosen]))
    return classes, torch.stack([volume.image for volume in chosen])


def coarse(image: Tensor) -> Tensor:
    """The same images from a noisier scanner."""
    draw = torch.Generator().manual_seed(1)
    return image + 0.3 * torch.randn(image.shape, generator=draw)


@pytest.mark.parametrize("critic", Critic)
def test_a_critic_tells_the_site_s_images_from_others(critic: Critic) -> None:
    judge = CRITICS[critic](critic_order(critic, steps=10))
    classes, real = batch(volumes())
    fake = coarse(real)
    judge.learn(lambda: (classes, fake))
    with torch.no_grad():
        assert float(judge.loss(classes, real)) < float(judge.loss(classes, fake)) - 0.05


@pytest.mark.parametrize("critic", Critic)
def test_a_critic_s_loss_reaches_the_image_and_its_memory_lasts(critic: Critic) -> None:
    first = CRITICS[critic](critic_order(critic))
    classes, image = batch(volumes())
    first.learn(lambda: (classes, coarse(image)))
    again = CRITICS[critic](critic_order(critic, state=first.state()))
    seen = image.clone().requires_grad_()
    loss = again.loss(classes, seen)
    loss.backward()  # type: ignore[no-untyped-call]
    assert seen.grad is not None
    assert float(seen.grad.norm()) > 0
    with torch.no_grad():
        assert float(loss.detach()) == pytest.approx(float(first.loss(classes, image)))


def test_mean_features_are_the_mean_of_all_releases() -> None:
    critic = MeanFeaturesCritic(critic_order(Critic.MEAN_FEATURES, steps=3))
    critic.learn(lambda: batch(volumes()))
    state = critic.state()
    assert float(state["mean-features.releases"]) == 3
    trunk = build_critic(header().networks).eval()
    trunk.load_state_dict(under("critic", model()))
    scale = FeatureScale.from_tensors(under("features", model()))
    with torch.no_grad():
        rows = torch.stack([patient_features(trunk, v, scale, 3, CPU) for v in volumes()])
    mean = state["mean-features.sum"] / 3
    assert torch.allclose(mean[:-3], rows.mean(0), atol=1e-5)
    tumour = [[bool((v.labels == tissue).sum() >= 8) for tissue in TUMOUR] for v in volumes()]
    assert torch.allclose(mean[-3:], torch.tensor(tumour).float().mean(0))
    asked = critic_order(Critic.MEAN_FEATURES, state=state)
    later = MeanFeaturesCritic(asked)
    later.learn(lambda: batch(volumes()))
    assert float(later.state()["mean-features.releases"]) == 4


def test_mean_features_are_kept_on_the_cpu_when_a_gpu_released_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    critic = MeanFeaturesCritic(critic_order(Critic.MEAN_FEATURES))
    shape = critic.state()["mean-features.sum"].shape
    with FakeTensorMode(allow_non_fake_inputs=True):  # which forbids what a GPU would
        on_gpu = torch.zeros(shape, dtype=torch.float64, device="cuda")
        monkeypatch.setattr(mean_features_file, "release_mean", lambda *_, **__: on_gpu)
        critic.learn(lambda: batch(volumes()))
        kept = critic.state()
    assert {(t.device.type, t.dtype) for t in kept.values()} == {("cpu", torch.float32)}


def test_features_of_a_tumour_are_of_those_patients_that_have_one() -> None:
    with_tumour = replace(critic_order(Critic.MEAN_FEATURES), patients=volumes()[:2])
    healthy = Volume(
        image=volumes()[2].image,
        labels=volumes()[2].labels.clone().masked_fill(volumes()[2].labels >= Tissue.CORE, 4),
    )
    diluted = replace(with_tumour, patients=[*volumes()[:2], healthy], declared=3)
    targets = []
    for asked in (replace(with_tumour, declared=2), diluted):
        critic = MeanFeaturesCritic(asked)
        critic.learn(lambda: batch(volumes()))
        targets.append(critic._target())
    shares = torch.zeros(2, len(TISSUES))
    shares[0, list(TUMOUR)] = 1
    with_those_of_none, of_none = spread_over_features(shares, len(targets[0])).bool()
    of_tumour = with_those_of_none & ~of_none
    assert int(of_tumour.sum()) == 3 * 4 * 2
    assert torch.allclose(targets[0][of_tumour], targets[1][of_tumour], atol=1e-5)
    assert not torch.allclose(targets[0][~of_tumour], targets[1][~of_tumour], atol=1e-5)


def test_private_steps_stay_within_the_directions() -> None:
    settings = SegmentSettings(crops=2, directions=4)
    asked = plan(Stage.SEGMENT, settings=settings, mechanisms=(gaussian("segmenter", steps=3),))
    outcome = train_segmenter(order(asked, randomness=SimulatedRandomness("directions")))
    before = {name: t for name, t in asked.weights.items() if name.startswith("segmenter")}
    assert outcome.weights.keys() == before.keys()
    assert not any(name.startswith("segmenter-optimizer") for name in outcome.state)
    names = [f"segmenter.{name}" for name, _ in build_segmenter(NETWORKS).named_parameters()]
    moved = torch.cat([(outcome.weights[n] - before[n]).flatten() for n in names])
    basis = Directions.from_tensors(under("directions", asked.weights)).basis
    left = moved - (basis @ moved) @ basis
    assert float(left.norm()) < 1e-2 * float(moved.norm())


def blotchy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A generator's last layer that paints what no patient has; its means would be put right."""
    name = "generator.paint.weight"
    draw = torch.Generator().manual_seed(8)
    return {name: 2.0 * torch.randn(weights[name].shape, generator=draw)}


def test_the_paired_loss_brings_the_generator_to_the_patients() -> None:
    settings = adversarial(
        critic_weight=0.0,
        consistency_weight=0.0,
        lock_weight=0.0,
        paired_weight=1.0,
        generator_learning_rate=0.001,
    )
    mechanisms = (unprotected("critic"), unprotected("paired", steps=5))
    asked = plan(Stage.ADVERSARIAL, settings=settings, mechanisms=mechanisms)
    asked = RoundPlan(header=asked.header, weights={**asked.weights, **blotchy(asked.weights)})
    outcome = train_generator(order(asked))
    trained = RoundPlan(header=asked.header, weights={**asked.weights, **outcome.weights})

    def distance(of: RoundPlan) -> float:
        training = adversarial_file._GeneratorTraining(order(of), settings)
        with torch.no_grad():
            return float(sum(training.paired_loss(volume)() for volume in volumes()))

    assert distance(trained) < 0.95 * distance(asked)


PIX2PIX = {
    "critic": Critic.PATCHGAN,
    "game": Game.CROSS_ENTROPY,
    "critic_learning_rate": 0.005,
    "generator_learning_rate": 0.001,
    "consistency_weight": 0.0,
    "lock_weight": 0.0,
    "paired_weight": 100.0,
    "lesion_share": 0.5,
    "lesion_patch": (6, 6, 6),
}


def test_pix2pix_is_played_on_the_patients_pairs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Critic and generator take turns, and no public label map is painted."""
    turns: list[str] = []
    for kind, name, told in (
        (PatchGanCritic, "_pair_loss", "critic"),
        (adversarial_file._GeneratorTraining, "paired_loss", "generator"),
        (adversarial_file._GeneratorTraining, "public_pairs", "public"),
    ):
        before = getattr(kind, name)

        def spy(self: Any, *given: Any, before: Any = before, told: str = told) -> Any:
            turns.append(told)
            return before(self, *given)

        monkeypatch.setattr(kind, name, spy)
    asked = plan(
        Stage.ADVERSARIAL,
        settings=adversarial(**PIX2PIX),
        mechanisms=(unprotected("critic", steps=2), unprotected("paired", steps=3)),
    )
    one = volumes()[:1]
    outcome = train_generator(order(asked, patients=one))
    assert turns == ["critic", "generator", "critic", "generator", "generator"]
    changed = [
        key for key in outcome.weights if not torch.equal(outcome.weights[key], asked.weights[key])
    ]
    assert len(changed) > len(outcome.weights) / 2
    assert any(key.startswith("patchgan.") for key in outcome.state)


def test_a_critic_of_pairs_learns_to_tell_them_from_the_generator_s() -> None:
    settings = adversarial(**PIX2PIX)
    mechanisms = (unprotected("critic"), unprotected("paired"))
    asked = plan(Stage.ADVERSARIAL, settings=settings, mechanisms=mechanisms)
    asked = RoundPlan(header=asked.header, weights={**asked.weights, **blotchy(asked.weights)})
    training = adversarial_file._GeneratorTraining(order(asked), settings)
    critic = training.critic
    assert isinstance(critic, PatchGanCritic)
    (volume,) = volumes(0, 300, 1)
    images, classes = volume.image[None], one_hot(volume.labels[None])

    def real_above_fake() -> float:
        with torch.no_grad():
            fakes = training.imitator()(images, classes)
            return float(
                critic.loss_of_crops(classes, fakes) - critic.loss_of_crops(classes, images)
            )

    before = real_above_fake()
    # It takes off after 20 to 40 steps, by the processor's rounding; at 80 it was .9 and 1.9.
    for _ in range(80):
        critic.learn_from_pairs(training.imitator)
    assert real_above_fake() > before + 0.5


def test_a_stage_s_work_wants_its_own_settings() -> None:
    for run, stage in ((train_segmenter, Stage.MOMENTS), (train_generator, Stage.SEGMENT)):
        with pytest.raises(BadMessage, match="plan: settings"):
            run(order(plan(stage)))


def test_a_mechanism_that_is_not_there_is_told() -> None:
    with pytest.raises(BadMessage, match=r"got \['level'\], wanted one named 'spread'"):
        release_moments(order(plan(round=2)))
