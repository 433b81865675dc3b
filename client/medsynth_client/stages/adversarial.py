"""Stage adversarial: the site's critic learns from patients, the generator learns from the critic.

The generator's own step uses public label maps only and reaches the patients only through what
was already privatised (the critic, the segmenter, the style): it is post-processing and costs
nothing. The one exception is the seed paper's paired loss, the L1 distance and the game against a
PatchGAN on real pairs: it is a private mechanism of the generator, clipped, noised and charged.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medsynth_client.critics import CRITICS, SiteCritic
from medsynth_client.critics.patchgan import Imitate, PatchGanCritic
from medsynth_client.order import Order, Outcome
from medsynth_common.errors import BadMessage, Problem
from medsynth_common.labels import one_hot
from medsynth_common.learning.label_bank import label_bank
from medsynth_common.learning.losses import (
    lesion_weights,
    lock_loss,
    segmenter_loss,
    tissue_moments,
)
from medsynth_common.learning.optimizer_state import load_optimizer, optimizer_tensors
from medsynth_common.learning.painting import paint
from medsynth_common.learning.variation import Variation
from medsynth_common.learning.volumes import (
    Volume,
    draw_crops,
    mirrored,
    random_box,
)
from medsynth_common.networks import Generator, build_segmenter
from medsynth_common.plan import AdversarialSettings, Precision
from medsynth_common.privacy.patients import Loss, PatientOptimizer, poisson_sample
from medsynth_common.style import Style, stack
from medsynth_common.tensors import state_of, under, with_prefix

_CODE_SPEED = 20  # the style code's learning rate, in units of the weights': it has 4 numbers


class _GeneratorTraining:
    """One site's round of adversarial training."""

    def __init__(self, order: Order, settings: AdversarialSettings) -> None:
        self.order, self.settings = order, settings
        self.dims = order.plan.networks.spatial_dims
        self.draw = order.torch_generator()
        self.generator = order.network("generator", Generator)
        self.segmenter = order.network("segmenter", build_segmenter).eval().requires_grad_(False)
        self.style = Style.from_tensors(under("style", order.weights))
        self.variation = Variation.from_tensors(under("variation", order.weights))
        self.code = nn.Parameter(self.style.code.clone().to(order.device))
        self.bank = label_bank(order.plan.public_seed, settings.label_bank, order.plan.grid)
        self.critic: SiteCritic = CRITICS[settings.critic](order)
        rate = settings.generator_learning_rate
        groups: list[dict[str, Any]] = [
            {"params": list(self.generator.parameters())},
            {"params": [self.code], "lr": rate * _CODE_SPEED},
        ]
        self.adam = torch.optim.Adam(groups, lr=rate, betas=(0.5, 0.99))
        load_optimizer(self.adam, under("generator-optimizer", order.state))

    def public_pairs(self) -> tuple[Tensor, Style, Tensor]:
        """Paint a batch of public label maps: classes, the styles they had, images."""
        picks = torch.randint(len(self.bank), (self.settings.batch,), generator=self.draw)
        classes = one_hot(self.bank[picks]).to(self.order.device)
        patients = [self.variation.patient(self.style, self.bank[n], self.draw) for n in picks]
        styles = stack(patients).to(self.order.device)
        code = self.code.expand(len(picks), -1)
        styles = Style(offset=styles.offset, gain=styles.gain, spread=styles.spread, code=code)
        return classes, styles, paint(self.generator, classes, styles, self.draw)

    @torch.no_grad()
    def fakes(self) -> tuple[Tensor, Tensor]:
        """Fakes for the critic to learn from."""
        classes, _, image = self.public_pairs()
        return classes, image

    @property
    def has_public_loss(self) -> bool:
        """Whether any part of `public_loss` counts; the seed paper has none."""
        settings = self.settings
        critic = settings.critic_weight > 0 and not settings.plays_on_pairs
        return critic or settings.consistency_weight > 0 or settings.lock_weight > 0

    def public_loss(self) -> Tensor:
        """Critic, consistency of the segmenter with the label, and the moment lock."""
        classes, styles, image = self.public_pairs()
        settings = self.settings
        loss = settings.lock_weight * lock_loss(image, classes, styles)
        if settings.consistency_weight:
            loss = loss + settings.consistency_weight * self.disagreement(classes, image)
        if settings.critic_weight and not settings.plays_on_pairs:
            # A critic of pairs has seen patients' label maps alone, and would judge these by that.
            loss = loss + settings.critic_weight * self.critic.loss(classes, image)
        return loss

    def disagreement(self, classes: Tensor, image: Tensor) -> Tensor:
        """How far the segmenter is from finding the label in a crop of each image."""
        # The segmenter was trained on crops, and its normalisation depends on their size.
        box = random_box(image.shape[2:], self.order.plan.crop, self.order.randomness)
        labels = classes[:, :, *box].argmax(1)
        return segmenter_loss(self.segmenter, image[:, :, *box], labels, spatial_dims=self.dims)

    def step_publicly(self) -> None:
        """One step on public label maps alone."""
        self.adam.zero_grad()
        self.public_loss().backward()  # type: ignore[no-untyped-call] # torch's stub
        self.adam.step()

    def imitator(self) -> Imitate:
        """Make fakes like a patient's crops: of its label map, with its own tissues' moments."""
        # A draw of its own: were it the public fakes', these would tell how many were sampled.
        draw = self.order.torch_generator()

        def imitate(images: Tensor, classes: Tensor) -> Tensor:
            mean, deviation, _ = tissue_moments(images, classes)
            style = Style(
                offset=mean,
                gain=deviation,
                spread=torch.zeros_like(mean),
                code=self.code.expand(len(images), -1),
            )
            return paint(self.generator, classes, style, draw)

        return imitate

    def paired_loss(self, volume: Volume) -> Loss:
        """pix2pix' loss on one patient's own crops (Isola et al. 2017; Shin et al. 2018).

        The sum of the weighted L1 distance and, with a PatchGAN, the game against it.
        """
        crops = draw_crops(
            volume,
            crop=self.order.plan.crop,
            count=self.settings.crops,
            randomness=self.order.randomness,
        )
        images, labels = (
            part.to(self.order.device) for part in mirrored(*crops, self.order.randomness)
        )
        classes, imitate, settings = one_hot(labels), self.imitator(), self.settings

        def loss() -> Tensor:
            fake = imitate(images, classes)
            distance = (fake - images).abs()
            if settings.lesion_share:
                distance = distance * lesion_weights(
                    labels, share=settings.lesion_share, patch=settings.lesion_patch
                ).unsqueeze(1)
            loss = settings.paired_weight * distance.mean()
            if isinstance(self.critic, PatchGanCritic):
                loss = loss + settings.critic_weight * self.critic.loss_of_crops(classes, fake)
            return loss

        return loss

    def train_with_pairs(self) -> None:
        """Every step: paired gradients clipped and noised, the public gradient added after."""
        mechanism, patients = self.order.mechanism("paired"), self.order.patients
        optimizer = PatientOptimizer(
            self.adam,
            mechanism,
            expected_patients=mechanism.sampling_rate * self.order.declared,
            randomness=self.order.randomness,
            bfloat16=self.settings.precision is Precision.BFLOAT16,
        )
        turns = self.order.mechanism("critic").steps if self.settings.plays_on_pairs else 0
        for step in self.order.steps("pairs", max(mechanism.steps, turns)):
            if step < turns and isinstance(self.critic, PatchGanCritic):
                self.critic.learn_from_pairs(self.imitator)
            if step < mechanism.steps:
                chosen = poisson_sample(
                    len(patients), mechanism.sampling_rate, self.order.randomness
                )
                losses = (self.paired_loss(patients[index]) for index in chosen)
                optimizer.step(
                    losses,
                    self.public_loss if self.has_public_loss else None,
                    stand_in=lambda: self.paired_loss(self.order.stand_in)(),
                )


def train_generator(order: Order) -> Outcome:
    """Let the critic learn, then the generator; return generator and code, keep the critic."""
    settings = order.plan.settings
    if not isinstance(settings, AdversarialSettings):
        raise BadMessage(
            Problem(name="plan: settings", value=settings.stage, wanted="settings of adversarial")
        )
    training = _GeneratorTraining(order, settings)
    if not settings.plays_on_pairs:
        training.critic.learn(training.fakes)
    if settings.paired_weight:
        training.train_with_pairs()
    else:
        for _ in order.steps("generator", settings.generator_steps):
            training.step_publicly()
    kept = {
        **training.critic.state(),
        **with_prefix("generator-optimizer", optimizer_tensors(training.adam)),
    }
    return Outcome(
        weights=with_prefix("generator", state_of(training.generator)),
        own={"style.code": training.code.detach().cpu().clone()},
        state={**order.state, **kept},
    )
