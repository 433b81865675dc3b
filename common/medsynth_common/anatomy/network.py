"""The anatomy network: MRI of any contrasts becomes tissues (Shin et al. 2018's MRI-to-label).

It works on voxels of 2 mm, where a whole head takes a CPU half a second. Contrasts that a patient
lacks are channels of zeros; it was trained with all subsets.
"""

from typing import Annotated, Final

import torch
from pydantic import Field
from torch import Tensor, nn

from medsynth_common.labels import ANATOMY, CONTRASTS, Tissue
from medsynth_common.privacy.mechanism import Value

#: Edge of the voxels that the network sees, mm.
VOXEL_MM: Final = 2.0
#: The classes of its output channels: where the brain is, is known before.
CLASSES: Final = tuple(tissue for tissue in ANATOMY if tissue is not Tissue.BACKGROUND)
_FOLD: Final = 2


class AnatomySettings(Value):
    """How the network is built.

    Attributes:
        channels: feature channels of each level, from fine to coarse.

    """

    channels: tuple[Annotated[int, Field(ge=4, le=512)], ...] = Field(
        default=(24, 48, 64, 96), min_length=2, max_length=5
    )

    @property
    def multiple(self) -> int:
        """Sides of a volume must be multiples of this."""
        return int(_FOLD * 2 ** (len(self.channels) - 2))


class AnatomyNetwork(nn.Module):
    """A U-Net on blocks of 2x2x2 voxels: as fine an answer, at an eighth of the voxels.

    MONAI's U-Net at full resolution takes four times as long for the same step; what a voxel's
    neighbours in the block say is not lost but stands in channels of its own.
    """

    def __init__(self, settings: AnatomySettings) -> None:
        from monai.networks.nets import UNet  # late, as in networks/build.py

        super().__init__()
        block = _FOLD**3
        self.unet = UNet(
            spatial_dims=3,
            in_channels=block * len(CONTRASTS),
            out_channels=block * len(CLASSES),
            channels=settings.channels,
            strides=(1, *(2 for _ in settings.channels[2:])),
            num_res_units=0,
            norm=("INSTANCE", {"affine": True}),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Turn images (n, 4, x, y, z), scaled by `normalise`, into logits (n, class, x, y, z)."""
        from monai.networks.utils import pixelshuffle, pixelunshuffle

        blocks = pixelunshuffle(image, spatial_dims=3, scale_factor=_FOLD)
        logits: Tensor = pixelshuffle(self.unet(blocks), spatial_dims=3, scale_factor=_FOLD)
        return logits


def shares(network: nn.Module, image: Tensor) -> Tensor:
    """Give each class's share of every voxel (class, x, y, z) for one image (4, x, y, z).

    A head is seen twice, once mirrored: right and left are alike to it.
    """
    with torch.inference_mode():
        both = [network(one)[0] for one in (image[None], image.flip(1)[None])]
        found: Tensor = (both[0].softmax(0) + both[1].flip(1).softmax(0)) / 2
    return found
