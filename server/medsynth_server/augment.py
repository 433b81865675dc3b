"""Augmentation of public and synthetic pairs: the parameters are drawn first, then applied."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Change:
    """Drawn parameters of one batch.

    Attributes:
        mirror: (n,) whether left and right change places.
        gain: (n, 4) factor on each contrast.
        gamma: (n, 4) exponent on each contrast.
        noise: (n,) standard deviation of added noise.

    """

    mirror: Tensor
    gain: Tensor
    gamma: Tensor
    noise: Tensor

    @classmethod
    def draw(cls, count: int, contrasts: int, generator: torch.Generator) -> "Change":
        """Draw parameters of plausible differences between scanners."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        return cls(
            mirror=torch.rand(count, generator=generator) < 0.5,
            gain=(0.1 * normal(count, contrasts)).exp(),
            gamma=(0.15 * normal(count, contrasts)).exp(),
            noise=0.03 * torch.rand(count, generator=generator),
        )


def augment(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Change a batch: images (n, 4, x, y, z) and labels (n, x, y, z)."""
    change = Change.draw(images.shape[0], images.shape[1], generator)
    mirror = change.mirror.to(images.device)
    images = torch.where(mirror.view(-1, 1, 1, 1, 1), images.flip(2), images)
    labels = torch.where(mirror.view(-1, 1, 1, 1), labels.flip(1), labels)

    def shaped(values: Tensor) -> Tensor:
        grown = values.view(*values.shape, *(1 for _ in range(5 - values.dim())))
        return grown.to(images.device)

    brain = (images > 0).any(1, keepdim=True)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    changed = shaped(change.gain) * images.clamp(min=0) ** shaped(change.gamma)
    changed = (changed + shaped(change.noise) * noise).clamp(min=0) * brain
    return changed, labels
