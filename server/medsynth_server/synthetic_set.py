"""Making the synthetic set: painted volumes, and what they are in `dataset.json`.

A volume that is there is not made again, so that an interrupted set is completed rather than begun
anew. `dataset.json` comes last: a set that has it is whole.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from medsynth_common import __version__
from medsynth_common.durable import write_json
from medsynth_common.labels import BRATS_VALUE_OF, CONTRASTS, TISSUES
from medsynth_common.synthetic_set import DATASET_FILE, write_synthetic
from medsynth_server.model import Model
from medsynth_server.synthesis import Painter


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
        write_synthetic(folder, name, volume)
        entries.append({"name": name, "style": site})
    write_json(
        folder / DATASET_FILE,
        {
            "description": "Synthetic brain MRI, made by a model and public label maps.",
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
