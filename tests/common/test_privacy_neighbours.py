"""Two neighbouring data sets, one release each: the exact promises, and faults that break them.

What an experiment (`medsynth-server audit-dp`) finds with luck and many trainings, these find
from one release. All ways to release are held to them: a mean of vectors, a gradient step, and a
step along directions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsynth_common.learning.directions import Directions
from medsynth_common.learning.guided_steps import GuidedOptimizer
from medsynth_common.privacy import mechanism as mechanism_file
from medsynth_common.privacy.mechanism import Gaussian
from medsynth_common.privacy.patients import PatientOptimizer, release_mean
from medsynth_common.privacy.randomness import Randomness, SimulatedRandomness

MECHANISM = Gaussian(name="test", clip=0.7, noise_multiplier=1.3, sampling_rate=0.5, steps=10)
EXPECTED, WIDTH, CROPS = 3.0, 6, 4

#: A patient: its crops' vectors (crop, width); what is clipped is their mean.
Patients = Sequence[Tensor]


class EqualNoise:
    """Noise that is `scale` SDs everywhere."""

    seeded = True

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def uniform(self, n: int) -> NDArray[np.float64]:
        return np.zeros(n)

    def normal(self, shape: Sequence[int], std: float) -> Tensor:
        return torch.full(tuple(shape), self.scale * std, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Means:
    """One release after another by `release_mean`."""

    expected: float = EXPECTED

    def __call__(self, patients: Patients, randomness: Randomness) -> Tensor:
        return release_mean(
            [crops.mean(0) for crops in patients],
            MECHANISM,
            expected_patients=self.expected,
            randomness=randomness,
            shape=(WIDTH,),
        )


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """The same by a step of SGD from zero: the gradient of <weight, vector> is the vector."""

    expected: float = EXPECTED

    def __call__(self, patients: Patients, randomness: Randomness) -> Tensor:
        weight = torch.zeros(WIDTH, dtype=torch.float64, requires_grad=True)
        optimizer = PatientOptimizer(
            torch.optim.SGD([weight], lr=1.0),
            MECHANISM,
            expected_patients=self.expected,
            randomness=randomness,
        )

        def loss(crops: Tensor) -> Tensor:
            return (crops @ weight).mean()

        optimizer.step([partial(loss, crops) for crops in patients])
        return -weight.detach()


class Unbounded(Directions):
    """Steps that tell the release as it is: their bound is made of it afterwards."""

    def step(self, coordinates: Tensor) -> Tensor:
        return self.rates * coordinates * self.reach.sqrt() * self._length


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """The same by a step along directions, here the axes, whose units change nothing."""

    expected: float = EXPECTED

    def __call__(self, patients: Patients, randomness: Randomness) -> Tensor:
        weight = torch.zeros(WIDTH, dtype=torch.float64, requires_grad=True)
        axes, even = torch.eye(WIDTH).double(), torch.full((WIDTH,), WIDTH**-0.5).double()
        optimizer = GuidedOptimizer(
            [weight],
            Unbounded.along(axes, even),
            MECHANISM,
            expected_patients=self.expected,
            randomness=randomness,
            learning_rate=WIDTH**-0.5,
            sites=16,  # enough that noise is not loud
        )

        def loss(crops: Tensor) -> Tensor:
            return (crops @ weight).mean()

        optimizer.step([partial(loss, crops) for crops in patients])
        return -weight.detach()


Release = Means | Gradients | Coordinates
Implementation = Callable[[Release, Patients, Randomness], Tensor]


def ours(release: Release, patients: Patients, randomness: Randomness) -> Tensor:
    return release(patients, randomness)


def clips_each_crop(release: Release, patients: Patients, randomness: Randomness) -> Tensor:
    """Fault: the unit is the crop."""
    return release([crop[None] for crops in patients for crop in crops], randomness)


def divides_by_who_came(release: Release, patients: Patients, randomness: Randomness) -> Tensor:
    """Fault: over the realised number; whoever is left out changes everyone's share."""
    return type(release)(expected=max(len(patients), 1))(patients, randomness)


def noises_each_patient(release: Release, patients: Patients, randomness: Randomness) -> Tensor:
    """Fault: noise once per microbatch; how much there is tells how many there are."""
    parts = [release([crops], randomness) for crops in patients] or [release([], randomness)]
    return torch.stack(parts).sum(0)


def divides_the_noise_twice(release: Release, patients: Patients, randomness: Randomness) -> Tensor:
    """Fault: noise of sigma C over n, as for the mean, on the sum, which is then divided."""
    plain, noisy = release(patients, EqualNoise(0.0)), release(patients, randomness)
    return plain + (noisy - plain) / EXPECTED


class SameNoise(EqualNoise):
    """Noise that is drawn once and given out again and again."""

    def __init__(self, randomness: Randomness) -> None:
        super().__init__(0.0)
        self._drawn = randomness.normal((WIDTH,), 1.0)

    def normal(self, shape: Sequence[int], std: float) -> Tensor:
        assert tuple(shape) == (WIDTH,)
        return self._drawn * std


class RemembersNoise:
    """Fault: the noise of the first step serves all steps."""

    def __init__(self) -> None:
        self._kept: SameNoise | None = None

    def __call__(self, release: Release, patients: Patients, randomness: Randomness) -> Tensor:
        self._kept = self._kept or SameNoise(randomness)
        return release(patients, self._kept)


def some_patients(seed: int) -> Patients:
    """Alike crops of unlike patients, some within the clip and some far beyond it."""
    draw = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 7, (), generator=draw))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    sizes = 10 ** normal(count, 1, 1)
    return list((normal(count, 1, WIDTH) + 0.1 * normal(count, CROPS, WIDTH)) * sizes)


def check_nobody_moves_it_by_more_than_the_clip(
    implementation: Implementation, release: Release
) -> None:
    for seed in range(20):
        patients = some_patients(seed)
        whole = implementation(release, patients, EqualNoise(1.0))
        for one in range(len(patients)):
            others = [*patients[:one], *patients[one + 1 :]]
            moved = whole - implementation(release, others, EqualNoise(1.0))
            # A sum's share is over the *expected* number, whoever came.
            assert float(moved.norm()) <= MECHANISM.clip / EXPECTED * (1 + 1e-9)


def check_the_noise_has_its_size(implementation: Implementation, release: Release) -> None:
    for patients in ([], some_patients(1), some_patients(2)):
        silent, noisy = (implementation(release, patients, EqualNoise(s)) for s in (0.0, 1.0))
        wanted = torch.full((WIDTH,), MECHANISM.noise_std / EXPECTED, dtype=torch.float64)
        torch.testing.assert_close(noisy - silent, wanted, rtol=1e-9, atol=0)


def check_the_noise_is_new_every_time(implementation: Implementation, release: Release) -> None:
    randomness = SimulatedRandomness("new every time")
    releases = [implementation(release, some_patients(3), randomness) for _ in range(4)]
    between = [float((a - b).abs().min()) for a in releases for b in releases if a is not b]
    assert min(between) > 0


Check = Callable[[Implementation, Release], None]
CHECKS: Sequence[Check] = (
    check_nobody_moves_it_by_more_than_the_clip,
    check_the_noise_has_its_size,
    check_the_noise_is_new_every_time,
)
FAULTS: Sequence[tuple[Callable[[], Implementation], Check]] = (
    (lambda: clips_each_crop, check_nobody_moves_it_by_more_than_the_clip),
    (lambda: divides_by_who_came, check_nobody_moves_it_by_more_than_the_clip),
    (lambda: noises_each_patient, check_nobody_moves_it_by_more_than_the_clip),
    (lambda: noises_each_patient, check_the_noise_has_its_size),
    (lambda: divides_the_noise_twice, check_the_noise_has_its_size),
    (RemembersNoise, check_the_noise_is_new_every_time),
)


@pytest.fixture(autouse=True)
def _fine_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look through the grid that releases are rounded to; it has tests of its own."""
    monkeypatch.setattr(mechanism_file, "GRID", 2.0**-46)


@pytest.mark.parametrize("release", [Means(), Gradients(), Coordinates()])
@pytest.mark.parametrize("check", CHECKS)
def test_the_promise_holds(check: Check, release: Release) -> None:
    check(ours, release)


@pytest.mark.parametrize("release", [Means(), Gradients(), Coordinates()])
@pytest.mark.parametrize(("fault", "check"), FAULTS)
def test_a_planted_fault_breaks_it(
    fault: Callable[[], Implementation], check: Check, release: Release
) -> None:
    with pytest.raises(AssertionError):
        check(fault(), release)
