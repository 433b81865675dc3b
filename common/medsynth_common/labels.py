"""The label vocabulary: anatomy and tumour classes, the four contrasts, the tumour regions.

A label map is an integer volume of `Tissue` values on the grid of its images, axes (x, y, z)
pointing right, anterior, superior (RAS+). Tumour regions follow the BraTS challenge
(Menze et al. 2015): whole tumour, tumour core, enhancing tumour.
"""

from enum import IntEnum, StrEnum
from typing import Final

import torch
from torch import Tensor


class Contrast(StrEnum):
    """The four MR contrasts, in the order of an image's channels."""

    T1 = "t1"
    T1GD = "t1gd"
    T2 = "t2"
    FLAIR = "flair"


class Tissue(IntEnum):
    """Classes of a label map."""

    BACKGROUND = 0
    CSF = 1
    VENTRICLE = 2
    GREY = 3
    WHITE = 4
    DEEP_GREY = 5
    CORE = 6
    OEDEMA = 7
    ENHANCING = 8


class Region(StrEnum):
    """Nested tumour regions that segmentations are judged on."""

    WHOLE = "whole tumour"
    CORE = "tumour core"
    ENHANCING = "enhancing tumour"


CONTRASTS: Final = tuple(Contrast)
TISSUES: Final = tuple(Tissue)
TUMOUR: Final = (Tissue.CORE, Tissue.OEDEMA, Tissue.ENHANCING)
ANATOMY: Final = tuple(tissue for tissue in Tissue if tissue not in TUMOUR)

#: BraTS label values (1 necrotic core, 2 oedema, 4 enhancing; since 2023 also 3) to classes.
BRATS_VALUES: Final = {1: Tissue.CORE, 2: Tissue.OEDEMA, 3: Tissue.ENHANCING, 4: Tissue.ENHANCING}
#: Classes to the BraTS value they are written as.
BRATS_VALUE_OF: Final = {Tissue.CORE: 1, Tissue.OEDEMA: 2, Tissue.ENHANCING: 4}

#: The classes of a segmenter's output channels, in order.
SEGMENTER_CLASSES: Final = (Tissue.BACKGROUND, *TUMOUR)

REGION_TISSUES: Final = {
    Region.WHOLE: TUMOUR,
    Region.CORE: (Tissue.CORE, Tissue.ENHANCING),
    Region.ENHANCING: (Tissue.ENHANCING,),
}


def one_hot(labels: Tensor) -> Tensor:
    """Spread a label map (n, *grid) into class channels (n, len(TISSUES), *grid), float32."""
    channels = torch.nn.functional.one_hot(labels.long(), len(TISSUES))  # (n, *grid, class)
    return channels.movedim(-1, 1).float()


def segmenter_target(labels: Tensor) -> Tensor:
    """Map a label map to the segmenter's channel numbers (0 = no tumour), same shape, int64."""
    target = torch.zeros_like(labels, dtype=torch.int64)
    for channel, tissue in enumerate(SEGMENTER_CLASSES):
        if tissue is not Tissue.BACKGROUND:
            target[labels == tissue] = channel
    return target
