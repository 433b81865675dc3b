"""How patients of one scanner differ from each other: jointly, and with the size of their tumour.

A site's style tells how far each tissue's brightness lies from patient to patient, tissue by
tissue. Patients do not differ so: more contrast agent, a longer T1 or a change of the whole image's
scale moves many tissues together, and a large bright rim moves them all, since an image is scaled
by its brightest hundredth. Drawn one by one, tissues stand to each other as they do in nobody, and
what is learned from such volumes misses thin rims. What moves with what is physics, not a site's
secret: it is measured on public phantoms and costs no privacy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from medsynth_common.labels import CONTRASTS, TISSUES, TUMOUR, Tissue
from medsynth_common.learning.moments import measure
from medsynth_common.learning.volumes import Volume
from medsynth_common.style import Style
from medsynth_common.tensors import TensorParts

_TISSUES: Final = slice(Tissue.CSF, None)  # air is 0 in everybody
_LEVELS: Final = (len(TISSUES) - 1) * len(CONTRASTS)
#: A tissue of a smaller share of the brain leaves an image's scale, its 99th percentile, alone.
_SHARE: Final = 0.01
#: SDs of a size beyond which the line through phantoms is not followed: tumours may be edited.
_FARTHEST: Final = 3.0
#: Least eigenvalue of a correlation that was put together from pairs of tissues.
_LEAST: Final = 1e-3


@dataclass(frozen=True, kw_only=True)
class Variation(TensorParts):
    """A Gaussian of tissue levels given the sizes of the tumour's parts, both standardised.

    Attributes:
        size, size_scale: (tumour,) mean and SD of `tumour_sizes` over public phantoms.
        pull: (level, tumour) by how many of its SDs a level moves with one SD of a size.
        mix: (level, level) turns independent draws into what is left of the levels' deviations.

    """

    size: Tensor
    size_scale: Tensor
    pull: Tensor
    mix: Tensor

    @classmethod
    def independent(cls) -> "Variation":
        """Every level on its own, whatever the tumour: the form a check compares with."""
        return cls(
            size=torch.zeros(len(TUMOUR)),
            size_scale=torch.ones(len(TUMOUR)),
            pull=torch.zeros(_LEVELS, len(TUMOUR)),
            mix=torch.eye(_LEVELS),
        )

    def patient(self, style: Style, labels: Tensor, generator: torch.Generator) -> Style:
        """Draw a patient of a scanner who has this label map (x, y, z): the style of one image."""
        sizes = (tumour_sizes(labels.cpu()) - self.size) / self.size_scale
        sizes = sizes.clamp(-_FARTHEST, _FARTHEST)
        draw = torch.randn(_LEVELS, generator=generator)
        moved = _times(self.pull, sizes) + _times(self.mix, draw)
        offset = style.offset.clone()
        offset[_TISSUES] += style.spread[_TISSUES] * moved.view(-1, len(CONTRASTS))
        return replace(style, offset=offset.clamp(min=0))


def tumour_sizes(labels: Tensor) -> Tensor:
    """Say how much of the brain each part of the tumour is: (tumour,), 0 where there is none.

    The logarithm of 1 + share / 1 %: linear for what is too small to matter to an image's scale.
    """
    count = torch.bincount(labels.flatten().long(), minlength=len(TISSUES)).float()
    share = count[list(TUMOUR)] / count[_TISSUES].sum().clamp(min=1)
    return (1 + share / _SHARE).log()


def fit_variation(pools: Sequence[Sequence[Volume]]) -> Variation:
    """Measure it on public volumes, one pool per scanner."""
    size = [torch.stack([tumour_sizes(volume.labels) for volume in pool]) for pool in pools]
    rows = [_deviations(pool, sizes) for pool, sizes in zip(pools, size, strict=True)]
    deviation, here = (torch.cat(parts).double() for parts in zip(*rows, strict=True))
    both = (here.T @ here).clamp(min=1)
    covariance = deviation.T @ deviation / both
    scale = covariance.diagonal().sqrt().clamp(min=1e-9)
    # Each entry is of those who have both tissues: as a whole it need not be a correlation.
    joint = _nearest(covariance / scale / scale.unsqueeze(1))
    across = joint[:_LEVELS, _LEVELS:]
    pull = across @ torch.linalg.inv(joint[_LEVELS:, _LEVELS:])
    values, vectors = torch.linalg.eigh(joint[:_LEVELS, :_LEVELS] - pull @ across.T)
    everyone = torch.cat(size)
    return Variation(
        size=everyone.mean(0),
        size_scale=everyone.std(0).clamp(min=1e-3),
        pull=pull.float(),
        mix=(vectors * values.clamp(min=0).sqrt()).float(),
    )


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Multiply with the same last digits wherever the matrix lies, and whichever way round.

    Those of BLAS change with both, and this matrix is fresh, out of a file or off the wire.
    """
    return (matrix * vector).contiguous().sum(1)


def _deviations(pool: Sequence[Volume], sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Deviations from their scanner's mean, and which of them there are: (patient, level + tumour).

    They are blown up by what a mean of few takes away from them.
    """
    measured = [measure(volume) for volume in pool]
    levels = torch.stack([mean[_TISSUES].flatten() for mean, _, _ in measured])
    present = torch.stack([here[_TISSUES] for _, _, here in measured])
    rows = torch.cat([levels, sizes], dim=1)
    here = torch.cat([present.repeat_interleave(len(CONTRASTS), 1), torch.ones_like(sizes)], dim=1)
    count = here.sum(0)
    mean = (rows * here).sum(0) / count.clamp(min=1)
    lost = (count / (count - 1).clamp(min=1)).sqrt()
    return (rows - mean) * here * lost, here * (count > 1)


def _nearest(matrix: Tensor) -> Tensor:
    """Lift the smallest eigenvalues of a symmetric matrix and give it a diagonal of 1."""
    values, vectors = torch.linalg.eigh(matrix)
    lifted = vectors * values.clamp(min=_LEAST) @ vectors.T
    scale = lifted.diagonal().sqrt()
    nearest: Tensor = lifted / scale / scale.unsqueeze(1)
    return nearest
