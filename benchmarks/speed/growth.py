"""What more sites cost when the patients stay the same, and whether a thousand can answer."""

import statistics
import tempfile
from pathlib import Path
from typing import Final

from benchmarks import memory, results
from benchmarks.results import Cell, Goal
from benchmarks.speed.local_round import configured, rounds_of
from medsynth_common.privacy.mechanism import Gaussian

#: Few and many sites, of all the same patients.
SITES: Final = (2, 128)
PATIENTS: Final = 128
ROUNDS: Final = 4
_CHANNELS: Final = (16, 32, 64)
_WORKERS: Final = 2
#: Every patient takes part in the one step of a round, so that the work is the same.
_MECHANISM: Final = Gaussian(
    name="segmenter", clip=1.0, noise_multiplier=50.0, sampling_rate=1.0, steps=1
)
#: MiB: what the coordinator's process holds before its sites begin, and how far it then grows.
_BEFORE: Final = "coordinator before MiB"
_PEAK: Final = "coordinator's peak, MiB more"
_MEMORY: Final = (
    "Each row counts the coordinator's peak anew, from what it held when the row began."
)


def _measure(sites: int, patients: int, rounds: int) -> dict[str, Cell]:
    config = configured(sites=sites, rounds=rounds, channels=_CHANNELS, patients=patients // sites)
    before = memory.count_anew()
    with tempfile.TemporaryDirectory(prefix="medsynth-growth-") as name:
        first, *others = rounds_of(config, Path(name), _MECHANISM, workers=_WORKERS)
    return {
        "sites": sites,
        "patients of each": patients // sites,
        "first round s": first,
        "round s": statistics.median(others) if others else None,
        _BEFORE: before / 2**20,
        _PEAK: (memory.peak() - before) / 2**20,
    }


def main() -> bool:
    """Measure few and many sites; whether many cost little more."""
    _measure(SITES[0], PATIENTS, 2)  # what everyone needs is loaded before memory is counted
    rows = [_measure(sites, PATIENTS, ROUNDS) for sites in SITES]
    few, many = (float(row["round s"] or 0) for row in rows)
    return results.record(
        "growth",
        title="More sites, the same patients",
        about=f"Rounds of the local engine on {_WORKERS} trainer processes: every one of "
        f"{PATIENTS} patients takes part in one private step; each site adds noise, a ledger, a "
        f"gate and an answer of its own. {_MEMORY}",
        rows=rows,
        goals=[
            Goal(what=f"a round of {SITES[1]} sites over {SITES[0]}", figure=many / few, bar=1.1)
        ],
    )


def thousand_sites() -> bool:
    """Have a hundred sites of one patient, then a thousand, answer one round."""
    _measure(SITES[0], SITES[0], 1)  # what everyone needs is loaded before memory is counted
    rows = [_measure(sites, sites, 1) for sites in (SITES[1], 1000)]
    few, many = (float(row[_BEFORE] or 0) + float(row[_PEAK] or 0) for row in rows)
    return results.record(
        "thousand_sites",
        title="A thousand sites of one patient",
        about=f"One round of the local engine on {_WORKERS} trainer processes, whose start and "
        "whose patients' preparation are part of it. Every site answers, or there is no result. "
        f"{_MEMORY}",
        rows=[{key: value for key, value in row.items() if key != "round s"} for row in rows],
        goals=[
            Goal(
                what="the peak of the coordinator's whole process (before and more) with 1,000 "
                f"sites over that with {SITES[1]}",
                figure=many / few,
                bar=1.1,
            )
        ],
    )
