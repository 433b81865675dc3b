"""Dice of the tumour regions, one number per patient and region (Dice 1945; BraTS regions)."""

from collections.abc import Mapping

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from medsynth_common.labels import REGION_TISSUES, SEGMENTER_CLASSES, Region
from medsynth_common.learning.volumes import over_volumes


def region_dice(predicted: Tensor, target: Tensor) -> Mapping[Region, float | None]:
    """Compare channel numbers (x, y, z).

    A patient who does not have a region has no Dice for it (None): there it could only be 0 or
    undefined, and would count such patients rather than say how well regions are found.
    """
    scores: dict[Region, float | None] = {}
    for region, tissues in REGION_TISSUES.items():
        channels = torch.tensor([SEGMENTER_CLASSES.index(tissue) for tissue in tissues])
        found = torch.isin(predicted, channels.to(predicted.device))
        there = torch.isin(target, channels.to(target.device))
        size = int(found.sum() + there.sum())
        scores[region] = 2 * int((found & there).sum()) / size if bool(there.any()) else None
    return scores


@torch.no_grad()
def segment(
    segmenter: nn.Module, image: Tensor, *, crop: tuple[int, ...], spatial_dims: int
) -> Tensor:
    """Segment one image (4, x, y, z) into channel numbers (x, y, z).

    The network sees windows of the size it was trained on: its instance normalisation has other
    statistics on a whole volume.
    """
    logits: Tensor = sliding_window_inference(
        image.unsqueeze(0),
        roi_size=crop,
        sw_batch_size=4,
        predictor=lambda windows: over_volumes(segmenter, windows, spatial_dims),
        overlap=0.5,
        mode="gaussian",
    )
    return logits.argmax(1)[0]
