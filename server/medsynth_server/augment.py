"""Augmentation of public and synthetic pairs: the parameters are drawn first, then applied."""

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from medsynth_common.labels import TISSUES, Tissue
from medsynth_common.learning.smoothing import smooth

#: SD of what moves a tissue's mean in one contrast, in those volumes whose tissues are moved.
_MOVED_BY: Final = 0.1
#: SD of the logarithm of the shading, and the points it is spread between along each axis.
_SHADE: Final = 0.12
_SHADE_POINTS: Final = 4


@dataclass(frozen=True, kw_only=True)
class Change:
    """Drawn parameters of one batch.

    Attributes:
        mirror: (n,) whether left and right change places.
        gain: (n, 4) factor on each contrast.
        gamma: (n, 4) exponent on each contrast.
        noise: (n,) standard deviation of added noise.
        blur: (n,) share of the blurred image; below 0 it sharpens.
        shade: (n, 1, p, p, p) logarithm of a smooth factor.
        moved: (n, 4, tissue) added to each tissue's brightness; tissues of one patient differ
            then as those of no scanner, which keeps a segmenter from trusting one contrast.

    """

    mirror: Tensor
    gain: Tensor
    gamma: Tensor
    noise: Tensor
    blur: Tensor
    shade: Tensor
    moved: Tensor

    @classmethod
    def draw(
        cls, count: int, contrasts: int, generator: torch.Generator, *, moved: float
    ) -> "Change":
        """Draw parameters of plausible differences between scanners.

        A share `moved` of the volumes has its tissues moved too, which is less plausible.
        """

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        def uniform() -> Tensor:
            return torch.rand(count, generator=generator)

        some = (uniform() < moved).float().view(-1, 1, 1)
        tissues = _MOVED_BY * some * normal(count, contrasts, len(TISSUES))
        tissues[:, :, Tissue.BACKGROUND] = 0
        return cls(
            mirror=uniform() < 0.5,
            gain=(0.1 * normal(count, contrasts)).exp(),
            gamma=(0.15 * normal(count, contrasts)).exp(),
            noise=0.06 * uniform().square(),
            blur=1.4 * uniform() - 0.4,
            shade=_SHADE * normal(count, 1, *(_SHADE_POINTS,) * 3),
            moved=tissues,
        )


def augment(
    images: Tensor, labels: Tensor, generator: torch.Generator, *, moved: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Change a batch: images (n, 4, x, y, z) and labels (n, x, y, z)."""
    change = Change.draw(images.shape[0], images.shape[1], generator, moved=moved)
    mirror = change.mirror.to(images.device)
    images = torch.where(mirror.view(-1, 1, 1, 1, 1), images.flip(2), images)
    labels = torch.where(mirror.view(-1, 1, 1, 1), labels.flip(1), labels)

    def shaped(values: Tensor) -> Tensor:
        grown = values.view(*values.shape, *(1 for _ in range(5 - values.dim())))
        return grown.to(images.device)

    brain = (images > 0).any(1, keepdim=True)
    changed = images + smooth(_by_tissue(change.moved.to(images.device), labels))
    changed = changed + shaped(change.blur) * (smooth(changed) - changed)
    changed = shaped(change.gain) * changed.clamp(min=0) ** shaped(change.gamma)
    shade = F.interpolate(change.shade, size=images.shape[2:], mode="trilinear", align_corners=True)
    changed = changed * shade.exp().to(images.device)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    return (changed + shaped(change.noise) * noise).clamp(min=0) * brain, labels


def _by_tissue(table: Tensor, labels: Tensor) -> Tensor:
    """Look up (n, 4, tissue) at every voxel of labels (n, x, y, z): (n, 4, x, y, z)."""
    flat = labels.flatten(1).long().unsqueeze(1).expand(-1, table.shape[1], -1)
    return table.gather(2, flat).view(*table.shape[:2], *labels.shape[1:])
