"""Stage pretrain: all networks learn from public phantoms; epsilon 0, no site is asked.

Scanners are randomised far beyond what sites have (domain randomisation: Tobin et al. 2017,
Billot et al. 2023), so that the sites' training starts from anatomy and has only scanners and
lesions left to learn.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsynth_common.labels import one_hot
from medsynth_common.learning.features import fit_scale, texture_presence, texture_statistics
from medsynth_common.learning.losses import (
    critic_loss,
    lock_loss,
    segmenter_loss,
    tissue_moments,
)
from medsynth_common.learning.moments import fit_prior
from medsynth_common.learning.optimizer_state import load_optimizer, optimizer_tensors
from medsynth_common.learning.painting import paint
from medsynth_common.learning.smoothing import smooth
from medsynth_common.learning.variation import fit_variation
from medsynth_common.learning.volumes import Volume, as_batch, draw_crops
from medsynth_common.plan import RoundPlan, Stage
from medsynth_common.privacy.randomness import Randomness, SimulatedRandomness
from medsynth_common.style import Style
from medsynth_common.tensors import state_of, under, with_prefix
from medsynth_server.augment import augment
from medsynth_server.config import Pretrain
from medsynth_server.model import Model
from medsynth_server.public_pool import Pool
from medsynth_server.strategies import Answer

#: Steps of the segmenter for one of generator and critic, which cost five times as much.
_SEGMENTER_STEPS = 3
#: Share of the segmenter's volumes whose tissues are moved beyond what any scanner does.
_MOVED = 0.5
#: Public volumes that a critic's clip is measured on.
_MEASURED = 24
_NETWORKS = ("generator", "segmenter", "critic")


class PretrainStage:
    """Public training of generator, segmenter and critic."""

    name = Stage.PRETRAIN

    def __init__(
        self,
        settings: Pretrain,
        pools: Sequence[Pool],
        *,
        crop: tuple[int, ...],
        seed: int,
        device: torch.device,
    ) -> None:
        self.rounds = settings.rounds
        self._settings, self._pools, self._crop = settings, pools, crop
        self._seed, self._device = seed, device

    def plan(self, model: Model, site: str, round: int) -> RoundPlan | None:
        """No site is asked."""
        return None

    def combine(self, model: Model, round: int, answers: Sequence[Answer]) -> Model:
        """There is nothing to combine."""
        raise NotImplementedError

    def after(self, model: Model, round: int) -> tuple[Model, Mapping[str, float]]:
        """Train for one round's steps; the last round also measures the feature scale."""
        if round == 1:
            volumes = [pool.volumes for pool in self._pools]
            model = model.updated(
                with_prefix("prior", fit_prior(volumes).tensors())
                | with_prefix("variation", fit_variation(volumes).tensors())
            )
        draw = torch.Generator().manual_seed(self._seed + round)
        crops = SimulatedRandomness("pretrain", self._seed, round)
        training = _Training(model, self._settings, self._device)
        history: dict[str, list[float]] = {}
        for step in range(self._settings.steps):
            whole = (round - 1 + step / self._settings.steps) / self.rounds
            training.scale_rates(1 - 0.9 * whole)
            labels, images, codes = self._batch(draw, crops)
            losses = training.step_segmenter(labels, images, draw)
            if step % _SEGMENTER_STEPS == 0:
                losses |= training.step_generator(labels, images, codes, draw)
            for name, loss in losses.items():
                history.setdefault(name, []).append(loss)
        losses = {name: sum(values) / len(values) for name, values in history.items()}
        model = training.into(model)
        return (self._measured(model) if round == self.rounds else model), losses

    def _measured(self, model: Model) -> Model:
        """Leave the optimizers behind, and measure what later stages standardise and clip by."""
        volumes = [volume for pool in self._pools for volume in pool.volumes]
        kept = {k: v for k, v in model.tensors.items() if not k.startswith("optimizer.")}
        model = Model(networks=model.networks, tensors=kept)
        dims = model.networks.spatial_dims
        critic = model.critic(torch.device("cpu"))
        scale = fit_scale(critic, volumes, dims)
        crops = SimulatedRandomness("critic clip", self._seed)
        norm = _critic_gradient(critic, volumes, self._crop, crops, dims)
        return model.updated({**with_prefix("features", scale.tensors()), "clips.critic": norm})

    def _batch(self, draw: torch.Generator, crops: Randomness) -> tuple[Tensor, Tensor, Tensor]:
        """Draw two crops of each of a few phantoms, and the code of the scanner of each crop.

        Returns labels (n, *crop), images (n, 4, *crop), codes (n, k).
        """
        size = max(1, self._settings.batch // 2)
        chosen = torch.randint(len(self._pools), (size,), generator=draw).tolist()
        pools = [self._pools[index] for index in chosen]
        numbers = torch.randint(self._settings.phantoms, (size,), generator=draw).tolist()
        pairs = [
            draw_crops(pool.volumes[number], crop=self._crop, count=2, randomness=crops)
            for pool, number in zip(pools, numbers, strict=True)
        ]
        images, labels = zip(*pairs, strict=True)
        codes = torch.stack([pool.code for pool in pools]).repeat_interleave(2, dim=0)
        return (
            torch.cat(labels).to(self._device),
            torch.cat(images).to(self._device),
            codes.to(self._device),
        )


class _Training:
    """The three networks, their optimizers, and one step of each."""

    def __init__(self, model: Model, settings: Pretrain, device: torch.device) -> None:
        self.dims = model.networks.spatial_dims
        self.generator = model.generator(device).train()
        self.segmenter = model.segmenter(device).train()
        self.critic = model.critic(device).train()
        self.networks: dict[str, nn.Module] = {
            "generator": self.generator,
            "segmenter": self.segmenter,
            "critic": self.critic,
        }
        rates = dict.fromkeys(_NETWORKS, settings.learning_rate)
        self.rates = rates | {"segmenter": settings.segmenter_learning_rate}
        self.adam = {
            name: torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
            for name, network in self.networks.items()
        }
        for name, optimizer in self.adam.items():
            load_optimizer(optimizer, under(f"optimizer.{name}", model.tensors))

    def scale_rates(self, factor: float) -> None:
        """Set every learning rate to a part of its full one."""
        for name, optimizer in self.adam.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name] * factor

    def step_segmenter(
        self, labels: Tensor, images: Tensor, draw: torch.Generator
    ) -> dict[str, float]:
        return {"segmenter": self._descend("segmenter", self._segmenter_loss(labels, images, draw))}

    def step_generator(
        self, labels: Tensor, images: Tensor, codes: Tensor, draw: torch.Generator
    ) -> dict[str, float]:
        """One step of the generator, then one of the critic on what it made."""
        classes = one_hot(labels)
        mean, deviation, _ = tissue_moments(images, classes)
        style = Style(offset=mean, gain=deviation, spread=torch.zeros_like(mean), code=codes)
        fake = paint(self.generator, classes, style, draw)
        self.critic.requires_grad_(False)
        generator = self._descend("generator", self._generator_loss(classes, images, fake, style))
        self.critic.requires_grad_(True)
        critic = self._descend("critic", self._critic_loss(classes, images, fake.detach()))
        return {"generator": generator, "critic": critic}

    def into(self, model: Model) -> Model:
        """Put weights and optimizers into the model."""
        tensors: dict[str, Tensor] = {}
        for name in _NETWORKS:
            tensors |= with_prefix(name, state_of(self.networks[name]))
            tensors |= with_prefix(f"optimizer.{name}", optimizer_tensors(self.adam[name]))
        return model.updated(tensors)

    def _descend(self, name: str, loss: Tensor) -> float:
        self.adam[name].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch's stub
        nn.utils.clip_grad_norm_(self.networks[name].parameters(), 5.0)
        self.adam[name].step()
        return float(loss.detach())

    def _segmenter_loss(self, labels: Tensor, images: Tensor, draw: torch.Generator) -> Tensor:
        images, labels = augment(images, labels, draw, moved=_MOVED)
        return segmenter_loss(self.segmenter, images, labels, spatial_dims=self.dims)

    def _generator_loss(
        self, classes: Tensor, images: Tensor, fake: Tensor, style: Style
    ) -> Tensor:
        """Likeness where likeness makes sense: smoothed images, statistics, features.

        A voxel-wise distance to a noisy image would teach the generator to leave noise out.
        """
        near = F.l1_loss(smooth(fake), smooth(images))
        present = texture_presence(classes)
        textures = texture_statistics(classes, fake) - texture_statistics(classes, images)
        texture = (textures.abs() * present).sum() / present.sum().clamp(min=1)
        features = zip(self._features(classes, fake), self._features(classes, images), strict=True)
        alike = torch.stack(
            [(f.flatten(2).mean(-1) - r.flatten(2).mean(-1)).abs().mean() for f, r in features]
        ).mean()
        return 10 * near + 5 * lock_loss(fake, classes, style) + texture + alike

    def _features(self, classes: Tensor, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.critic(as_batch(torch.cat([classes, images], 1), self.dims))
        return maps[:-1]

    def _critic_loss(self, classes: Tensor, images: Tensor, fake: Tensor) -> Tensor:
        def judge(image: Tensor) -> Tensor:
            logits: Tensor = self.critic(as_batch(torch.cat([classes, image], 1), self.dims))[-1]
            return logits

        return critic_loss(judge(images), judge(fake))


def _critic_gradient(
    critic: nn.Module,
    volumes: Sequence[Volume],
    crop: tuple[int, ...],
    crops: Randomness,
    dims: int,
) -> Tensor:
    """Measure the median norm of a patient's gradient of the critic: () float32.

    A clip of 1 threw all but a few percent of every patient away in the reference trials.
    """
    norms = []
    for volume in volumes[:: max(1, len(volumes) // _MEASURED)]:
        images, labels = draw_crops(volume, crop=crop, count=2, randomness=crops)
        pair = torch.cat([one_hot(labels), images], dim=1)
        loss = -critic(as_batch(pair, dims))[-1].mean()  # the hinge where it is not flat
        parts = torch.autograd.grad(loss, list(critic.parameters()))
        norms.append(torch.stack([part.norm() for part in parts]).norm())
    return torch.stack(norms).median()
