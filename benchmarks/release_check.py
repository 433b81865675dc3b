"""How often does the release check fail a clean set, and how often does it miss a planted copy?

Every draw is a fresh federation of phantoms on a small grid: training and held-out patients of two
hospitals and a synthetic set of other phantoms of the same scanners. Then one volume of the set is
replaced by a spoilt copy of a training patient. At the size of the demo, where the attacks alone
can fail a clean set, people are dealt from one large pool. `python -m benchmarks.release_check`.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from medsynth_common.durable import write_json
from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom import SITE_SCANNERS, make_phantom
from medsynth_common.release_check import Verdict, check_release
from medsynth_common.release_check.membership import attack_membership
from medsynth_common.release_check.reference import public_reference
from medsynth_common.release_check.signature import Cohort, describe

GRID: Final = (24, 24, 24)
SYNTHETIC: Final = 12
#: Training and held-out patients.
SIZES: Final = ((3, 0), (12, 4), (36, 12), (90, 30))


def _noisy(volume: Volume, sd: float) -> Volume:
    noise = torch.randn(volume.image.shape, generator=torch.Generator().manual_seed(1))
    return Volume(image=(volume.image + sd * noise) * (volume.labels > 0), labels=volume.labels)


#: The demo's: sites, and of each its training patients, held-out patients and synthetic volumes.
DEMO: Final = (3, (60, 6, 12))
_POOL: Final = 2400
_REFERENCES: Final = 8

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


def _phantoms(count: int, seed: int, *, sites: int = 2) -> Iterator[Volume]:
    for index in range(count):
        scanner = SITE_SCANNERS[index % sites]
        phantom = make_phantom(seed + index, GRID, scanner)
        yield Volume(image=torch.from_numpy(phantom.image), labels=torch.from_numpy(phantom.labels))


def false_alarms(deals: int) -> int:
    """Count deals of the demo's size in which an attack fails a set that knows nobody."""
    sites, sizes = DEMO
    pool = describe(_phantoms(_POOL, 77_000_000, sites=sites))
    references = [describe(public_reference(GRID, seed=seed)) for seed in range(_REFERENCES)]
    ends = np.cumsum(sizes)
    alarms = 0
    for deal in range(deals):
        draw = np.random.default_rng(deal)
        dealt = [
            draw.permutation(np.arange(site, _POOL, sites))[: ends[-1]] for site in range(sites)
        ]
        training, held_out, made = (
            _of(pool, np.concatenate(group))
            for group in zip(*(np.split(one, ends[:-1]) for one in dealt), strict=True)
        )
        reference = references[deal % _REFERENCES]
        found = attack_membership(made, training, held_out, reference, seed=deal)
        alarms += any(one.verdict is Verdict.FAILED for one in found)
    return alarms


def _of(cohort: Cohort, people: NDArray[np.int64]) -> Cohort:
    return Cohort(
        image=cohort.image[people], anatomy=cohort.anatomy[people], tumour=cohort.tumour[people]
    )


def main(
    draws: int = 20, deals: int = 600, *, out: Path = Path("runs/bench/release_check.json")
) -> bool:
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
    dealt = {"deals": deals, "failed": false_alarms(deals)}
    facts = {"draws": draws, "grid": GRID, "synthetic": SYNTHETIC, "rows": rows, "demo": dealt}
    write_json(out, facts)
    Console().print(table)
    Console().print(f"at the demo's size an attack failed {dealt['failed']} of {deals} clean sets")
    return alarms == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.release_check", description=__doc__)
    parser.add_argument("--draws", type=int, default=20, help="of each size")
    parser.add_argument("--deals", type=int, default=600, help="of the demo's size")
    asked = parser.parse_args()
    raise SystemExit(not main(asked.draws, asked.deals))
