"""All scores of one patient, and how a segmenter gets them."""

from collections.abc import Mapping
from typing import Annotated

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from medsynth_common.labels import REGION_TISSUES, SEGMENTER_CLASSES, Region, segmenter_target
from medsynth_common.learning.dice import region_dice
from medsynth_common.learning.segmenting import segment
from medsynth_common.learning.volumes import Volume
from medsynth_common.scoring.hausdorff import Sides, hd95
from medsynth_common.scoring.lesionwise import score_lesions

Share = Annotated[float, Field(ge=0, le=1)]
Millimetres = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


class RegionScores(BaseModel):
    """How well one region of one patient was found.

    Attributes:
        dice: null where the patient has no such region, as everywhere here.
        hd95: millimetres; null likewise, and `PENALTY_MM` where nothing was found.
        lesion_dice: mean over lesions and false finds, as BraTS 2023 counts them.
        lesion_hd95: the same, millimetres.
        lesions: true lesions; of them `missed` were not touched.
        missed: see `lesions`.
        false: finds that belong to no lesion.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    dice: Share | None
    hd95: Millimetres | None
    lesion_dice: Share
    lesion_hd95: Millimetres
    lesions: Count
    missed: Count
    false: Count


PatientScores = Mapping[Region, RegionScores]


def score_patient(predicted: Tensor, target: Tensor, *, voxel: Sides) -> PatientScores:
    """Compare channel numbers (x, y, z) of a segmenter with the truth.

    Args:
        predicted: what was found.
        target: the truth.
        voxel: sides of a voxel, millimetres.

    """
    dice = region_dice(predicted, target)
    scores = {}
    for region, tissues in REGION_TISSUES.items():
        channels = [SEGMENTER_CLASSES.index(tissue) for tissue in tissues]
        found = np.isin(predicted.cpu().numpy(), channels)
        there = np.isin(target.cpu().numpy(), channels)
        lesions = score_lesions(found, there, voxel=voxel)
        scores[region] = RegionScores(
            dice=dice[region],
            hd95=hd95(found, there, voxel=voxel) if there.any() else None,
            lesion_dice=lesions.dice,
            lesion_hd95=lesions.hd95,
            lesions=lesions.lesions,
            missed=lesions.missed,
            false=lesions.false,
        )
    return scores


def score_volume(
    segmenter: nn.Module,
    volume: Volume,
    *,
    voxel: Sides,
    crop: tuple[int, ...],
    spatial_dims: int,
    device: torch.device,
) -> PatientScores:
    """Segment one patient and compare with his label map; the segmenter is in its eval mode."""
    image = volume.image.float().to(device)
    found = segment(segmenter, image, crop=crop, spatial_dims=spatial_dims).cpu()
    return score_patient(found, segmenter_target(volume.labels), voxel=voxel)
