"""The paper's augmentation: crop, rotation, translation, elastic deformation. Drawn, then applied.

One crop is sampled out of the whole volume, so that what turns or bends into it is anatomy rather
than a border.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from medsynth_common.learning.volumes import Volume

_ROTATION: Final = 0.26  # radians about each axis, at most: 15 degrees
_TRANSLATION: Final = 0.06  # of a side, at most
_CONTROL: Final = 5  # control points of the elastic deformation along an axis
_ELASTIC: Final = 0.02  # of a side, standard deviation of their displacement


@dataclass(frozen=True, kw_only=True)
class Warp:
    """Drawn parameters of one crop.

    Attributes:
        angles: (3,) rotation about each axis, radians.
        shift: (3,) translation, as a share of the volume's sides.
        control: (3, 5, 5, 5) displacement of control points over the crop, as such a share.

    """

    angles: Tensor
    shift: Tensor
    control: Tensor

    @classmethod
    def draw(cls, generator: torch.Generator) -> "Warp":
        """Draw the parameters."""
        points = (3, _CONTROL, _CONTROL, _CONTROL)
        return cls(
            angles=_ROTATION * (2 * torch.rand(3, generator=generator) - 1),
            shift=_TRANSLATION * (2 * torch.rand(3, generator=generator) - 1),
            control=_ELASTIC * torch.randn(points, generator=generator),
        )

    @classmethod
    def none(cls) -> "Warp":
        """The parameters that change nothing."""
        points = (3, _CONTROL, _CONTROL, _CONTROL)
        return cls(angles=torch.zeros(3), shift=torch.zeros(3), control=torch.zeros(points))


def cut(volume: Volume, warp: Warp, *, start: tuple[int, ...], crop: tuple[int, ...]) -> Volume:
    """Sample the crop that begins at voxel `start`, warped; beyond the volume is air."""
    sides = torch.tensor([float(side) for side in volume.labels.shape])
    size = torch.tensor([float(side) for side in crop])
    axes = [torch.arange(side, dtype=torch.float32) - (side - 1) / 2 for side in crop]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (x, y, z, 3)
    bend = functional.interpolate(
        warp.control.unsqueeze(0), size=crop, mode="trilinear", align_corners=True
    )[0].movedim(0, -1)
    middle = torch.tensor([float(place) for place in start]) + (size - 1) / 2
    places = middle + offsets @ _rotation(warp.angles).T + (warp.shift + bend) * sides
    # grid_sample wants -1..1 between the middles of the outermost voxels, and axes from the last.
    grid = (2 * places / (sides - 1) - 1).flip(-1).unsqueeze(0)
    image = functional.grid_sample(
        volume.image.float().unsqueeze(0), grid, mode="bilinear", align_corners=True
    )[0]
    labels = functional.grid_sample(
        volume.labels.float()[None, None], grid, mode="nearest", align_corners=True
    )[0, 0]
    return Volume(image=image, labels=labels.to(torch.uint8))


def _rotation(angles: Tensor) -> Tensor:
    """Turn about x, then y, then z: (3, 3)."""
    turn = torch.eye(3)
    for axis, (first, second) in enumerate(((1, 2), (0, 2), (0, 1))):
        one = torch.eye(3)
        cos, sin = angles[axis].cos(), angles[axis].sin()
        one[first, first], one[second, second] = cos, cos
        one[first, second], one[second, first] = -sin, sin
        turn = one @ turn
    return turn
