"""Writing the synthetic set: NIfTI volumes in BraTS names, and what they are in `dataset.json`.

Each volume is written whole or not at all, and one that is there is not made again, so that an
interrupted set is completed rather than begun anew.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medsynth_common import __version__
from medsynth_common.durable import write_json
from medsynth_common.labels import BRATS_VALUE_OF, CONTRASTS, TISSUES
from medsynth_common.learning.volumes import Volume
from medsynth_common.set_layout import Layout, files_of, write_file
from medsynth_server.model import Model
from medsynth_server.synthesis import Painter

#: Length of an adult head's longest axis, mm: gives phantoms a voxel size.
_BRAIN_MM = 180.0


def write_synthetic_set(
    model: Model,
    sites: Sequence[str],
    folder: Path,
    *,
    count: int,
    grid: tuple[int, ...],
    seed: int,
    device: torch.device,
) -> None:
    """Write `count` synthetic patients: four contrasts, the tumour map and the anatomy map."""
    painter = Painter(model, sites, grid=grid, device=device)
    digits = max(3, int(math.log10(max(count, 1))) + 1)
    entries = []
    for index, (site, volume) in enumerate(painter.volumes(seed=seed, count=count)):
        name = f"synthetic-{index:0{digits}d}"
        _write_patient(folder, name, volume, grid)
        entries.append({"name": name, "style": site})
    write_json(
        folder / "dataset.json",
        {
            "description": "Synthetic brain MRI. No volume is a patient's.",
            "source": "synthetic",
            "generator": f"medsynth {__version__}",
            "modality": {str(i): str(contrast) for i, contrast in enumerate(CONTRASTS)},
            "labels": {"0": "background"}
            | {str(value): tissue.name.lower() for tissue, value in BRATS_VALUE_OF.items()},
            "anatomy_labels": {str(int(tissue)): tissue.name.lower() for tissue in TISSUES},
            "numTraining": len(entries),
            "training": entries,
        },
    )


def _write_patient(folder: Path, name: str, volume: Volume, grid: tuple[int, ...]) -> None:
    affine = phantom_affine(grid)
    for path, voxels in files_of(Layout.BRATS, name, volume).items():
        write_file(folder, path, voxels, affine)


def phantom_affine(grid: tuple[int, ...]) -> NDArray[np.float64]:
    """Give label maps that were drawn a scale: voxel indices to millimetres, (4, 4)."""
    return np.diag([*(_BRAIN_MM / max(grid),) * 3, 1.0])
