"""Sequences and scanners: the signal equations, tissue order, and what is refused."""

from typing import Any

import numpy as np
import pytest

from medsynth_common.errors import BadInput
from medsynth_common.labels import Tissue
from medsynth_common.phantom import SITE_SCANNERS, Scanner, random_scanner
from medsynth_common.phantom.signal import GradientEcho, InversionRecovery, SpinEcho
from medsynth_common.phantom.tissue import GADOLINIUM, literature, patient

WHITE, GREY, CSF = Tissue.WHITE, Tissue.GREY, Tissue.CSF


def test_signal_equations_at_known_points() -> None:
    tissue = literature(1.5)
    # After one T1 of recovery and one T2 of decay: (1 - 1/e) / e of the proton density.
    spin = SpinEcho(tr=tissue.t1[WHITE], te=tissue.t2[WHITE]).signal(tissue)
    assert spin[WHITE] == pytest.approx(tissue.pd[WHITE] * (1 - np.exp(-1)) * np.exp(-1))
    # At 90 degrees a spoiled gradient echo recovers like a spin echo.
    flip = GradientEcho(tr=500, te=1e-6, flip=90).signal(tissue)
    np.testing.assert_allclose(flip, SpinEcho(tr=500, te=1e-6).signal(tissue), rtol=1e-6)
    # The signal peaks at Ernst's angle.
    ernst = float(np.rad2deg(np.arccos(np.exp(-20 / tissue.t1[WHITE]))))
    around = [
        GradientEcho(tr=20, te=3, flip=a).signal(tissue)[WHITE]
        for a in (ernst - 3, ernst, ernst + 3)
    ]
    assert around[1] == max(around)
    # Inversion recovery is silent at its null, T1 ln 2 for a long TR.
    null = InversionRecovery(tr=1e6, te=10, ti=tissue.t1[CSF] * np.log(2)).signal(tissue)
    assert null[CSF] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("field", [1.5, 3.0])
def test_gadolinium_shortens_t1_by_its_relaxivity(field: float) -> None:
    plain = literature(field)
    agent = np.zeros(len(Tissue))
    agent[Tissue.ENHANCING] = 0.5
    enhanced = plain.with_gadolinium(agent, field=field)
    gained = 1000 / enhanced.t1[Tissue.ENHANCING] - 1000 / plain.t1[Tissue.ENHANCING]
    assert gained == pytest.approx(0.5 * GADOLINIUM[field][0])
    assert enhanced.t1[WHITE] == pytest.approx(plain.t1[WHITE])


def test_randomise_widens_the_spread_of_tissue_values() -> None:
    spreads = []
    for randomise in (0.0, 0.3, 1.0):
        rng = np.random.default_rng(1)
        draws = [patient(3.0, rng, randomise=randomise).t1[WHITE] for _ in range(200)]
        spreads.append(np.std(draws) / np.mean(draws))
    assert 0.02 < spreads[0] < 0.05
    assert spreads[0] < spreads[1] < spreads[2]


@pytest.mark.parametrize("scanner", SITE_SCANNERS, ids=lambda scanner: scanner.name)
def test_every_site_weights_its_contrasts_as_their_names_say(scanner: Scanner) -> None:
    tissue = literature(scanner.field)
    oedema, core, rim = Tissue.OEDEMA, Tissue.CORE, Tissue.ENHANCING
    t1 = scanner.t1.signal(tissue)
    assert t1[WHITE] > 1.1 * t1[GREY]
    assert t1[GREY] > t1[oedema] > t1[core] > t1[CSF]
    t2 = scanner.t2.signal(tissue)
    assert t2[CSF] > max(t2[core], t2[oedema])
    assert min(t2[core], t2[oedema]) > 1.2 * t2[GREY]
    assert t2[GREY] > 1.1 * t2[WHITE]
    flair = scanner.flair.signal(tissue)
    assert flair[oedema] > 1.2 * flair[GREY]
    assert flair[GREY] > flair[WHITE] > 5 * flair[CSF]
    agent = np.zeros(len(Tissue))
    agent[rim] = 0.55
    t1gd = scanner.t1gd.signal(tissue.with_gadolinium(agent, field=scanner.field))
    assert t1gd[rim] > 1.15 * t1gd[WHITE]
    assert t1gd[core] < t1gd[WHITE]


def test_sites_are_many_and_each_is_its_own() -> None:
    assert len(SITE_SCANNERS) >= 6
    assert len({scanner.name for scanner in SITE_SCANNERS}) == len(SITE_SCANNERS)
    assert {scanner.field for scanner in SITE_SCANNERS} == {1.5, 3.0}


@pytest.mark.parametrize("scanner", SITE_SCANNERS, ids=lambda scanner: scanner.name)
def test_a_scanner_survives_json(scanner: Scanner) -> None:
    assert Scanner.model_validate_json(scanner.model_dump_json()) == scanner


def test_random_scanners_are_valid_and_wider_than_the_sites() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_scanner(rng) for _ in range(100)]
    for value in ("noise", "bias", "texture"):
        sites = [getattr(scanner, value) for scanner in SITE_SCANNERS]
        values = [getattr(scanner, value) for scanner in drawn]
        assert min(values) < min(sites)
        assert max(values) > max(sites)
    assert random_scanner(np.random.default_rng(4)) == random_scanner(np.random.default_rng(4))


def test_random_scanners_never_turn_t1_or_t2_around() -> None:
    rng = np.random.default_rng(2)
    for scanner in (random_scanner(rng) for _ in range(200)):
        tissue = literature(scanner.field)
        for t1 in (scanner.t1.signal(tissue), scanner.t1gd.signal(tissue)):
            assert t1[WHITE] > t1[GREY] > t1[CSF]
        t2 = scanner.t2.signal(tissue)
        assert t2[CSF] > t2[GREY] > t2[WHITE]


@pytest.mark.parametrize(
    ("make", "values", "names"),
    [
        (SpinEcho, {"tr": 0, "te": 10}, ["tr"]),
        (SpinEcho, {"tr": -5, "te": -1}, ["tr", "te"]),
        (SpinEcho, {"tr": 50, "te": 60}, ["te"]),
        (GradientEcho, {"tr": 20, "te": 3, "flip": 0}, ["flip"]),
        (InversionRecovery, {"tr": 9000, "te": 100, "ti": 9000}, ["ti"]),
    ],
)
def test_impossible_sequences_are_refused_by_name(
    make: type[SpinEcho], values: dict[str, Any], names: list[str]
) -> None:
    with pytest.raises(BadInput) as caught:
        make(**values)
    assert [problem.name for problem in caught.value.problems] == names


def test_every_impossible_value_of_a_scanner_is_told() -> None:
    values = SITE_SCANNERS[0].model_dump()
    values |= {"field": 7.0, "noise": -1.0, "resolution": (1, 1, 99), "grain": 0.0}
    with pytest.raises(BadInput) as caught:
        Scanner.model_validate(values)
    assert [p.name for p in caught.value.problems] == ["field", "noise", "resolution", "grain"]
