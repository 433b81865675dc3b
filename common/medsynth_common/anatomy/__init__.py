"""Tissues from MRI by a network: the form that hospitals run."""

from medsynth_common.anatomy.network import CLASSES, VOXEL_MM, AnatomyNetwork, AnatomySettings
from medsynth_common.anatomy.tissues import NETWORK, TissueNetwork

__all__ = [
    "CLASSES",
    "NETWORK",
    "VOXEL_MM",
    "AnatomyNetwork",
    "AnatomySettings",
    "TissueNetwork",
]
