"""Many patients' scores in a few numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medsynth_common.labels import Region
from medsynth_common.scoring.patient import PatientScores


class RegionSummary(BaseModel):
    """One region over patients: means and standard deviations.

    Attributes:
        patients: who have the region; the next four are theirs, null where there are none.
        dice: mean.
        dice_sd: over patients.
        hd95: mean, millimetres.
        hd95_sd: over patients.
        lesion_dice: mean over all patients.
        lesion_hd95: the same, millimetres.
        missed: lesions that were not touched, all patients'.
        false: finds that belong to no lesion, all patients'.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    patients: int = Field(ge=0)
    dice: float | None
    dice_sd: float | None
    hd95: float | None
    hd95_sd: float | None
    lesion_dice: float
    lesion_hd95: float
    missed: int
    false: int


def summarise(patients: Sequence[PatientScores]) -> Mapping[Region, RegionSummary]:
    """Summarise the scores of at least one patient."""
    return {region: _summary(patients, region) for region in Region}


def _summary(patients: Sequence[PatientScores], region: Region) -> RegionSummary:
    scores = [patient[region] for patient in patients]
    dice = [one.dice for one in scores if one.dice is not None]
    distances = [one.hd95 for one in scores if one.hd95 is not None]
    return RegionSummary(
        patients=len(dice),
        dice=float(np.mean(dice)) if dice else None,
        dice_sd=float(np.std(dice)) if dice else None,
        hd95=float(np.mean(distances)) if distances else None,
        hd95_sd=float(np.std(distances)) if distances else None,
        lesion_dice=float(np.mean([one.lesion_dice for one in scores])),
        lesion_hd95=float(np.mean([one.lesion_hd95 for one in scores])),
        missed=sum(one.missed for one in scores),
        false=sum(one.false for one in scores),
    )
