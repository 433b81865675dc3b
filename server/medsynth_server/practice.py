"""`medsynth-server phantoms`: hospitals of phantoms as NIfTI files, to practise with.

What a hospital's own commands want is a folder of patients. Here are some that are nobody, each
hospital's from its own scanner, in BraTS names, with a tumour each: `medsynth-client check` takes
an empty tumour map for a mistake.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch

from medsynth_common.durable import is_part, write_json
from medsynth_common.errors import BadConfig, Problem
from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom import SITE_SCANNERS, make_phantom
from medsynth_common.synthetic_set import write_synthetic

#: What is being written, until all of it is.
_MARK: Final = ".phantoms.json"


def write_hospitals(
    folder: Path, *, sites: int, patients: int, side: int, seed: int
) -> Iterator[Path]:
    """Write `folder`/site-N/site-N-phantom-K; gives each patient's folder when it is written.

    Cut off, the same arguments write it anew, to the same bytes.

    Args:
        folder: new or empty; nothing else is overwritten.
        sites: hospitals, each with the next of the simulation's scanners.
        patients: of each hospital, all different.
        side: voxels along each axis.
        seed: the same seed, the same bytes.

    Raises:
        BadConfig: `folder` holds something.

    """
    asked = {"sites": sites, "patients": patients, "side": side, "seed": seed}
    if folder.exists() and not _may_be_written(folder, asked):
        wanted = "a new or empty folder: nothing is overwritten"
        raise BadConfig(Problem(name=str(folder), value="something there already", wanted=wanted))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / _MARK, asked)
    for number in range(sites):
        hospital = f"site-{number + 1}"
        for patient in range(patients):
            name = f"{hospital}-phantom-{patient + 1:03d}"
            own = np.random.SeedSequence((seed, number, patient)).generate_state(1)
            scanner = SITE_SCANNERS[number % len(SITE_SCANNERS)]
            made = make_phantom(int(own[0]), (side, side, side), scanner, tumours=1)
            image, labels = torch.from_numpy(made.image), torch.from_numpy(made.labels)
            write_synthetic(folder / hospital, name, Volume(image=image, labels=labels))
            yield folder / hospital / name
    (folder / _MARK).unlink()


def _may_be_written(folder: Path, asked: dict[str, int]) -> bool:
    if not folder.is_dir():
        return False
    if (folder / _MARK).is_file():
        try:
            return bool(json.loads((folder / _MARK).read_bytes()) == asked)
        except ValueError:  # somebody else's, or damaged
            return False
    return all(is_part(entry) for entry in folder.iterdir())
