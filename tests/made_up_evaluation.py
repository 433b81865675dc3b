"""A table and fidelity figures that nobody measured, for pages to show."""

from functools import cache
from pathlib import Path

from medsynth_common.labels import CONTRASTS, Region, Tissue
from medsynth_common.scoring import RegionScores
from medsynth_server.config import Table
from medsynth_server.fidelity.features import Plane
from medsynth_server.fidelity.results import (
    Comparison,
    Distances,
    FidelityResult,
    SiteFidelity,
    TissueDistance,
)
from medsynth_server.record import Arm
from medsynth_server.table.cells import Column, trainings
from medsynth_server.table.results import TableResult, TrainingScores
from medsynth_server.table.statistics import comparisons_of, results_of

EPSILON = {Arm.PRIVATE: 7.9034, Arm.REFERENCE: None}
PATIENTS = 4
#: Whole-tumour Dice of a column, less for the private generator.
DICE = {Column.REAL: 0.81, Column.BOTH: 0.83, Column.SYNTHETIC: 0.7, Column.TUNED: 0.8}


def write_evaluation(folder: Path, sites: tuple[str, ...]) -> None:
    """Write both results into a run's evaluation folder."""
    table(sites).write(folder)
    fidelity(sites).write(folder)


@cache
def table(sites: tuple[str, ...]) -> TableResult:
    """A whole table of one network and two seeds."""
    scores = [
        TrainingScores(
            training=training,
            scores={
                site: tuple(
                    {
                        region: _scores(_dice(training.cell.column, place, patient))
                        for region in Region
                    }
                    for patient in range(PATIENTS)
                )
                for place, site in enumerate(sites)
            },
            cpu_seconds=40.0,
        )
        for training in trainings(Table(seeds=2), list(EPSILON))
    ]
    return TableResult(
        steps=200,
        seeds=2,
        real=180,
        few=18,
        synthetic=180,
        held_out=dict.fromkeys(sites, PATIENTS),
        phantoms=True,
        epsilon=EPSILON,
        cells=tuple(results_of(scores)),
        tests=tuple(comparisons_of(scores)),
        cpu_seconds=1600.0,
    )


def _dice(column: Column, place: int, patient: int) -> float:
    return DICE[column] + 0.02 * place - 0.015 * patient


def _scores(dice: float) -> RegionScores:
    return RegionScores(
        dice=dice,
        hd95=9.5,
        lesion_dice=dice - 0.1,
        lesion_hd95=60.0,
        lesions=1,
        missed=0,
        false=1,
    )


@cache
def fidelity(sites: tuple[str, ...]) -> FidelityResult:
    """Two generators, one nearer than the other, and the control."""
    return FidelityResult(
        volumes=72,
        phantoms=True,
        epsilon=EPSILON,
        arms={Arm.PRIVATE: _comparison(sites, 3.0), Arm.REFERENCE: _comparison(sites, 2.0)},
        control=_comparison(sites, 1.0),
    )


def _comparison(sites: tuple[str, ...], far: float) -> Comparison:
    distances = Distances(frechet=2.1 * far, kernel=0.02 * (far - 1) - 0.001)
    return Comparison(
        planes=dict.fromkeys(Plane, distances),
        critic=distances,
        radiomic=20.0 * far,
        precision=0.9 / far,
        recall=0.85 / far,
        density=1.0 / far,
        coverage=0.9 / far,
        likeness=0.6,
        tissues=tuple(
            TissueDistance(contrast=contrast, tissue=tissue, distance=0.01 * far)
            for contrast in CONTRASTS
            for tissue in (Tissue.GREY, Tissue.WHITE)
        ),
        intensity=0.01 * far,
        sites={site: SiteFidelity(kernel=0.01 * far, intensity=0.01 * far) for site in sites},
    )
