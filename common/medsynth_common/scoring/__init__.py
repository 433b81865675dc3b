"""How well a tumour was found: Dice, HD95, and both lesion by lesion."""

from medsynth_common.scoring.patient import (
    PatientScores,
    RegionScores,
    score_patient,
    score_volume,
)

__all__ = ["PatientScores", "RegionScores", "score_patient", "score_volume"]
