"""From every patient's scores to the table's cells, and whether cells differ."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medsynth_common.labels import Region
from medsynth_common.scoring import RegionScores
from medsynth_server.paired_test import signed_rank
from medsynth_server.table.cells import Cell, Column
from medsynth_server.table.results import (
    CellResult,
    PairedTest,
    RegionResult,
    Spread,
    TrainingScores,
)

Floats = NDArray[np.float64]


def results_of(trainings: Sequence[TrainingScores]) -> list[CellResult]:
    """Put the trainings of each cell together, in the order the cells come up."""
    return [
        CellResult(
            cell=cell,
            seeds=len(mine),
            regions={region: _region(mine, region) for region in Region},
        )
        for cell, mine in _by_cell(trainings).items()
    ]


def comparisons_of(trainings: Sequence[TrainingScores]) -> list[PairedTest]:
    """Compare every cell with its `real` one (Wilcoxon 1945), corrected for their number.

    Pairs are patients; a patient's Dice is the mean over seeds. Cells are compared with the same
    architecture and augmentation. The correction (Holm 1979) is over all tests of all regions.
    """
    cells = _by_cell(trainings)
    found: list[tuple[Cell, Region, float, int, float]] = []
    for cell, mine in cells.items():
        if cell.column is Column.REAL:
            continue
        real = cells.get(cell.model_copy(update={"column": Column.REAL, "generator": None}))
        if real is None:
            continue
        for region in Region:
            difference = dice_by_patient(mine, region) - dice_by_patient(real, region)
            if difference.size:
                p = signed_rank(difference)
                found.append((cell, region, float(difference.mean()), difference.size, p))
    corrected = holm([p for *_, p in found])
    return [
        PairedTest(cell=cell, region=region, difference=mean, patients=n, p=p, p_holm=p_holm)
        for (cell, region, mean, n, p), p_holm in zip(found, corrected, strict=True)
    ]


def holm(p: Sequence[float]) -> list[float]:
    """Correct p values for their number by Holm's step-down method."""
    corrected = [0.0] * len(p)
    least = 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = least
    return corrected


def dice_by_patient(trainings: Sequence[TrainingScores], region: Region) -> Floats:
    """Dice of every patient who has the region, averaged over seeds: (patient,)."""
    rows = [[s.dice for s in _scores(one, region) if s.dice is not None] for one in trainings]
    means: Floats = np.asarray(rows, dtype=np.float64).mean(axis=0)
    return means


def _region(trainings: Sequence[TrainingScores], region: Region) -> RegionResult:
    scores = [_scores(one, region) for one in trainings]
    here = [[s for s in row if s.dice is not None] for row in scores]
    every = [s for row in scores for s in row]
    return RegionResult(
        dice=_spread([[s.dice or 0.0 for s in row] for row in here]),
        hd95=_spread([[s.hd95 or 0.0 for s in row] for row in here]),
        lesion_dice=_certain([[s.lesion_dice for s in row] for row in scores]),
        lesion_hd95=_certain([[s.lesion_hd95 for s in row] for row in scores]),
        patients=len(here[0]),
        not_found=_mean([float(not s.dice) for row in here for s in row]) or 0.0,
        missed=_mean([float(s.missed) for s in every]) or 0.0,
        false=_mean([float(s.false) for s in every]) or 0.0,
        per_site=_per_site(trainings, region),
    )


def _per_site(trainings: Sequence[TrainingScores], region: Region) -> Mapping[str, float | None]:
    sites = trainings[0].scores
    return {
        site: _mean(
            [
                dice
                for one in trainings
                for patient in one.scores[site]
                if (dice := patient[region].dice) is not None
            ]
        )
        for site in sites
    }


def _scores(training: TrainingScores, region: Region) -> list[RegionScores]:
    return [patient[region] for patients in training.scores.values() for patient in patients]


def _spread(rows: Sequence[Sequence[float]]) -> Spread | None:
    """Summarise (seed, patient) scores; None without patients."""
    return _certain(rows) if rows[0] else None


def _certain(rows: Sequence[Sequence[float]]) -> Spread:
    values = np.asarray(rows, dtype=np.float64)  # (seed, patient)
    patients, means = values.mean(axis=0), values.mean(axis=1)
    return Spread(
        mean=float(patients.mean()),
        sd=float(patients.std()),
        seed_sd=float(means.std(ddof=1)) if len(means) > 1 else None,
    )


def _by_cell(trainings: Sequence[TrainingScores]) -> dict[Cell, list[TrainingScores]]:
    cells: dict[Cell, list[TrainingScores]] = {}
    for one in trainings:
        cells.setdefault(one.training.cell, []).append(one)
    return cells


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
