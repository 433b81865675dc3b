"""Two ways to learn tissues from images, one interface: a segmentation, and the paper's GAN.

`plain` descends on Dice and cross-entropy. `pix2pix` is the first network of Shin et al. 2018: a
label generator, whose soft label map a PatchGAN tells from the true one beside the same image
(Isola et al. 2017), and 100 times the L1 distance between the two.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medsynth_common.anatomy.network import CLASSES, INPUTS, AnatomyNetwork, AnatomySettings
from medsynth_common.learning.losses import critic_loss
from medsynth_common.learning.optimizer_state import load_optimizer, optimizer_tensors
from medsynth_common.tensors import state_of, under, with_prefix
from medsynth_server.anatomy.heads import Head
from medsynth_server.anatomy.samples import Sample, draw_sample

Form = Literal["plain", "pix2pix"]
_PAPERS_L1_WEIGHT: Final = 100.0
_RATE: Final = 3e-3
_PIX2PIX_RATE: Final = 1e-3
_CRITIC_RATE: Final = 2e-4


class AnatomyTraining:
    """A network in training, one step after the other, each drawn from the seed and its number."""

    def __init__(
        self, form: Form, settings: AnatomySettings, *, seed: int, steps: int, device: torch.device
    ) -> None:
        self.steps, self._seed, self._device = steps, seed, device
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = AnatomyNetwork(settings).to(device).train()
            self._critic = None if form == "plain" else _build_critic().to(device).train()
        rate = _RATE if form == "plain" else _PIX2PIX_RATE
        self._modules: dict[str, nn.Module] = {"network": self.network}
        self._adam = {"network": torch.optim.AdamW(self.network.parameters(), lr=rate)}
        self._rates = {"network": rate, "critic": _CRITIC_RATE}
        if self._critic is not None:
            self._modules["critic"] = self._critic
            self._adam["critic"] = torch.optim.AdamW(
                self._critic.parameters(), lr=_CRITIC_RATE, betas=(0.5, 0.99)
            )

    def step(self, number: int, heads: Sequence[Head], crop: Sequence[int], batch: int) -> float:
        """Make step `number` of `steps`, counted from 0; returns the network's loss."""
        rng = np.random.default_rng([self._seed, number])
        drawn = draw_sample(heads, crop, rng, batch=batch)
        sample = Sample(seen=drawn.seen.to(self._device), target=drawn.target.to(self._device))
        # Warmed up for a twentieth of the way, then down a half cosine.
        part = number / self.steps
        factor = min(1.0, 20 * part + 0.05) * (0.51 + 0.49 * float(np.cos(np.pi * part)))
        for name, optimizer in self._adam.items():
            for group in optimizer.param_groups:
                group["lr"] = self._rates[name] * factor
        logits = self.network(sample.seen)
        if self._critic is None:
            return self._descend("network", tissue_loss(logits, sample.target))
        return self._step_pair(self._critic, sample, logits)

    def tensors(self) -> dict[str, Tensor]:
        """Give all that going on needs."""
        found: dict[str, Tensor] = {}
        for name, module in self._modules.items():
            found |= with_prefix(name, state_of(module))
            found |= with_prefix(f"optimizer.{name}", optimizer_tensors(self._adam[name]))
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` gave."""
        for name, module in self._modules.items():
            module.load_state_dict(under(name, tensors))
            load_optimizer(self._adam[name], under(f"optimizer.{name}", tensors))

    def _step_pair(self, critic: nn.Module, sample: Sample, logits: Tensor) -> float:
        """One step of the label generator, then one of the critic on what it made."""
        known = (sample.target >= 0).unsqueeze(1)
        real = _one_hot(sample.target)
        # What nobody knows is the same in both: the critic must not tell them apart by it.
        fake = logits.softmax(1) * known
        critic.requires_grad_(False)
        distance = (fake - real).abs().sum() / (known.sum() * len(CLASSES)).clamp(min=1)
        judged = critic(torch.cat([sample.seen, fake], 1))[-1]
        loss = self._descend("network", _PAPERS_L1_WEIGHT * distance - judged.mean())
        critic.requires_grad_(True)
        true = critic(torch.cat([sample.seen, real], 1))[-1]
        false = critic(torch.cat([sample.seen, fake.detach()], 1))[-1]
        self._descend("critic", critic_loss(true, false))
        return loss

    def _descend(self, name: str, loss: Tensor) -> float:
        self._adam[name].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch's stub
        nn.utils.clip_grad_norm_(self._modules[name].parameters(), 5.0)
        self._adam[name].step()
        return float(loss.detach())


def tissue_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Dice + cross-entropy over the voxels whose tissue is known.

    Args:
        logits: (n, class, *grid).
        target: (n, *grid) channel numbers, -1 where nothing is known.

    """
    entropy = F.cross_entropy(logits, target, ignore_index=-1)
    known = (target >= 0).unsqueeze(1)
    found = (logits.softmax(1) * known).flatten(2)
    true = _one_hot(target).flatten(2)
    overlap, sizes = (found * true).sum(2), (found + true).sum(2)
    dice = (2 * overlap + 1) / (sizes + 1)
    return entropy + 1 - dice.mean()


def _one_hot(target: Tensor) -> Tensor:
    """Spread channel numbers (n, *grid) into channels, all zero where nothing is known."""
    spread = F.one_hot(target.clamp(min=0), len(CLASSES)).movedim(-1, 1)
    return spread * (target >= 0).unsqueeze(1).float()


def _build_critic() -> nn.Module:
    from monai.networks.nets import PatchDiscriminator  # late, as in networks/build.py

    critic: nn.Module = PatchDiscriminator(
        spatial_dims=3,
        channels=16,
        in_channels=INPUTS + len(CLASSES),
        out_channels=1,
        num_layers_d=2,
        norm=("INSTANCE", {"affine": True}),
    )
    return critic
