"""The bench's comparison on real patients: are public weights and released moments of use there?

    python -m benchmarks.utility.real DATA WORK

DATA holds `ms_lesions/` and `tcga_lgg/` as published, two hospitals of three and two patients; WORK
keeps the mended copies and what has been measured. Each patient is held out once, and everything is
trained on the other four: too few for privacy, so there is none, and too few for a critic; a
hospital's style is of one or two patients. Tumour maps of `tcga_lgg` are automatic; lesions of
`ms_lesions` are no tumours.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.real_pictures import prepared
from benchmarks.results import record
from benchmarks.utility.federation import Cohorts
from benchmarks.utility.kept import SOURCES, Kept
from benchmarks.utility.presets import Preset
from benchmarks.utility.rows import Comparison, Measured
from medsynth_common.learning.volumes import Volume
from medsynth_server.config import parse_config
from medsynth_server.shipped import shipped_model
from medsynth_server.simulated_sites import folder_sites

PRESET: Final = Preset(
    name="real",
    seeds=(1,),
    side=48,
    crop=32,
    sites=2,
    each=0,
    held_out=0,
    unseen=0,
    hospitals=(),
    rounds=4,
    steps=3,
    sampling_rate=1.0,
    free_steps=60,
    adversarial_rounds=2,
    generator_steps=10,
    synthetic=16,
    synthetic_steps=60,
)
_ROWS: Final = (
    "public weights",
    "pooled, as on a set",
    "synthetic: public",
    "synthetic: moments",
)
_COLUMNS: Final = {"tumour": 1, "lesion": 1, "intensity": 3, "texture": 3}


@dataclass(frozen=True)
class Fold:
    """Everyone but one patient trains; takes the place of `Patients`."""

    training: Cohorts
    same: Cohorts

    @property
    def other(self) -> Cohorts:
        """There is no further scanner: the held-out patient is measured once more."""
        return self.same

    @property
    def twins(self) -> Cohorts:
        """Nor are there twins."""
        return self.same

    def hospitals(self, count: int) -> Cohorts:
        """Federations of other sizes cannot be made of two hospitals."""
        raise NotImplementedError


def main(data: Path, work: Path) -> bool:
    """Measure every row on every patient, and record the table."""
    torch.set_num_threads(2)
    public = shipped_model()
    found: dict[str, list[Measured]] = {name: [] for name in _ROWS}
    for patient, fold in folds(volumes(prepared(data, work / "patients"))):
        kept = Kept(work / f"kept-{patient}-{SOURCES}")
        rows = Comparison(PRESET, PRESET.seeds[0], fold, public, kept).rows
        about = kept.about(public, repr(PRESET))
        for name in _ROWS:
            found[name].append(kept.row(name, about, rows[name]))
            print(f"{patient}, {name}: {found[name][-1]}", flush=True)
    return record(
        "utility_real",
        title="The same comparison on real patients",
        about=f"Five public patients on {PRESET.side}^3 voxels, three with multiple sclerosis "
        "(Lesjak et al. 2017, CC BY) and two with a glioma (TCGA-LGG, CC BY 3.0; automatic maps); "
        "each is held out once and all is trained on the other four, without privacy. Mean over "
        "patients, and the SD between them; Dice in percent.",
        rows=[{"row": name, **_cells(measured)} for name, measured in found.items()],
        goals=[],
        notes=[
            "five patients: what differs by less than the SD may be chance",
            "patients have no map of tissues: `intensity` and `texture` are of those found",
        ],
        command="python -m benchmarks.utility.real DATA WORK",
    )


def volumes(folder: Path) -> Mapping[str, Mapping[str, Volume]]:
    """Read every hospital's patients, by name."""
    config = parse_config(
        {"grid": [PRESET.side] * 3, "crop": [PRESET.crop] * 3, "data": {"layout": "sites"}},
        name="real patients",
    )
    read: dict[str, dict[str, Volume]] = {}
    for site in folder_sites(folder, config):
        everyone = site.load_trained_on(config, count=len(site.trained_on))
        everyone += site.load_held_out(config)
        read[site.name] = {f"{site.name}-{n + 1}": volume for n, volume in enumerate(everyone)}
    return read


def folds(patients: Mapping[str, Mapping[str, Volume]]) -> Iterator[tuple[str, Fold]]:
    """Hold each patient out once."""
    for site, here in patients.items():
        for name, volume in here.items():
            training = {
                other: [v for one, v in there.items() if one != name]
                for other, there in patients.items()
            }
            yield name, Fold(training=training, same={site: [volume]})


def _cells(measured: list[Measured]) -> dict[str, str | None]:
    cells: dict[str, str | None] = {}
    for column, digits in _COLUMNS.items():
        values = np.array([one[column] for one in measured if column in one])
        scale = 100 if digits == 1 else 1
        cells[column] = (
            f"{scale * values.mean():.{digits}f} ± {scale * values.std(ddof=1):.{digits}f}"
            if len(values)
            else None
        )
    return cells


if __name__ == "__main__":
    raise SystemExit(0 if main(Path(sys.argv[1]), Path(sys.argv[2])) else 1)
