"""Utility of a private federation on patients of another renderer than public training has seen.

    python -m benchmarks.utility small              part of `make bench`
    python -m benchmarks.utility medium             hours; it goes on where it was stopped
    python -m benchmarks.utility hundred            a hundred patients a site, and fewer rows
    python -m benchmarks.utility full               the same rows on 48^3, 60 held out; some hours
    python -m benchmarks.utility small --development   where settings are chosen

Settings are never chosen on the federation whose figures are recorded.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.results import Goal, record
from benchmarks.utility.federation import DELTA
from benchmarks.utility.kept import SOURCES, Kept
from benchmarks.utility.presets import DEVELOPMENT, PRESETS, Preset
from benchmarks.utility.rows import Comparison, Measured
from medsynth_server.model import Model
from medsynth_server.shipped import shipped_model

_WORK: Final = Path("runs/bench/utility")
#: A column's figures are shown as percent, or as they are.
_PERCENT: Final = (
    "tumour",
    "lesion",
    "lesion, ill",
    "spared",
    "tumour, unseen",
    "lesion, unseen",
    "tumour, twins",
)
_COLUMNS: Final = (*_PERCENT, "intensity", "texture", "frechet")
_PRIVATE: Final = "FedAvg, epsilon 8"
_BEFORE_PRIVATE: Final = "before private steps, epsilon 8"
_MOMENTS: Final = "synthetic: moments, epsilon 8"
_SYNTHETIC: Final = "synthetic: + consistency + mean-features, epsilon 8"


def main() -> bool:
    """Measure the small preset; whether every goal is met."""
    return measure(PRESETS["small"], development=False)


def measure(preset: Preset, *, development: bool, only: str = "") -> bool:
    """Measure every row whose name holds `only`, for every seed, and record the table."""
    public = shipped_model()
    found: dict[str, list[Measured]] = {}
    for seed in preset.seeds:
        for name, measured in _rows(preset, seed + DEVELOPMENT * development, public, only):
            print(f"seed {seed}, {name}: {_told(measured)}", flush=True)
            found.setdefault(name, []).append(measured)
    if development or only:
        return True
    return record(
        "utility" if preset.name == "small" else f"utility_{preset.name}",
        title=f"Utility beside privacy, {preset.name}",
        about=_about(preset),
        rows=[{"row": name, **_cells(measured)} for name, measured in found.items()],
        goals=goals(found),
        notes=_notes(preset, found),
        seeds={name: _by_column(measured) for name, measured in found.items()},
        command=f"python -m benchmarks.utility {preset.name}",
    )


def _rows(preset: Preset, seed: int, public: Model, only: str) -> Iterator[tuple[str, Measured]]:
    torch.set_num_threads(2)
    # Figures of one table come from one state of the code.
    kept = Kept(_WORK / f"{preset.name}-{seed}-{SOURCES}")
    comparison = Comparison(preset, seed, preset.patients(seed), public, kept)
    about = kept.about(public, repr(preset))
    for name, make in comparison.rows.items():
        if only in name and (not preset.rows or name in preset.rows):
            yield name, kept.row(name, about, make)


def _cells(measured: Sequence[Measured]) -> dict[str, str | None]:
    cells: dict[str, str | None] = {}
    for column in _COLUMNS:
        values = [one[column] for one in measured if column in one]
        scale, digits = (100, 1) if column in _PERCENT else (1, 3)
        cells[column] = None
        if values:
            cells[column] = f"{scale * np.mean(values):.{digits}f}" + (
                f" ± {scale * _spread(values):.{digits}f}" if len(values) > 1 else ""
            )
    return cells


def _by_column(measured: Sequence[Measured]) -> dict[str, list[float]]:
    everywhere = [key for key in measured[0] if all(key in one for one in measured)]
    return {column: [one[column] for one in measured] for column in everywhere}


def goals(found: Mapping[str, Sequence[Measured]]) -> list[Goal]:
    """What is wanted, as parts of what is reached without privacy or with patients."""

    def part(row: str, of: str, column: str = "tumour") -> float:
        return _mean(found[row], column) / _mean(found[of], column)

    def better(column: str) -> list[float]:
        """By how much each seed's figure is higher after the adversarial stage."""
        pairs = zip(found[_SYNTHETIC], found[_MOMENTS], strict=True)
        return [after[column] - before[column] for after, before in pairs]

    dice, texture = better("tumour"), [-gain for gain in better("texture")]
    return [
        Goal(
            what="tumour Dice of private FedAvg at epsilon 8, part of FedAvg's",
            figure=part(_PRIVATE, "FedAvg"),
            bar=0.98,
            least=True,
        ),
        Goal(
            what="tumour Dice of private FedAvg at epsilon 2, part of FedAvg's",
            figure=part("FedAvg, epsilon 2", "FedAvg"),
            bar=0.96,
            least=True,
        ),
        Goal(
            what="tumour Dice of synthetic-only training at epsilon 8, part of pooled patients'",
            figure=_of_patients(found, _SYNTHETIC, "tumour"),
            bar=0.95,
            least=True,
        ),
        Goal(
            what="lesion Dice of synthetic-only training at epsilon 8, part of pooled patients'",
            figure=_of_patients(found, _SYNTHETIC, "lesion"),
            bar=0.95,
            least=True,
        ),
        Goal(
            what="texture error that the adversarial stage takes away at epsilon 8; "
            "the bar is the SD over seeds",
            figure=float(np.mean(texture)),
            bar=_spread(texture),
            least=True,
        ),
        Goal(
            what="Dice points of synthetic-only training that the adversarial stage adds at "
            "epsilon 8; the bar is the SD over seeds",
            figure=100 * float(np.mean(dice)),
            bar=100 * _spread(dice),
            least=True,
        ),
        Goal(
            what="Dice points that a scanner which no site has costs FedAvg at epsilon 8, "
            "on the same heads",
            figure=100
            * (_mean(found[_PRIVATE], "tumour, twins") - _mean(found[_PRIVATE], "tumour, unseen")),
            bar=3.0,
        ),
    ]


def _of_patients(found: Mapping[str, Sequence[Measured]], row: str, column: str) -> float:
    """Part of what patients themselves lead to, the better of two ways to train on them."""
    ways = ("pooled", "pooled, as on a set")
    return _mean(found[row], column) / max(_mean(found[way], column) for way in ways)


def _mean(measured: Sequence[Measured], column: str) -> float:
    return float(np.mean([one[column] for one in measured]))


def _spread(values: Sequence[float]) -> float:
    """SD over seeds; 0 of one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _told(measured: Measured) -> str:
    return ", ".join(f"{key} {value:.3f}" for key, value in measured.items())


def _about(preset: Preset) -> str:
    return (
        f"{preset.sites} sites of {preset.each} patients on {preset.side}^3 voxels, "
        f"{preset.sites * preset.held_out} held out and {preset.unseen} of a scanner that no site "
        f"has (`unseen`); {len(preset.seeds)} seed(s), mean ± SD. Patients come from a renderer of "
        "their own (`benchmarks/utility/other_renderer.py`). Dice in percent; `lesion` counts "
        "every lesion alike and false ones as 0, as BraTS 2023 does, and a healthy head as 1 or, "
        "with a find, as 0; `lesion, ill` leaves healthy heads out, and `spared` is the part of "
        "these without a find. `twins` are the heads of `unseen` in the sites' scanners. "
        "`intensity` and `texture` are errors of the images, "
        "`frechet` is the distance of slices to held-out patients' in features of a random "
        f"network. Epsilons are a patient's, at delta {DELTA:g}."
    )


def _notes(preset: Preset, found: Mapping[str, Sequence[Measured]]) -> list[str]:
    before, private, free = (
        _mean(found[row], "tumour") for row in (_BEFORE_PRIVATE, _PRIVATE, "FedAvg")
    )
    notes = [
        "'synthetic' rows train on the synthetic set and no patient, from the public weights; "
        "'pooled, as on a set' does the same on the patients of all sites",
        "a 'synthetic' row at an epsilon is part of a whole run at it: 'moments' has spent its "
        "share and no more",
        f"of what training on patients adds to the {100 * before:.1f} points before it, private "
        f"steps at epsilon 8 reach {_share(private - before, free - before)}",
        "lesion by lesion, in patients who have a tumour, synthetic-only training at epsilon 8 "
        f"reaches {_of_patients(found, _SYNTHETIC, 'lesion, ill'):.1%} of pooled patients'",
    ]
    if preset.name == "small":
        notes.append("a small bench with one seed: it shows that things work, not how well")
    return notes


def _share(part: float, of: float) -> str:
    return f"{part / of:.0%}" if of > 0 else "no share: FedAvg added nothing"
