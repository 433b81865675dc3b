"""Bytes that a site sends in a round, and what rounding them does to the Dice.

The public segmenter is trained on by private rounds at four sites, once for each number of bits,
from the same start with the same patients, crops and noise.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Final, get_args

import torch
from torch import Tensor

from benchmarks import results
from benchmarks.results import Cell, Goal
from medsynth_client.order import Order
from medsynth_client.stages import WORK
from medsynth_common.labels import Region, segmenter_target
from medsynth_common.learning.dice import region_dice
from medsynth_common.learning.segmenting import segment
from medsynth_common.learning.volumes import Volume
from medsynth_common.networks import build_segmenter
from medsynth_common.phantom import SITE_SCANNERS, make_phantom
from medsynth_common.plan import Bits, PlanHeader, RoundPlan, SegmentSettings, Stage
from medsynth_common.privacy.mechanism import Gaussian
from medsynth_common.privacy.randomness import SimulatedRandomness
from medsynth_common.tensors import pack, under, with_prefix
from medsynth_common.wire.forms import answered_weights
from medsynth_common.wire.rounding import restored, rounded
from medsynth_server.config import Segment
from medsynth_server.public_directions import find_directions
from medsynth_server.shipped import shipped_model
from medsynth_server.synthesis import Painter, crop_batches

SEEDS: Final = (1, 2, 3)
SITES: Final = 4
PATIENTS: Final = 10
HELD_OUT: Final = 3
ROUNDS: Final = 5
_CPU: Final = torch.device("cpu")
_PUBLIC: Final = shipped_model()
_GRID: Final = (32, 32, 32)
_CROP: Final = (24, 24, 24)
#: As in stage segment: volumes that are painted, and gradients from each.
_MAPS, _CUTS = 48, 4
_DIRECTIONS: Final = Segment().directions
#: Noise on a mean coordinate of 0.04 clips: as much as hospitals of a hundred have at epsilon 8.
_MECHANISM: Final = Gaussian(
    name="segmenter", clip=1.0, noise_multiplier=0.12, sampling_rate=0.3, steps=4
)


def _phantoms(site: int, first: int, count: int) -> list[Volume]:
    scanner = SITE_SCANNERS[site % len(SITE_SCANNERS)]
    made = [make_phantom(first + k, _GRID, scanner, tumours=1) for k in range(count)]
    return [
        Volume(image=torch.from_numpy(one.image), labels=torch.from_numpy(one.labels))
        for one in made
    ]


def _start(seed: int) -> dict[str, Tensor]:
    """The public weights, and directions from there: of volumes painted as for no scanner."""
    painter = Painter(_PUBLIC, ["nobody"], grid=_GRID, device=_CPU)
    painted = painter.batches(seed=seed, batch=1, fresh=_MAPS)
    crops = crop_batches(
        (batch for batch in painted for _ in range(_CUTS)), crop=_CROP, seed=seed, device=_CPU
    )
    found = find_directions(
        _PUBLIC.segmenter(_CPU), crops, count=_DIRECTIONS, spatial_dims=len(_GRID)
    )
    return _PUBLIC.part("segmenter") | with_prefix("directions", found.tensors())


def _train(
    start: Mapping[str, Tensor], sites: Sequence[Sequence[Volume]], bits: Bits, seed: int
) -> tuple[dict[str, Tensor], float]:
    """Give the final weights, and the bytes of one site's answer."""
    weights, sent = with_prefix("segmenter", under("segmenter", start)), 0
    directions = with_prefix("directions", under("directions", start))
    states: list[Mapping[str, Tensor]] = [{} for _ in sites]
    for number in range(1, ROUNDS + 1):
        answers = []
        for index, patients in enumerate(sites):
            plan = RoundPlan(header=_header(number, index, bits), weights=weights | directions)
            outcome = WORK[Stage.SEGMENT](
                Order(
                    plan=plan.header,
                    weights=plan.weights,
                    patients=patients,
                    declared=len(patients),
                    state=states[index],
                    randomness=SimulatedRandomness("update bytes", seed, index, number),
                    device=_CPU,
                )
            )
            states[index] = outcome.state
            begun = answered_weights(plan)
            coded = rounded(outcome.weights, begun, bits)
            sent += len(pack(coded))
            answers.append(restored(coded, begun, bits))
        weights = {name: torch.stack([one[name] for one in answers]).mean(0) for name in weights}
    return weights, sent / ROUNDS / len(sites)


def _header(number: int, site: int, bits: Bits) -> PlanHeader:
    return PlanHeader(
        run="benchmark",
        stage=Stage.SEGMENT,
        round=number,
        site=f"site-{site}",
        grid=_GRID,
        crop=_CROP,
        networks=_PUBLIC.networks,
        settings=SegmentSettings(crops=2, directions=_DIRECTIONS, sites=SITES),
        mechanisms=(_MECHANISM,),
        public_seed=1,
        update_bits=bits,
    )


def _dice(weights: Mapping[str, Tensor], patients: Sequence[Volume]) -> float:
    """Mean Dice of the whole tumour."""
    segmenter = build_segmenter(_PUBLIC.networks)
    segmenter.load_state_dict(under("segmenter", weights))
    segmenter.eval()
    found = [
        region_dice(
            segment(segmenter, one.image, crop=_CROP, spatial_dims=3), segmenter_target(one.labels)
        )[Region.WHOLE]
        for one in patients
    ]
    return statistics.mean(dice for dice in found if dice is not None)


def main() -> bool:
    """Train with each number of bits; whether fewer cost no Dice beyond what that differs by."""
    torch.set_num_threads(1)
    dice: dict[Bits, list[float]] = {bits: [] for bits in get_args(Bits)}
    bytes_up: dict[Bits, float] = {}
    before = []
    for seed in SEEDS:
        start = _start(seed)
        sites = [_phantoms(site, 1000 * seed + 100 * site, PATIENTS) for site in range(SITES)]
        held_out = [
            one
            for site in range(SITES)
            for one in _phantoms(site, 1000 * seed + 100 * site + 50, HELD_OUT)
        ]
        before.append(_dice(start, held_out))
        for bits, scores in dice.items():
            weights, bytes_up[bits] = _train(start, sites, bits, seed)
            scores.append(_dice(weights, held_out))
    rows: list[dict[str, Cell]] = [_row("public weights", None, None, before)]
    for bits in sorted(dice, reverse=True):
        share = bytes_up[bits] / bytes_up[32]
        rows.append(_row(f"{bits} bits a weight", bytes_up[bits] / 1000, share, dice[bits]))
    losses = [whole - coded for whole, coded in zip(dice[32], dice[4], strict=True)]
    return results.record(
        "update_bytes",
        title="Bytes that a site sends in a round, and the Dice they cost",
        about=f"Private rounds of the segmenter at {SITES} sites of {PATIENTS} phantoms, "
        f"{ROUNDS} rounds of {_MECHANISM.steps} steps along {_DIRECTIONS} directions, noise "
        f"multiplier {_MECHANISM.noise_multiplier:g}; whole-tumour Dice of {SITES * HELD_OUT} "
        f"held-out patients, mean and SD over {len(SEEDS)} seeds. The noise is the same for all.",
        rows=rows,
        goals=[
            Goal(
                what="bytes of an answer at 4 bits, over those at 32",
                figure=bytes_up[4] / bytes_up[32],
                bar=0.25,
            ),
            Goal(
                what="Dice lost at 4 bits; the bar is the loss' SD over seeds",
                figure=statistics.mean(losses),
                bar=statistics.stdev(losses),
            ),
        ],
    )


def _row(
    name: str, kilobytes: float | None, share: float | None, dice: list[float]
) -> dict[str, Cell]:
    return {
        "answer": name,
        "kB": kilobytes,
        "over 32 bits": share,
        "Dice": statistics.mean(dice),
        "SD": statistics.stdev(dice),
    }
