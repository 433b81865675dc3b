"""A step that works piece by piece is to the last bit the one that works on whole tensors.

Noise is made here once more from the cipher's key stream, and a release from whole float64 sums.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor, nn

from medsynth_common.privacy.mechanism import GRID, Gaussian
from medsynth_common.privacy.patients import Loss, PatientOptimizer
from medsynth_common.privacy.randomness import Randomness, SimulatedRandomness

EXPECTED = 3.7
MECHANISM = Gaussian(name="test", clip=0.3, noise_multiplier=1.3, sampling_rate=0.5, steps=1)
#: Below a piece, a whole number of pieces, several and a rest, in another order in memory, one.
SHAPES = ((5,), (4, 65_536), (150_001,), (48, 32, 9, 11), ())


def weights(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    made = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    made[3].data = made[3].data.contiguous(memory_format=torch.channels_last)
    return made


class NormalsByHand:
    """The normals that a simulated stream of `material` gives, block after block."""

    def __init__(self, material: str) -> None:
        canonical = json.dumps(["medsynth simulated randomness", material]).encode()
        key = hashlib.sha256(canonical).digest()
        self.stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def normals(self, count: int) -> Tensor:
        lanes = -(-count // 128) * 128
        blocks = [self.block(min(32_768, lanes - start)) for start in range(0, lanes, 32_768)]
        return torch.cat(blocks)[:count]

    def block(self, count: int) -> Tensor:
        words = np.frombuffer(self.stream.update(bytes(8 * count)), np.int64)
        of_radius, of_angle = torch.from_numpy(words.copy()).view(2, -1)
        radius = ((of_radius & (2**63 - 1)).double() + 0.5) * 2.0**-63
        length = (radius.log() * (-2 * MECHANISM.noise_std * MECHANISM.noise_std)).sqrt()
        angle = of_angle.double() * (2 * math.pi * 2.0**-64)
        return torch.cat([angle.cos() * length, angle.sin() * length])


def loss_with(parameters: Sequence[Tensor], gradient: Sequence[Tensor]) -> Loss:
    """A loss whose gradient is this one, as it is."""
    pairs = list(zip(parameters, gradient, strict=True))
    return lambda: torch.stack([(one * part).sum() for one, part in pairs]).sum()


def released(
    patients: Sequence[Sequence[Tensor]], mechanism: Gaussian, randomness: Randomness
) -> list[Tensor]:
    parameters = weights(patients[0][0].dtype if patients else torch.float32)
    sgd = torch.optim.SGD(parameters, lr=1.0)
    PatientOptimizer(sgd, mechanism, expected_patients=EXPECTED, randomness=randomness).step(
        loss_with(parameters, gradient) for gradient in patients
    )
    return [-one.detach() for one in parameters]


def by_definition(patients: Sequence[Sequence[Tensor]], noise: NormalsByHand) -> list[Tensor]:
    total = torch.zeros(sum(map(math.prod, SHAPES)), dtype=torch.float64)
    for gradient in patients:
        flat = torch.cat([part.double().flatten() for part in gradient])
        total += MECHANISM.clip_factor(float(flat.norm())) * flat
    grid = GRID * MECHANISM.clip
    noised = ((noise.normals(len(total)) + total) / grid).round() * grid
    parts = torch.split(noised.float(), [math.prod(shape) for shape in SHAPES])
    return [part.view(shape) / EXPECTED for part, shape in zip(parts, SHAPES, strict=True)]


def of_signs(seed: int) -> list[Tensor]:
    """A gradient of -1, 0 and 1: its squares add up to the same in any order."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.randint(-1, 2, shape, generator=draw).float() for shape in SHAPES]


@pytest.mark.parametrize("patients", [0, 1, 3])
def test_a_release_of_large_weights_is_its_definition_to_the_last_bit(patients: int) -> None:
    gradients = [of_signs(seed) for seed in range(patients)]
    found = released(gradients, MECHANISM, SimulatedRandomness("bits"))
    wanted = by_definition(gradients, NormalsByHand("bits"))
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def _fresh_memory_is_nan() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)  # fills what `torch.empty` gives
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_fresh_memory_is_nan")
@pytest.mark.parametrize("patients", [0, 1, 2])
def test_nothing_that_lay_in_memory_is_released(patients: int) -> None:
    assert bool(torch.empty(3).isnan().all())
    bad = [torch.full(shape, math.nan) for shape in SHAPES]  # adds nothing, and is no first one
    gradients = [of_signs(seed) for seed in range(patients)]
    found = released([bad, *gradients], MECHANISM, SimulatedRandomness("memory"))
    for one, other in zip(found, by_definition(gradients, NormalsByHand("memory")), strict=True):
        assert torch.equal(one, other)


def test_no_large_gradient_passes_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sum that noise is put on is looked at: one patient's, of numbers of very unlike sizes."""
    seen: list[Tensor] = []

    def spy(_: Gaussian, total: Tensor, _randomness: Randomness) -> Tensor:
        seen.append(total.flatten().clone())
        return total

    monkeypatch.setattr(Gaussian, "noised", spy)
    draw = torch.Generator().manual_seed(1)
    gradient = [torch.randn(shape, generator=draw).exp() ** 3 for shape in SHAPES]
    released([gradient], MECHANISM, SimulatedRandomness())
    exact = math.sqrt(math.fsum((torch.cat(seen) ** 2).tolist()))
    assert exact == pytest.approx(MECHANISM.clip, rel=1e-9)  # far within `CLIP_MARGIN`
