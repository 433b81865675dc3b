"""From an image to the lesions that a segmenter finds in it."""

from typing import Final

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from medsynth_common.learning.volumes import over_volumes

#: A find of fewer voxels is dropped. Public training shows no lesion whose solid part has a radius
#: below 2.2 voxels, 45 of them (`phantom.tumour`); this is less than half of it.
SPECK: Final = 20
_NEIGHBOURS: Final = np.ones((3, 3, 3), dtype=bool)


@torch.no_grad()
def segment(
    segmenter: nn.Module, image: Tensor, *, crop: tuple[int, ...], spatial_dims: int
) -> Tensor:
    """Segment one image (4, x, y, z) into channel numbers (x, y, z), without specks.

    The network sees windows of the size it was trained on: its instance normalisation has other
    statistics on a whole volume.
    """
    from monai.inferers import sliding_window_inference  # late: a node counts scores, no more

    logits: Tensor = sliding_window_inference(
        image.unsqueeze(0),
        roi_size=crop,
        sw_batch_size=4,
        predictor=lambda windows: over_volumes(segmenter, windows, spatial_dims),
        overlap=0.5,
        mode="gaussian",
    )
    return without_specks(logits.argmax(1)[0])


def without_specks(found: Tensor) -> Tensor:
    """Turn finds of fewer than `SPECK` voxels, 26 neighbours touching, into healthy tissue.

    Args:
        found: channel numbers (x, y, z); 0 is healthy.

    """
    pieces, _ = ndimage.label(found.cpu().numpy() > 0, structure=_NEIGHBOURS)
    sizes = np.bincount(pieces.ravel())
    large = sizes >= SPECK
    return found * torch.from_numpy(large[pieces]).to(found.device)
