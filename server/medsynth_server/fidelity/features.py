"""Features of a volume that need no download: two networks', radiomics, and tissue intensities.

    planes  a 2D network of fixed random weights, over slices of each plane. Random filters answer
            to brightness, edges and texture at three scales; they know nothing of anatomy.
    critic  the run's publicly trained PatchGAN critic, over volume and label map. It knows
            phantoms, and what it learned to tell apart there; it is blind to the rest.

Neither is Inception: these distances cannot be compared with other papers' FID.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medsynth_common.labels import CONTRASTS, TISSUES, Contrast, Tissue, one_hot
from medsynth_common.learning.volumes import Volume, as_batch
from medsynth_server.fidelity.radiomics import radiomics

Floats = NDArray[np.float64]

_SEED: Final = 20180716
_WIDTHS: Final = (8, 16, 32)
_SLICES: Final = 5  # of each plane, in the middle half of the head
_VOXELS: Final = 200  # of each tissue and contrast, at most


class Plane(StrEnum):
    """The planes that volumes are looked at in."""

    SAGITTAL = "sagittal"
    CORONAL = "coronal"
    AXIAL = "axial"


@dataclass(frozen=True, kw_only=True)
class Features:
    """One volume's features.

    Attributes:
        planes: (slice, feature) of each plane.
        critic: (feature,).
        radiomic: (feature,), NaN for what the volume has not.
        voxels: intensities of each contrast and tissue, some of them.

    """

    planes: Mapping[Plane, Floats]
    critic: Floats
    radiomic: Floats
    voxels: Mapping[tuple[Contrast, Tissue], NDArray[np.float32]]

    @property
    def volume(self) -> Floats:
        """The planes' features, their slices averaged, one behind the other."""
        return np.concatenate([slices.mean(0) for slices in self.planes.values()])


@torch.no_grad()
def features_of(volume: Volume, critic: nn.Module, spatial_dims: int) -> Features:
    """Look at one volume."""
    image, labels = volume.image.float(), volume.labels
    return Features(
        planes=plane_features(image),
        critic=_critic(critic, image, labels, spatial_dims),
        radiomic=radiomics(image.numpy(), labels.numpy()),
        voxels=_voxels(image.numpy(), labels.numpy()),
    )


def plane_features(image: Tensor) -> dict[Plane, Floats]:
    """Features (slice, feature) of some slices of each plane of an image (4, x, y, z)."""
    return {plane: _plane(image, axis) for axis, plane in enumerate(Plane)}


def _plane(image: Tensor, axis: int) -> Floats:
    side = image.shape[axis + 1]
    where = torch.linspace(side / 4, 3 * side / 4, _SLICES).round().long()
    slices = image.index_select(axis + 1, where).movedim(axis + 1, 0)  # (slice, 4, ., .)
    pooled = []
    for weights in random_filters():
        slices = functional.relu(functional.conv2d(slices, weights, stride=2, padding=1))
        pooled += [slices.mean((2, 3)), slices.std((2, 3))]
    return torch.cat(pooled, dim=1).double().numpy()


@cache
def random_filters() -> tuple[Tensor, ...]:
    """The 2D network's weights: He's scale, always the same."""
    draw = torch.Generator().manual_seed(_SEED)
    filters, width = [], len(CONTRASTS)
    for wider in _WIDTHS:
        scale = (2 / (9 * width)) ** 0.5
        filters.append(scale * torch.randn(wider, width, 3, 3, generator=draw))
        width = wider
    return tuple(filters)


def _critic(critic: nn.Module, image: Tensor, labels: Tensor, spatial_dims: int) -> Floats:
    pair = torch.cat([one_hot(labels.unsqueeze(0)), image.unsqueeze(0)], dim=1)
    maps = critic(as_batch(pair, spatial_dims))[:-1]  # the last are the logits
    return torch.cat([m.flatten(2).mean(-1).mean(0) for m in maps]).double().numpy()


def _voxels(
    image: NDArray[np.float32], labels: NDArray[np.uint8]
) -> dict[tuple[Contrast, Tissue], NDArray[np.float32]]:
    found = {}
    for tissue in TISSUES[1:]:
        where = np.flatnonzero(labels == tissue)
        some = where[:: max(1, len(where) // _VOXELS)]
        for contrast, channel in zip(CONTRASTS, image, strict=True):
            found[contrast, tissue] = channel.ravel()[some]
    return found
