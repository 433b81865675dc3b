"""What two volumes are compared by: a coarse, smoothed, per-contrast standardised picture of each.

A copy that was made noisier, brighter, flatter or mirrored keeps its signature; another person's
does not have it. Every signature has the same size whatever the volume's grid.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from medsynth_common.labels import ANATOMY, CONTRASTS, TUMOUR, Tissue, one_hot
from medsynth_common.learning.volumes import Volume

Floats = NDArray[np.float64]
Signature = NDArray[np.float32]

_IMAGE_SIDE: Final = 16  # a voxel is about a centimetre of an adult head
_LABEL_SIDE: Final = 24
_DARKEST: Final = 0.12  # of a volume's brightest place: below it is no brain, or noise around it
_SMOOTHING: Final = 0.6  # SD in coarse voxels: forgives a shift by a fraction of one


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """The signatures of n volumes.

    Attributes:
        image: (n, contrast, 16, 16, 16), each contrast 0 in the mean and 1 in SD inside the brain
            before it was made coarse, 0 outside.
        anatomy: (n, class, 24, 24, 24), the share of each anatomy class but the background.
        tumour: (n, class, 24, 24, 24), the same for the tumour classes.

    """

    image: Signature
    anatomy: Signature
    tumour: Signature

    def __len__(self) -> int:
        return len(self.image)

    def joined(self, other: "Cohort") -> "Cohort":
        """Put two cohorts one after the other."""
        return Cohort(
            image=np.concatenate([self.image, other.image]),
            anatomy=np.concatenate([self.anatomy, other.anatomy]),
            tumour=np.concatenate([self.tumour, other.tumour]),
        )


def describe(volumes: Iterable[Volume]) -> Cohort:
    """Take the signatures of volumes one by one, so that they need not all be in memory."""
    images, shares = [], []
    for volume in volumes:
        images.append(_image(volume))
        shares.append(_shares(volume))
    image = np.stack(images) if images else _none(len(CONTRASTS), _IMAGE_SIDE)
    share = np.stack(shares) if shares else _none(len(Tissue), _LABEL_SIDE)
    return Cohort(image=image, anatomy=share[:, list(ANATOMY[1:])], tumour=share[:, list(TUMOUR)])


def image_distances(a: Signature, b: Signature) -> Floats:
    """Root mean square difference of every image in `a` from every one in `b`: (len(a), len(b)).

    The smaller of the differences as they lie and with left and right exchanged.
    """
    return np.minimum(_rms(a, b), _rms(_mirrored(a), b))


def label_distances(a: Signature, b: Signature) -> Floats:
    """1 - Dice of class shares, of every map in `a` from every one in `b`: (len(a), len(b)).

    The smaller of two, as for images. Two maps of which either is empty are infinitely apart.
    """
    return np.minimum(_one_less_dice(a, b), _one_less_dice(_mirrored(a), b))


def _image(volume: Volume) -> Signature:
    # A generator that diverged paints NaN; such volumes are like one another and like nobody.
    image = volume.image.nan_to_num(0.0, 0.0, 0.0)
    brain = _brain(image)
    inside = image[:, brain]  # (contrast, voxel)
    if inside.shape[1] == 0:
        return np.zeros((len(image), *(_IMAGE_SIDE,) * 3), dtype=np.float32)
    centre, spread = inside.mean(1), inside.std(1, correction=0).clamp(min=1e-6)
    standard = (image - centre[:, None, None, None]) / spread[:, None, None, None]
    coarse = F.adaptive_avg_pool3d((standard * brain)[None], _IMAGE_SIDE)[0]
    sigmas = (0, _SMOOTHING, _SMOOTHING, _SMOOTHING)
    smoothed: Signature = ndimage.gaussian_filter(coarse.numpy(), sigmas).astype(np.float32)
    return smoothed


def _brain(image: Tensor) -> Tensor:
    """Where any contrast is bright, (x, y, z): by the image alone.

    Not by the label map: a memorised image may come with any, and would be measured by its edge.
    """
    strength = F.avg_pool3d(image.amax(0)[None], 3, stride=1, padding=1)[0]
    return strength > _DARKEST * strength.max()


def _shares(volume: Volume) -> Signature:
    shares: Signature = F.adaptive_avg_pool3d(one_hot(volume.labels[None]), _LABEL_SIDE)[0].numpy()
    return shares


def _none(channels: int, side: int) -> Signature:
    return np.zeros((0, channels, side, side, side), dtype=np.float32)


def _mirrored(signatures: Signature) -> Signature:
    """Exchange left and right: the first spatial axis points to the right (RAS+)."""
    return signatures[:, :, ::-1]


def _rms(a: Signature, b: Signature) -> Floats:
    squares, products = _squares_and_products(a, b)
    size = max(int(np.prod(a.shape[1:])), 1)
    return np.sqrt(np.maximum(squares - 2 * products, 0) / size)


def _one_less_dice(a: Signature, b: Signature) -> Floats:
    squares, products = _squares_and_products(a, b)
    dice = 2 * products / np.where(squares > 0, squares, 1)
    return np.where(_empty(a)[:, None] | _empty(b)[None], np.inf, np.maximum(1 - dice, 0))


def _empty(a: Signature) -> NDArray[np.bool_]:
    return np.asarray(a.reshape(len(a), int(np.prod(a.shape[1:]))).max(axis=1, initial=0) == 0)


def _squares_and_products(a: Signature, b: Signature) -> tuple[Floats, Floats]:
    """|x|^2 + |y|^2 and <x, y> of every pair; float64, or near copies drown in rounding."""
    x = torch.from_numpy(np.ascontiguousarray(a)).flatten(1).double()
    y = torch.from_numpy(np.ascontiguousarray(b)).flatten(1).double()
    squares = x.square().sum(1)[:, None] + y.square().sum(1)[None]
    return squares.numpy(), (x @ y.T).numpy()
