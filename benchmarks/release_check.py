"""How often does the release check fail a clean set, and how often does it miss a planted copy?

Every draw is a fresh federation of phantoms on a small grid: training and held-out patients of two
hospitals and a synthetic set of other phantoms of the same scanners. Then one volume of the set is
replaced by a spoilt copy of a training patient. `python -m benchmarks.release_check --draws 20`.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.table import Table

from medsynth_common.durable import write_json
from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom import SITE_SCANNERS, make_phantom
from medsynth_common.release_check import Verdict, check_release

GRID: Final = (24, 24, 24)
SYNTHETIC: Final = 12
#: Training and held-out patients.
SIZES: Final = ((3, 0), (12, 4), (36, 12), (90, 30))


def _noisy(volume: Volume, sd: float) -> Volume:
    noise = torch.randn(volume.image.shape, generator=torch.Generator().manual_seed(1))
    return Volume(image=(volume.image + sd * noise) * (volume.labels > 0), labels=volume.labels)


COPIES: Final[Mapping[str, Callable[[Volume, Volume], Volume]]] = {
    "noise 0.05": lambda one, _: _noisy(one, 0.05),
    "noise 0.2": lambda one, _: _noisy(one, 0.2),
    "mirrored": lambda one, _: Volume(image=one.image.flip(1), labels=one.labels.flip(0)),
    "70/30 blend": lambda one, other: Volume(
        image=0.7 * one.image + 0.3 * other.image, labels=one.labels
    ),
    "50/50 blend": lambda one, other: Volume(
        image=0.5 * one.image + 0.5 * other.image, labels=one.labels
    ),
}


def _phantoms(count: int, seed: int) -> Iterator[Volume]:
    for index in range(count):
        scanner = SITE_SCANNERS[index % 2]
        phantom = make_phantom(seed + index, GRID, scanner)
        yield Volume(image=torch.from_numpy(phantom.image), labels=torch.from_numpy(phantom.labels))


def main(draws: int = 20, *, out: Path = Path("runs/bench/release_check.json")) -> bool:
    """Measure false alarms and misses, print a table; whether no clean set failed."""
    table = Table(title=f"{draws} sets of {SYNTHETIC}: clean ones that failed, copies found")
    table.add_column("patients")
    for heading in ("clean, failed", *COPIES):
        table.add_column(heading, justify="right")
    rows: list[dict[str, object]] = []
    alarms = 0
    for training, held_out in SIZES:
        failed: Counter[str] = Counter()
        found: Counter[str] = Counter()
        for draw in range(draws):
            first = 1_000_000 * (draw + 1)
            people = list(_phantoms(training, first))
            others = list(_phantoms(held_out, first + 10_000))
            made = {str(i): v for i, v in enumerate(_phantoms(SYNTHETIC, first + 20_000))}
            clean = check_release(made, training=people, held_out=others, seed=draw)
            failed.update(reason for reason in clean.reasons if clean.verdict is Verdict.FAILED)
            failed["sets"] += clean.verdict is Verdict.FAILED
            spoilt = {**made, **{name: c(people[0], people[2]) for name, c in COPIES.items()}}
            known = check_release(spoilt, training=people, held_out=[], seed=draw)
            found.update(name for name in known.nearness[0].copies if name in COPIES)
        alarms += failed["sets"]
        rows.append({"training": training, "held_out": held_out, "false": failed, "found": found})
        table.add_row(
            f"{training} + {held_out}",
            f"{failed['sets']}/{draws}",
            *(f"{found[name]}/{draws}" for name in COPIES),
        )
    write_json(out, {"draws": draws, "grid": GRID, "synthetic": SYNTHETIC, "rows": rows})
    Console().print(table)
    return alarms == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.release_check", description=__doc__)
    parser.add_argument("--draws", type=int, default=20, help="of each size")
    raise SystemExit(not main(parser.parse_args().draws))
