"""Dice of the tumour regions, one number per patient and region (Dice 1945; BraTS regions)."""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from medsynth_common.labels import REGION_TISSUES, SEGMENTER_CLASSES, Region


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


#: Length of a patient's `score_vector`.
SCORES: Final = 2 * len(Region)
#: No score vector is longer: each of its numbers lies in 0..1.
SCORES_CLIP: Final = SCORES**0.5


def score_vector(predicted: Tensor, target: Tensor) -> Tensor:
    """Give a patient's Dice (0 where it has not the region), then whether it has it; float64.

    Summed over patients, the first half over the second is the mean Dice of each region.
    """
    dice = region_dice(predicted, target)
    scores = [dice[region] or 0.0 for region in Region]
    present = [float(dice[region] is not None) for region in Region]
    return torch.tensor([*scores, *present], dtype=torch.float64)


def mean_dice(mean: Tensor, *, noise: float) -> Mapping[Region, tuple[float, float] | None]:
    """Turn a noisy mean of score vectors into Dice and the noise's SD on it, per region.

    Args:
        mean: the noisy mean (`SCORES`,).
        noise: SD of the noise on each of its numbers.

    Returns:
        Dice, cut to 0..1, with its SD to first order (delta method); None where the noise drowns
        how many patients have the region: within two SDs of nobody.

    """
    found: dict[Region, tuple[float, float] | None] = {}
    for index, region in enumerate(Region):
        score, present = float(mean[index]), float(mean[index + len(Region)])
        if present <= max(2 * noise, 1e-9):
            found[region] = None
            continue
        dice = score / present
        found[region] = (min(max(dice, 0.0), 1.0), noise * (1 + dice**2) ** 0.5 / present)
    return found
