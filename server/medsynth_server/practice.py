"""`medsynth-server phantoms`: hospitals of phantoms as NIfTI files, to practise with.

What a hospital's own commands want is a folder of patients. Here are some that are nobody, each
hospital's from its own scanner, in BraTS names.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from medsynth_common.errors import BadConfig, Problem
from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom import SITE_SCANNERS, make_phantom
from medsynth_common.synthetic_set import write_synthetic


def write_hospitals(
    folder: Path, *, sites: int, patients: int, side: int, seed: int
) -> Iterator[Path]:
    """Write `folder`/site-N/site-N-phantom-K; gives each patient's folder when it is written.

    Args:
        folder: new or empty; nothing is overwritten.
        sites: hospitals, each with the next of the simulation's scanners.
        patients: of each hospital, all different.
        side: voxels along each axis.
        seed: the same seed, the same bytes.

    Raises:
        BadConfig: `folder` holds something.

    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        wanted = "a new or empty folder: nothing is overwritten"
        raise BadConfig(Problem(name=str(folder), value="something there already", wanted=wanted))
    for number in range(sites):
        hospital = f"site-{number + 1}"
        for patient in range(patients):
            name = f"{hospital}-phantom-{patient + 1:03d}"
            own = np.random.SeedSequence((seed, number, patient)).generate_state(1)
            scanner = SITE_SCANNERS[number % len(SITE_SCANNERS)]
            made = make_phantom(int(own[0]), (side, side, side), scanner)
            image, labels = torch.from_numpy(made.image), torch.from_numpy(made.labels)
            write_synthetic(folder / hospital, name, Volume(image=image, labels=labels))
            yield folder / hospital / name
