"""Fidelity of an evaluation's volumes: features in workers, then the comparisons."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

from medsynth_common.learning.volumes import Volume
from medsynth_server.fidelity.diversity import likeness
from medsynth_server.fidelity.features import Features, features_of
from medsynth_server.fidelity.measure import Set, compare, halves
from medsynth_server.fidelity.results import FidelityResult
from medsynth_server.progress_bar import counted
from medsynth_server.record import Arm
from medsynth_server.table.work import Work, here

_MOST: Final = 96  # volumes on each side; more cost more and say little more
_LEAST: Final = 5  # below, a manifold of third neighbours is everything
_PAIRS: Final = 40  # whose likeness is measured, of each set

#: A volume by its set and number; None stands for the real patients.
_Place = tuple[Arm | None, int]


def measure_fidelity(
    work: Work, epsilon: dict[Arm, float | None], *, phantoms: bool
) -> FidelityResult | None:
    """Compare each generator's volumes with the sites' patients; None when there are too few."""
    sites = [site.name for site in work.sites for _ in range(site.declared + len(site.held_out))]
    pairs = halves(sites, work.seed)[: min(_MOST, work.synthetic)]
    count = len(pairs)
    if count < _LEAST:
        return None
    wanted: dict[str, list[_Place]] = {
        "real": [(None, one) for one, _ in pairs],
        "control": [(None, other) for _, other in pairs],
        **{arm: [(arm, number) for number in range(count)] for arm in work.models},
    }
    places = list(dict.fromkeys(place for mine in wanted.values() for place in mine))
    likened = {name: _some_pairs(mine, work.seed) for name, mine in wanted.items()}
    with work.pool() as pool:
        looks = pool.map(_look, places, chunksize=4)
        features = dict(
            zip(places, counted(looks, "fidelity", done=0, total=len(places)), strict=True)
        )
        alike = {
            name: float(np.mean(list(pool.map(_liken, some, chunksize=4))))
            for name, some in likened.items()
        }
    painted = {arm: work.painting(arm) for arm in work.models}

    def assembled(name: str) -> Set:
        return Set(
            features=[features[place] for place in wanted[name]],
            sites=[
                sites[number] if arm is None else painted[arm].site(number)
                for arm, number in wanted[name]
            ],
            likeness=alike[name],
        )

    real, control = assembled("real"), assembled("control")
    every = [*real.features, *control.features]
    return FidelityResult(
        volumes=count,
        phantoms=phantoms,
        epsilon=epsilon,
        arms={arm: compare(real, assembled(arm), all_real=every) for arm in work.models},
        control=compare(real, control, all_real=every),
    )


def _some_pairs(places: Sequence[_Place], seed: int) -> list[tuple[_Place, _Place]]:
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(len(places), 2, replace=False) for _ in range(_PAIRS)]
    return [(places[one], places[other]) for one, other in drawn]


def _look(place: _Place) -> Features:
    """Features of one volume, in a worker."""
    work = here().work
    critic = next(iter(work.models.values())).critic(torch.device("cpu")).eval()
    return features_of(_volume(place), critic, work.config.networks.spatial_dims)


def _liken(pair: tuple[_Place, _Place]) -> float:
    return likeness(_volume(pair[0]), _volume(pair[1]))


def _volume(place: _Place) -> Volume:
    arm, number = place
    if arm is not None:
        return here().synthetic[arm][number]
    for site in here().work.sites:
        trained, held_out = here().real[site.name], here().held_out[site.name]
        if number < len(trained):
            return trained[number]
        if number < len(trained) + len(held_out):
            return held_out[number - len(trained)].volume
        number -= len(trained) + len(held_out)
    raise IndexError(number)
