"""Real patients in: find them, check them, prepare them for training."""

from medsynth_common.dataset.check import check_patients, checked_patients, examine
from medsynth_common.dataset.config import DataConfig
from medsynth_common.dataset.files import PatientFiles
from medsynth_common.dataset.finding import Examination, Finding, Level
from medsynth_common.dataset.layout import find_patients
from medsynth_common.dataset.prepare import Patient, prepare

__all__ = [
    "DataConfig",
    "Examination",
    "Finding",
    "Level",
    "Patient",
    "PatientFiles",
    "check_patients",
    "checked_patients",
    "examine",
    "find_patients",
    "prepare",
]
