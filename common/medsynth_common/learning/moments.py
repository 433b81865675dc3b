"""The moments release: per-patient vectors of tissue intensities, and the style read from them.

Encode and decode stand here together: a site encodes each patient as a vector standardised by a
*public* prior (measured on phantoms with randomised scanners), one Gaussian release gives the
noisy mean vector, and decoding shrinks it toward the prior by how noisy it is known to be.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from medsynth_common.labels import TUMOUR, Tissue, one_hot
from medsynth_common.learning.losses import tissue_moments
from medsynth_common.learning.volumes import Volume
from medsynth_common.style import Style
from medsynth_common.tensors import TensorParts

#: A tissue with fewer voxels than this says nothing about its brightness.
ENOUGH_VOXELS: Final = 8
_TISSUES: Final = slice(Tissue.CSF, None)  # air is 0 by definition
_TUMOUR: Final = [tissue - Tissue.CSF for tissue in TUMOUR]


@dataclass(frozen=True, kw_only=True)
class Prior(TensorParts):
    """What public phantoms say about tissue intensities before any patient is seen.

    Attributes:
        level, level_scale: (tissue, contrast) mean, and its SD over randomised scanners.
        log_gain, log_gain_scale: the same for the log SD inside a tissue.
        spread: (tissue, contrast) SD of the mean between patients of one scanner.
        level_clip, spread_clip: () norms that the two releases clip a patient's vector to.

    """

    level: Tensor
    level_scale: Tensor
    log_gain: Tensor
    log_gain_scale: Tensor
    spread: Tensor
    level_clip: Tensor
    spread_clip: Tensor

    def style(self) -> Style:
        """Give the style of the average public scanner."""
        return replace(
            Style.neutral(), offset=self.level, gain=self.log_gain.exp(), spread=self.spread
        )


def measure(volume: Volume) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, log SD (tissue, contrast) and presence (tissue,) of one patient."""
    classes = one_hot(volume.labels.unsqueeze(0))
    mean, deviation, count = tissue_moments(volume.image.unsqueeze(0), classes)
    return mean[0], deviation[0].log(), (count[0] >= ENOUGH_VOXELS).float()


def fit_prior(pools: Sequence[Sequence[Volume]]) -> Prior:
    """Measure the prior on public volumes, one pool per randomised scanner."""
    measured = [[measure(volume) for volume in pool] for pool in pools]
    everyone = [item for pool in measured for item in pool]
    level, level_scale = _mean_and_sd([(mean, here) for mean, _, here in everyone])
    log_gain, log_gain_scale = _mean_and_sd([(gain, here) for _, gain, here in everyone])
    within = [_mean_and_sd([(mean, here) for mean, _, here in pool])[1] for pool in measured]
    prior = Prior(
        level=level,
        level_scale=level_scale.clamp(min=0.02),
        log_gain=log_gain,
        log_gain_scale=log_gain_scale.clamp(min=0.1),
        spread=torch.stack(within).mean(0).clamp(min=0.01),
        level_clip=torch.tensor(1.0),
        spread_clip=torch.tensor(1.0),
    )
    levels = torch.stack([level_vector(v, prior).norm() for pool in pools for v in pool])
    styles = [_style_of_pool(pool, prior) for pool in measured]
    spreads = torch.stack(
        [
            spread_vector(volume, prior, style).norm()
            for pool, style in zip(pools, styles, strict=True)
            for volume in pool
        ]
    )
    return replace(prior, level_clip=levels.median() * 1.1, spread_clip=spreads.median() * 1.1)


def level_vector(volume: Volume, prior: Prior) -> Tensor:
    """Encode a patient's means and log SDs, and which tumour classes it has."""
    mean, log_gain, present = measure(volume)
    here = present.unsqueeze(-1)
    means = (mean - prior.level) / prior.level_scale * here
    gains = (log_gain - prior.log_gain) / prior.log_gain_scale * here
    seen = present[_TISSUES][_TUMOUR]
    return torch.cat([means[_TISSUES].flatten(), gains[_TISSUES].flatten(), seen])


def level_length(prior: Prior) -> int:
    """How many numbers `level_vector` has."""
    return 2 * prior.level[_TISSUES].numel() + len(_TUMOUR)


def spread_length(prior: Prior) -> int:
    """How many numbers `spread_vector` has."""
    return prior.level[_TISSUES].numel()


def style_from_level(vector: Tensor, prior: Prior, *, noise: float) -> Style:
    """Decode the released mean vector; `noise` is the known SD of each of its coordinates."""
    size = prior.level[_TISSUES].numel()
    means, gains, seen = vector[:size], vector[size : 2 * size], vector[2 * size :]
    present = torch.ones(prior.level[_TISSUES].shape[0])
    # A tumour class is missing in part of the patients; its sum is over those that have it.
    present[_TUMOUR] = seen.clamp(min=0.2, max=1.0)
    share = present.unsqueeze(-1)
    means, gains = means.view(len(present), -1) / share, gains.view(len(present), -1) / share
    keep = 1 / (1 + (noise / share) ** 2)  # posterior mean under a standard normal prior
    offset, log_gain = prior.level.clone(), prior.log_gain.clone()
    offset[_TISSUES] += keep * means * prior.level_scale[_TISSUES]
    log_gain[_TISSUES] += keep * gains * prior.log_gain_scale[_TISSUES]
    gain = log_gain.exp()
    gain[Tissue.BACKGROUND] = 0
    return Style(
        offset=offset.clamp(min=0),
        gain=gain,
        spread=prior.spread,
        code=Style.neutral().code,
    )


def spread_vector(volume: Volume, prior: Prior, style: Style) -> Tensor:
    """Encode how far a patient's means lie from the site's, squared, in units of the prior."""
    mean, _, present = measure(volume)
    ratio = ((mean - style.offset) / prior.spread).square() - 1
    return (ratio.clamp(max=8.0) * present.unsqueeze(-1))[_TISSUES].flatten()


def style_from_spread(vector: Tensor, prior: Prior, style: Style, *, noise: float) -> Style:
    """Decode the released mean square into the between-patient spread of the site."""
    ratio = vector.view(-1, prior.spread.shape[1]) / (1 + noise**2)
    spread = prior.spread.clone()
    spread[_TISSUES] *= (1 + ratio).clamp(min=0.1, max=6.0).sqrt()
    return replace(style, spread=spread)


def _mean_and_sd(items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    values = torch.stack([value for value, _ in items])  # (patient, tissue, contrast)
    here = torch.stack([present for _, present in items]).unsqueeze(-1)
    count = here.sum(0).clamp(min=1)
    mean = (values * here).sum(0) / count
    variance = ((values - mean).square() * here).sum(0) / count
    return mean, variance.sqrt()


def _style_of_pool(pool: Sequence[tuple[Tensor, Tensor, Tensor]], prior: Prior) -> Style:
    mean, _ = _mean_and_sd([(level, here) for level, _, here in pool])
    return replace(prior.style(), offset=mean)
