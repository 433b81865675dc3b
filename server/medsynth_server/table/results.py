"""What a table holds, as `evaluation/table.json`: all that report and command line show."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medsynth_common.durable import write_bytes
from medsynth_common.errors import BadData, Problem
from medsynth_common.labels import Region
from medsynth_common.scoring import RegionScores
from medsynth_server.record import Arm
from medsynth_server.table.cells import Cell, Training

TABLE: Final = "table.json"

Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class TrainingScores(_Frozen):
    """What one training came to: every held-out patient's scores, site by site, in order."""

    training: Training
    scores: Mapping[str, tuple[Mapping[Region, RegionScores], ...]]
    cpu_seconds: Number


class Spread(_Frozen):
    """Mean and standard deviation over patients, each patient's scores averaged over seeds.

    Attributes:
        mean: over patients.
        sd: over patients.
        seed_sd: of the mean, over seeds; null for a single one.

    """

    mean: float
    sd: Number
    seed_sd: Number | None


class RegionResult(_Frozen):
    """One cell's scores in one region.

    Attributes:
        dice: null where no patient has the region, as the next.
        hd95: millimetres; a region that was not found counts 374.
        lesion_dice: by lesion, false finds counted.
        lesion_hd95: the same, millimetres.
        patients: that have the region.
        not_found: share of these (and seeds) in which nothing was found.
        missed: lesions a patient that were missed, mean.
        false: false finds a patient, mean.
        per_site: mean Dice.

    """

    dice: Spread | None
    hd95: Spread | None
    lesion_dice: Spread
    lesion_hd95: Spread
    patients: Count
    not_found: Number
    missed: Number
    false: Number
    per_site: Mapping[str, float | None]


class CellResult(_Frozen):
    """One cell: all its regions."""

    cell: Cell
    seeds: Count
    regions: Mapping[Region, RegionResult]


class PairedTest(_Frozen):
    """One cell against the cell that was trained on real patients, patient by patient.

    Attributes:
        cell: the one compared.
        region: whose Dice is compared.
        difference: mean of the cell's Dice less that of `real`.
        patients: pairs.
        p: two-sided, of the Wilcoxon signed-rank test.
        p_holm: the same after Holm's correction over all tests of this table.

    """

    cell: Cell
    region: Region
    difference: float
    patients: Count
    p: Annotated[float, Field(ge=0, le=1)]
    p_holm: Annotated[float, Field(ge=0, le=1)]


class TableResult(_Frozen):
    """The whole table.

    Attributes:
        steps: training steps of every cell.
        seeds: trainings of every cell.
        real: the sites' training patients.
        few: of these, how many a fine-tuned segmenter saw.
        synthetic: volumes of each generator.
        held_out: patients that everything was measured on, by site.
        phantoms: whether the patients are phantoms.
        epsilon: of each generator; null where it was trained without privacy.
        cells: in the table's order.
        tests: against `real`.
        cpu_seconds: of all trainings and their measurement.

    """

    steps: Count
    seeds: Count
    real: Count
    few: Count
    synthetic: Count
    held_out: Mapping[str, Count]
    phantoms: bool
    epsilon: Mapping[Arm, float | None]
    cells: tuple[CellResult, ...]
    tests: tuple[PairedTest, ...]
    cpu_seconds: Number

    def write(self, folder: Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_bytes(folder / TABLE, (self.model_dump_json(indent=1) + "\n").encode())

    def find(self, cell: Cell) -> CellResult | None:
        """Look a cell up."""
        return next((one for one in self.cells if one.cell == cell), None)

    @property
    def generators(self) -> Sequence[Arm]:
        """The trainings whose generators were used."""
        return tuple(self.epsilon)


def read_table(folder: Path) -> TableResult | None:
    """Read the table in a run's evaluation folder; None when there is none. Raises BadData."""
    path = folder / TABLE
    if not path.exists():
        return None
    try:
        return TableResult.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = Problem(
            name=str(path),
            value="not what `evaluate` writes",
            wanted="the table of this version",
            mend="run `medsynth-server evaluate` again",
        )
        raise BadData(problem) from error
