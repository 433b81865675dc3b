"""Real patients in: find them, check them, prepare them for training."""

from medsynth_common.dataset.check import check_patients, checked_patients
from medsynth_common.dataset.config import DataConfig
from medsynth_common.dataset.files import PatientFiles
from medsynth_common.dataset.layout import find_patients
from medsynth_common.dataset.prepare import Patient, prepare

__all__ = [
    "DataConfig",
    "Patient",
    "PatientFiles",
    "check_patients",
    "checked_patients",
    "find_patients",
    "prepare",
]
