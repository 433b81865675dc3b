"""The anatomy network: MRI of any contrasts becomes tissues (Shin et al. 2018's MRI-to-label).

It works on voxels of 2 mm, where a whole head takes a CPU half a second. Contrasts that a patient
lacks are channels of zeros; it was trained with all subsets.
"""

from typing import Annotated, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage
from torch import Tensor, nn

from medsynth_common.labels import ANATOMY, CONTRASTS, Tissue
from medsynth_common.privacy.mechanism import Value

#: Edge of the voxels that the network sees, mm.
VOXEL_MM: Final = 2.0
#: The classes of its output channels: where the brain is, is known before.
CLASSES: Final = tuple(tissue for tissue in ANATOMY if tissue is not Tissue.BACKGROUND)
#: The input: the contrasts, and how deep in the brain a voxel lies.
INPUTS: Final = len(CONTRASTS) + 1
#: Depths are given in units of this many mm, about the deepest there is.
_DEEPEST_MM: Final = 50.0


class AnatomySettings(Value):
    """How the network is built.

    Attributes:
        channels: feature channels of the U-Net's levels, from fine to coarse; each halves the grid.
        detail: channels at full resolution.

    """

    channels: tuple[Annotated[int, Field(ge=4, le=512)], ...] = Field(
        default=(24, 48, 64, 96), min_length=2, max_length=5
    )
    detail: int = Field(default=8, ge=4, le=128)

    @property
    def multiple(self) -> int:
        """Sides of a volume must be multiples of this."""
        return int(2 ** (len(self.channels) - 1))


class AnatomyNetwork(nn.Module):
    """A U-Net that begins at half resolution, and a small head at the full one.

    The U-Net says what is where; the head, which sees the image beside it, draws the line between
    tissues. Most of a U-Net's time goes into its finest level, which is thus saved.
    """

    def __init__(self, settings: AnatomySettings) -> None:
        from monai.networks.nets import UNet  # late, as in networks/build.py

        super().__init__()
        norm = ("INSTANCE", {"affine": True})
        self.context = UNet(
            spatial_dims=3,
            in_channels=INPUTS,
            out_channels=settings.detail,
            channels=settings.channels,
            strides=tuple(2 for _ in settings.channels[1:]),
            num_res_units=0,
            norm=norm,
        )
        self.head = nn.Sequential(
            nn.Conv3d(settings.detail + INPUTS, settings.detail, 3, padding=1),
            nn.InstanceNorm3d(settings.detail, affine=True),
            nn.LeakyReLU(0.1),
            nn.Conv3d(settings.detail, len(CLASSES), 1),
        )

    def forward(self, seen: Tensor) -> Tensor:
        """Turn scaled images with depths (n, INPUTS, x, y, z) into logits (n, class, x, y, z)."""
        logits: Tensor = self.head(torch.cat([self.context(seen), seen], 1))
        return logits


def depth_of(brain: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give each voxel's depth below the surface of a brain (x, y, z) on voxels of `VOXEL_MM`.

    The ventricles lie deep, the cortex does not, and a small network has no other way to tell.
    """
    padded = np.pad(brain, 1)  # the edge of the grid is outside too
    distance = ndimage.distance_transform_edt(padded)[1:-1, 1:-1, 1:-1]
    depth: NDArray[np.float32] = (distance * (VOXEL_MM / _DEEPEST_MM)).astype(np.float32)
    return depth


def shares(network: nn.Module, seen: Tensor) -> Tensor:
    """Give each class's share of every voxel, (class, x, y, z), for one head (INPUTS, x, y, z).

    The head is seen twice, once mirrored: right and left are alike.
    """
    with torch.inference_mode():
        both = [network(one)[0] for one in (seen[None], seen.flip(1)[None])]
        found: Tensor = (both[0].softmax(0) + both[1].flip(1).softmax(0)) / 2
    return found
