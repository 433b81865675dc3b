"""Public features of a (label map, image) pair: what the mean-features critic compares.

Two kinds: activations of a *publicly* trained PatchGAN, averaged over positions; and hand-made
texture statistics, the log energy of two fine scales inside each tissue and contrast. Both are
standardised on a public pool, so that a coordinate's natural unit is 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from medsynth_common.labels import CONTRASTS, Tissue, one_hot
from medsynth_common.learning.smoothing import smooth
from medsynth_common.learning.volumes import Volume, as_batch
from medsynth_common.tensors import TensorParts

_TISSUES: Final = slice(Tissue.CSF, None)
_SMALLEST: Final = 1e-4


@dataclass(frozen=True, kw_only=True)
class FeatureScale(TensorParts):
    """Public centre and scale of each feature, and the norm a patient is clipped to.

    Attributes:
        centre, scale: (feature,).
        clip: () norm.

    """

    centre: Tensor
    scale: Tensor
    clip: Tensor

    def standardise(self, features: Tensor) -> Tensor:
        """Centre and scale features (n, feature)."""
        return (features - self.centre) / self.scale


def raw_features(trunk: nn.Module, classes: Tensor, image: Tensor, spatial_dims: int) -> Tensor:
    """Features of volumes, one row each: (n, feature), differentiable in the image.

    Args:
        trunk: a publicly trained critic; its last map (the logits) is not used.
        classes: (n, tissue, x, y, z) one-hot labels.
        image: (n, 4, x, y, z).
        spatial_dims: of the trunk.

    """
    pairs = as_batch(torch.cat([classes, image], dim=1), spatial_dims)
    maps = trunk(pairs)[:-1]
    pooled = torch.cat([level.flatten(2).mean(-1) for level in maps], dim=1)
    pooled = pooled.view(image.shape[0], -1, pooled.shape[-1]).mean(1)  # slices of one volume
    return torch.cat([pooled, texture_statistics(classes, image)], dim=1)


def texture_statistics(classes: Tensor, image: Tensor) -> Tensor:
    """Log energy of two fine scales in each tissue and contrast: (n, 2 * tissues * contrasts).

    A tissue that is (nearly) absent reports the scale floor in every image alike.
    """
    once = smooth(image)
    twice = smooth(once)
    masks = classes[:, _TISSUES].flatten(2)
    count = masks.sum(-1)  # (n, tissue)
    bands = []
    for band in (image - once, once - twice):
        energy = torch.einsum("ncv,ntv->ntc", band.flatten(2).square(), masks)
        energy = energy / count.clamp(min=1).unsqueeze(-1)
        log_energy = 0.5 * (energy + _SMALLEST**2).log()
        present = (count >= 8).unsqueeze(-1)
        bands.append(torch.where(present, log_energy, torch.zeros_like(log_energy)))
    return torch.cat([band.flatten(1) for band in bands], dim=1)


def tissue_presence(classes: Tensor) -> Tensor:
    """Which tissues are large enough to have a texture: (n, len(TISSUES)) of 0 and 1."""
    return (classes.flatten(2).sum(-1) >= 8).float()


def texture_presence(classes: Tensor) -> Tensor:
    """Which of `texture_statistics` say something: (n, 2 * tissues * contrasts) of 0 and 1."""
    return _over_textures(tissue_presence(classes))


def spread_over_features(tissues: Tensor, count: int) -> Tensor:
    """Give each of `count` features the value (n, len(TISSUES)) of its tissue; 1 if of none."""
    of_tissues = _over_textures(tissues)
    of_none = of_tissues.new_ones(len(tissues), count - of_tissues.shape[1])
    return torch.cat([of_none, of_tissues], dim=1)


def _over_textures(tissues: Tensor) -> Tensor:
    return tissues[:, _TISSUES].repeat_interleave(len(CONTRASTS), dim=1).repeat(1, 2)


def feature_presence(classes: Tensor, count: int) -> Tensor:
    """Which of `count` features say something of each volume: (n, count) of 0 and 1."""
    return spread_over_features(tissue_presence(classes), count)


def patient_features(
    trunk: nn.Module,
    volume: Volume,
    scale: FeatureScale,
    spatial_dims: int,
    device: torch.device,
) -> Tensor:
    """Standardised features of one patient (feature,); what the patient lacks is 0, the centre."""
    classes = one_hot(volume.labels.unsqueeze(0)).to(device)
    image = volume.image.unsqueeze(0).to(device)
    return standard_features(trunk, classes, image, scale, spatial_dims)[0]


def standard_features(
    trunk: nn.Module, classes: Tensor, image: Tensor, scale: FeatureScale, spatial_dims: int
) -> Tensor:
    """Standardised features (n, feature), 0 where the tissue is absent."""
    features = scale.standardise(raw_features(trunk, classes, image, spatial_dims))
    return features * feature_presence(classes, features.shape[1])


@torch.no_grad()
def fit_scale(trunk: nn.Module, pool: Sequence[Volume], spatial_dims: int) -> FeatureScale:
    """Measure centre, scale and clip norm on a public pool."""
    rows, presences = [], []
    for volume in pool:
        classes = one_hot(volume.labels.unsqueeze(0))
        rows.append(raw_features(trunk, classes, volume.image.unsqueeze(0), spatial_dims)[0])
        presences.append(feature_presence(classes, len(rows[-1]))[0])
    features, here = torch.stack(rows), torch.stack(presences)
    count = here.sum(0).clamp(min=1)
    centre = (features * here).sum(0) / count
    scale = (((features - centre).square() * here).sum(0) / count).sqrt().clamp(min=1e-3)
    norms = ((features - centre) / scale * here).norm(dim=1)
    return FeatureScale(centre=centre, scale=scale, clip=norms.median() * 1.3)
