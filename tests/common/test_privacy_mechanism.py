import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from medsynth_common.privacy.mechanism import (
    CLIP_MARGIN,
    GRID,
    MAX_STEPS,
    Gaussian,
    Mechanism,
    Release,
    Unprotected,
)
from medsynth_common.privacy.randomness import SimulatedRandomness

GOOD: dict[str, Any] = {
    "name": "critic",
    "clip": 0.5,
    "noise_multiplier": 2.0,
    "sampling_rate": 0.25,
    "steps": 100,
}
FIELD = "clip"
MECHANISM: TypeAdapter[Gaussian | Unprotected] = TypeAdapter(Mechanism)

positive = st.floats(min_value=1e-6, max_value=1e6)
rates = st.floats(min_value=0, max_value=1, exclude_min=True)
gaussians = st.builds(
    Gaussian,
    name=st.text(min_size=1, max_size=20),
    clip=positive,
    noise_multiplier=positive,
    sampling_rate=rates,
    steps=st.integers(1, MAX_STEPS),
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("clip", value) for value in (0.0, -1.0, math.nan, math.inf, "1")),
        *(("noise_multiplier", value) for value in (0.0, -1.0, math.nan, math.inf, None)),
        *(("sampling_rate", value) for value in (0.0, 1.0000001, -0.1, math.nan)),
        *(("steps", value) for value in (0, -1, 1.5, MAX_STEPS + 1, 10**30)),
        ("name", ""),
        ("kind", "laplace"),
        ("seed", 1),
    ],
)
def test_a_value_that_is_wrong_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        Gaussian(**{**GOOD, field: value})


def test_a_mechanism_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Gaussian(**GOOD), FIELD, 1.0)


@given(gaussians)
def test_a_mechanism_survives_json(mechanism: Gaussian) -> None:
    assert MECHANISM.validate_json(mechanism.model_dump_json()) == mechanism


def test_no_privacy_survives_json_and_says_so() -> None:
    off = Unprotected(name="critic", sampling_rate=0.25, steps=100)
    assert MECHANISM.validate_json(off.model_dump_json()) == off
    assert not off.protected
    assert Gaussian(**GOOD).protected
    assert (off.clip, off.noise_multiplier, off.noise_std) == (math.inf, 0.0, 0.0)
    assert off.releases == (Release(noise_multiplier=0.0, sampling_rate=0.25, steps=100),)
    total = torch.tensor([0.1, -7e9], dtype=torch.float64)
    assert torch.equal(off.noised(total, SimulatedRandomness()), total)
    assert (off.clip_factor(0.0), off.clip_factor(1e30), off.clip_factor(math.nan)) == (1, 1, 0)


def test_a_gaussian_is_charged_for_what_it_is() -> None:
    assert Gaussian(**GOOD).releases == (
        Release(noise_multiplier=2.0, sampling_rate=0.25, steps=100),
    )


@given(clip=positive, norm=st.floats(min_value=0, allow_infinity=False))
def test_no_norm_passes_the_clip(clip: float, norm: float) -> None:
    factor = Gaussian(**{**GOOD, "clip": clip}).clip_factor(norm)
    assert 0 <= factor <= 1
    assert factor * norm <= clip * (1 + 1e-14)
    assert norm > clip or factor == 1


@pytest.mark.parametrize("norm", [math.nan, math.inf, -math.inf])
def test_a_norm_that_is_not_finite_is_dropped(norm: float) -> None:
    assert Gaussian(**GOOD).clip_factor(norm) == 0


def test_noise_has_its_size_and_lies_on_the_grid() -> None:
    mechanism = Gaussian(**GOOD)
    total = torch.full((200_000,), math.pi, dtype=torch.float64)
    noised = mechanism.noised(total, SimulatedRandomness("noise"))
    cells = noised / (GRID * mechanism.clip)
    assert torch.equal(cells, cells.round())
    assert abs(float(noised.mean()) - math.pi) < 5 / 200_000**0.5
    assert mechanism.noise_std == pytest.approx(1.0 * (1 + CLIP_MARGIN), rel=1e-12)
    assert abs(float(noised.std()) - 1) < 5 / (2 * 200_000) ** 0.5
