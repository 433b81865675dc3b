"""A private step is exactly its definition: for networks, for planted faults, at the edges.

The definition is written here once more, plainly: autograd per patient, clip, sum, noise, over
the expected number. A check takes an implementation; ours passes, and each wrong one fails.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from monai.networks.nets import PatchDiscriminator, SegResNet, UNet
from numpy.typing import NDArray
from torch import Tensor, nn

from medsynth_common.errors import BadInput, MedsynthError
from medsynth_common.privacy import mechanism as mechanism_file
from medsynth_common.privacy.mechanism import Gaussian, Unprotected
from medsynth_common.privacy.patients import (
    PatientOptimizer,
    poisson_sample,
    release_mean,
    require_private_ready,
)
from medsynth_common.privacy.precision import in_precision
from medsynth_common.privacy.randomness import Randomness, SimulatedRandomness

PATIENTS, CROPS, EXPECTED = 5, 3, 2.5


class EqualNoise:
    """Noise that is `scale` SDs everywhere, so that a release can be foretold exactly."""

    seeded = True

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def uniform(self, n: int) -> NDArray[np.float64]:
        return np.zeros(n)

    def normal(self, shape: Sequence[int], std: float) -> Tensor:
        return torch.full(tuple(shape), self.scale * std, dtype=torch.float64)


SILENT = EqualNoise(0.0)


class Recorder(torch.optim.SGD):
    """An optimizer that keeps the gradient it was given, and the parameters as they are."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(parameters, lr=0.0)
        self.given: list[Tensor] = []

    def step(self, closure: object = None) -> None:  # type: ignore[override]  # no closure here
        parameters = [one for group in self.param_groups for one in group["params"]]
        self.given.append(torch.cat([one.grad.double().flatten() for one in parameters]))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network, its loss on some crops, and the crops (crop, channel, *grid) of patients."""

    network: nn.Module
    loss: Callable[[Tensor], Tensor]
    patients: Sequence[Tensor]
    clip: float
    expected: float = EXPECTED

    def without(self, patient: int) -> "Case":
        others = [*self.patients[:patient], *self.patients[patient + 1 :]]
        return replace(self, patients=others)


Implementation = Callable[[Case, Randomness], Tensor]


def mechanism_of(clip: float) -> Gaussian:
    return Gaussian(name="test", clip=clip, noise_multiplier=1.0, sampling_rate=0.5, steps=10)


def released(case: Case, units: Iterable[Tensor], randomness: Randomness) -> Tensor:
    recorder = Recorder(case.network.parameters())
    private = PatientOptimizer(
        recorder, mechanism_of(case.clip), expected_patients=case.expected, randomness=randomness
    )
    private.step(partial(case.loss, crops) for crops in units)
    (given,) = recorder.given
    return given


def ours(case: Case, randomness: Randomness) -> Tensor:
    return released(case, case.patients, randomness)


def clips_each_crop(case: Case, randomness: Randomness) -> Tensor:
    """Fault: the unit is the crop; a patient weighs up to K times the clip."""
    return released(case, (crop[None] for crops in case.patients for crop in crops), randomness)


def noises_each_microbatch(case: Case, randomness: Randomness) -> Tensor:
    """Fault: every microbatch gets noise of its own."""
    parts = [released(case, [crops], randomness) for crops in case.patients]
    return torch.stack(parts).sum(0)


def divides_by_the_realised_count(case: Case, randomness: Randomness) -> Tensor:
    """Fault: the mean is over who came; the divisor tells how many that were."""
    return released(replace(case, expected=len(case.patients)), case.patients, randomness)


def gradient_of(case: Case, crops: Tensor) -> Tensor:
    parameters = list(case.network.parameters())
    found = torch.autograd.grad(case.loss(crops), parameters, allow_unused=True)
    parts = zip(found, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in parts])


def definition(case: Case, scale: float) -> Tensor:
    total = torch.zeros(sum(one.numel() for one in case.network.parameters())).double()
    for crops in case.patients:
        gradient = gradient_of(case, crops).double()
        total += gradient * min(1.0, case.clip / float(gradient.norm()))
    noise = scale * mechanism_of(case.clip).noise_std
    return (total + noise) / case.expected


def check_it_is_its_definition(
    implementation: Implementation, case: Case, tolerance: float = 1e-6
) -> None:
    wanted = definition(case, 1e-3)
    found = implementation(case, EqualNoise(1e-3))
    assert float((found - wanted).norm()) <= tolerance * float(wanted.norm())


def check_no_patient_moves_it_by_more_than_the_clip(
    implementation: Implementation, case: Case, tolerance: float = 1e-6
) -> None:
    whole = implementation(case, EqualNoise(1e-3))
    for patient in range(len(case.patients)):
        moved = (whole - implementation(case.without(patient), EqualNoise(1e-3))).norm()
        assert float(moved) * case.expected <= case.clip * (1 + tolerance)


CHECKS = (check_it_is_its_definition, check_no_patient_moves_it_by_more_than_the_clip)
NORM = ("INSTANCE", {"affine": True})


def critic(dimensions: int) -> nn.Module:
    network: nn.Module = PatchDiscriminator(
        dimensions, channels=4, in_channels=3, num_layers_d=2, norm=NORM
    )
    return network


def unet(dimensions: int) -> nn.Module:
    network: nn.Module = UNet(dimensions, 3, 4, (4, 8), (2,), num_res_units=1)
    return network


def segresnet(dimensions: int) -> nn.Module:
    network: nn.Module = SegResNet(
        dimensions, 8, 3, 4, blocks_down=(1, 1), blocks_up=(1,), num_groups=4
    )
    return network


def make_case(
    make: Callable[[int], nn.Module], dimensions: int, dtype: torch.dtype = torch.float64
) -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(dimensions)
        network = make(dimensions).to(dtype).train()
        grid = (16,) * 2 if dimensions == 2 else (12,) * 3
        crops = torch.randn(PATIENTS, CROPS, 3, *grid, dtype=dtype)
        fakes = torch.randn(1, 3, *grid, dtype=dtype)
        # Alike crops of unlike patients: slice by slice their gradients add up.
        base = torch.randn(PATIENTS, 1, 3, *grid, dtype=dtype)
        size = torch.tensor([0.1, 0.3, 1.0, 3.0, 30.0], dtype=dtype).view(
            -1, 1, 1, *(1,) * dimensions
        )

    def critic_loss(real: Tensor) -> Tensor:
        # Real and fake crops make one loss and so one gradient, clipped as one.
        return torch.relu(1 - network(real)[-1]).mean() + torch.relu(1 + network(fakes)[-1]).mean()

    def segmenter_loss(real: Tensor) -> Tensor:
        wanted = (real[:, 0] > 0).long()
        return nn.functional.cross_entropy(network(real) * 3, wanted)

    loss = critic_loss if make is critic else segmenter_loss
    patients = list((base + 0.2 * crops) * size)
    unclipped = Case(network=network, loss=loss, patients=patients, clip=1.0)
    norms = [float(gradient_of(unclipped, one).norm()) for one in patients]
    return Case(network=network, loss=loss, patients=patients, clip=float(np.median(norms)))


@pytest.fixture(autouse=True)
def _fine_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look through the grid that releases are rounded to; it has tests of its own."""
    monkeypatch.setattr(mechanism_file, "GRID", 2.0**-46)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("make", [critic, unet, segresnet])
@pytest.mark.parametrize("check", CHECKS)
def test_a_step_is_exactly_what_was_promised(
    check: Callable[..., None], make: Callable[[int], nn.Module], dimensions: int
) -> None:
    check(ours, make_case(make, dimensions))
    check(ours, make_case(make, dimensions, torch.float32), 1e-5)


def test_weights_may_lie_in_memory_in_any_order() -> None:
    case = make_case(critic, 2)
    for weight in case.network.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    check_it_is_its_definition(ours, case)


def in_bfloat16(case: Case, randomness: Randomness) -> Tensor:
    recorder = Recorder(case.network.parameters())
    PatientOptimizer(
        recorder,
        mechanism_of(case.clip),
        expected_patients=case.expected,
        randomness=randomness,
        bfloat16=True,
    ).step(partial(case.loss, crops) for crops in case.patients)
    (given,) = recorder.given
    return given


@pytest.mark.parametrize("make", [critic, segresnet])
def test_of_gradients_in_bfloat16_exactly_the_clip_is_released(
    make: Callable[[int], nn.Module],
) -> None:
    case = make_case(make, 2, torch.float32)

    def cast(crops: Tensor) -> Tensor:
        with in_precision(torch.device("cpu"), bfloat16=True):
            return case.loss(crops)

    check_it_is_its_definition(in_bfloat16, case, 0.1)  # near the gradients in float32,
    with pytest.raises(AssertionError):
        check_it_is_its_definition(in_bfloat16, case, 1e-4)  # yet other ones;
    same = replace(case, loss=cast)  # exactly those that bfloat16 gives, clipped and noised
    check_it_is_its_definition(lambda _, noise: in_bfloat16(case, noise), same, 1e-5)
    check_no_patient_moves_it_by_more_than_the_clip(in_bfloat16, case, 1e-5)


class Line(nn.Module):
    """Two weight tensors; the loss on crops x is mean(x @ weight), and `unused` has no part."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, dtype=torch.float64))
        self.unused = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def loss(self, x: Tensor) -> Tensor:
        return (x @ self.weight).mean()


def line_case(*rows: Sequence[float], clip: float = 1.0) -> Case:
    line = Line()
    crops = [torch.tensor([row], dtype=torch.float64) for row in rows]
    return Case(network=line, loss=line.loss, patients=crops, clip=clip)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    "faulty", [clips_each_crop, noises_each_microbatch, divides_by_the_realised_count]
)
def test_the_checks_catch_a_planted_fault(
    check: Callable[..., None], faulty: Implementation
) -> None:
    # Four unlike patients of three like crops each, in a draw smaller than expected.
    patients = list(5 * torch.eye(4, dtype=torch.float64).unsqueeze(1).expand(4, 3, 4))
    case = replace(line_case(), patients=patients, expected=20.0)
    check(ours, case)
    with pytest.raises(AssertionError):
        check(faulty, case)


def test_clipping_each_crop_of_a_volume_lets_a_patient_weigh_almost_three_times() -> None:
    case = replace(make_case(critic, 2), clip=1e-3)
    moved = clips_each_crop(case, SILENT) - clips_each_crop(case.without(4), SILENT)
    assert 2 < float(moved.norm()) * case.expected / case.clip <= 3


def test_with_nobody_sampled_the_step_is_noise() -> None:
    noise = mechanism_of(1.0).noise_std / EXPECTED
    torch.testing.assert_close(
        ours(line_case(), EqualNoise(1.0)), torch.full((6,), noise, dtype=torch.float64)
    )


def test_one_patient_alone_is_clipped_and_shared_over_the_expected() -> None:
    found = ours(line_case((3.0, 4.0, 0.0, 0.0)), SILENT)
    wanted = torch.tensor([0.6, 0.8, 0, 0, 0, 0], dtype=torch.float64) / EXPECTED
    torch.testing.assert_close(found, wanted)
    assert ours(line_case((0.0, 0.0, 0.0, 0.0)), SILENT).abs().max() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200, 1e308])
@pytest.mark.parametrize("place", [0, 1])
def test_a_patient_that_is_not_finite_adds_nothing(bad: float, place: int) -> None:
    good = [(0.1, 0.2, 0.0, 0.0)]
    rows = [*good[:place], (bad, bad, 0.0, 0.0), *good[place:]]
    assert torch.equal(ours(line_case(*rows), SILENT), ours(line_case(*good), SILENT))


def test_a_bad_voxel_in_a_volume_drops_its_patient() -> None:
    case = make_case(critic, 2)
    case.patients[1][0, 0, 3, 3] = math.nan
    assert torch.equal(ours(case, SILENT), ours(case.without(1), SILENT))


def test_the_public_gradient_is_added_as_it_is() -> None:
    line = Line()
    public = torch.tensor([[50.0, -7.0, 0.25, 0.0]], dtype=torch.float64)
    recorder = Recorder(line.parameters())
    private = PatientOptimizer(
        recorder, mechanism_of(1.0), expected_patients=EXPECTED, randomness=EqualNoise(0.5)
    )
    patient = torch.ones(1, 4, dtype=torch.float64)
    private.step([partial(line.loss, patient)])
    private.step([partial(line.loss, patient)], partial(line.loss, public))
    without, with_public = recorder.given
    wanted = torch.cat([public[0], torch.zeros(2, dtype=torch.float64)])
    torch.testing.assert_close(with_public - without, wanted, rtol=0, atol=1e-13)


def test_a_public_gradient_that_is_not_finite_ends_the_step_before_any_patient() -> None:
    line = Line()
    recorder = Recorder(line.parameters())
    private = PatientOptimizer(
        recorder, mechanism_of(1.0), expected_patients=1.0, randomness=SILENT
    )
    touched: list[int] = []

    def patient() -> Tensor:
        touched.append(1)
        return line.loss(torch.ones(1, 4, dtype=torch.float64))

    with pytest.raises(MedsynthError, match="not finite"):
        private.step([patient], lambda: line.loss(torch.full((1, 4), math.nan).double()))
    assert (touched, recorder.given) == ([], [])


def test_a_step_that_breaks_off_leaves_nothing_to_the_next() -> None:
    line = Line()
    recorder = Recorder(line.parameters())
    private = PatientOptimizer(
        recorder, mechanism_of(1.0), expected_patients=1.0, randomness=SILENT
    )

    def losses() -> Iterable[Callable[[], Tensor]]:
        yield partial(line.loss, torch.ones(1, 4, dtype=torch.float64))
        raise OSError("a volume could not be read")

    with pytest.raises(OSError, match="volume"):
        private.step(losses())
    private.step([])
    assert float(recorder.given[0].abs().max()) == 0


def test_no_privacy_takes_the_same_path_without_clip_or_noise() -> None:
    line = Line()
    recorder = Recorder(line.parameters())
    off = Unprotected(name="test", sampling_rate=0.5, steps=1)
    private = PatientOptimizer(recorder, off, expected_patients=2.0, randomness=EqualNoise(1.0))
    rows = torch.tensor([[3.0, 4.0, 0, 0], [30.0, 0, 0, 0], [math.nan, 0, 0, 0]]).double()
    private.step(partial(line.loss, row[None]) for row in rows)
    wanted = torch.tensor([16.5, 2.0, 0, 0, 0, 0], dtype=torch.float64)
    torch.testing.assert_close(recorder.given[0], wanted)


def test_noise_has_its_size_in_every_coordinate_and_is_new_every_step() -> None:
    line = Line(width=10)
    recorder = Recorder(line.parameters())
    private = PatientOptimizer(
        recorder,
        mechanism_of(2.0),
        expected_patients=EXPECTED,
        randomness=SimulatedRandomness("noise"),
    )
    patients = [partial(line.loss, torch.zeros(1, 10, dtype=torch.float64))] * 3
    steps = 600
    for step in range(steps):
        private.step(patients if step % 2 else [])  # the same noise for three and for none
    drawn = torch.stack(recorder.given) * EXPECTED / mechanism_of(2.0).noise_std
    five_errors = 5 / (2 * steps) ** 0.5
    assert float((drawn.std(dim=0) - 1).abs().max()) < five_errors
    assert float((drawn[0::2].std() - drawn[1::2].std()).abs()) < 0.06
    assert float(drawn.mean(dim=0).abs().max()) < 5 / steps**0.5
    assert len({float(value) for value in drawn.flatten()}) == drawn.numel()


def test_a_real_optimizer_moves_and_keeps_only_what_was_released() -> None:
    line = Line()
    inner = torch.optim.Adam(line.parameters(), lr=0.1)
    private = PatientOptimizer(
        inner, mechanism_of(1.0), expected_patients=1.0, randomness=EqualNoise(1.0)
    )
    private.step([])
    torch.testing.assert_close(line.weight.detach(), torch.full((4,), -0.1).double())
    assert line.weight.grad is None
    assert vars(line.weight).get("grad_sample") is None
    assert vars(line.weight).get("summed_grad") is None


@pytest.mark.parametrize("expected", [0.0, -1.0, math.nan, math.inf])
def test_the_expected_number_of_patients_must_be_one(expected: float) -> None:
    with pytest.raises(ValueError, match="expected_patients"):
        PatientOptimizer(
            Recorder(Line().parameters()),
            mechanism_of(1.0),
            expected_patients=expected,
            randomness=SILENT,
        )
    with pytest.raises(ValueError, match="expected_patients"):
        release_mean([], mechanism_of(1.0), expected_patients=expected, randomness=SILENT)


def test_everybody_is_sampled_at_rate_one_and_by_coins_below() -> None:
    randomness = SimulatedRandomness("sampling")
    assert poisson_sample(7, 1.0, randomness) == list(range(7))
    assert poisson_sample(0, 0.5, randomness) == []
    draws = [poisson_sample(40, 0.25, randomness) for _ in range(2000)]
    counts = np.array([len(draw) for draw in draws])
    assert abs(counts.mean() - 10) < 0.31  # five standard errors
    assert abs(counts.var() - 7.5) < 1.2  # binomial: not a fixed size
    each = np.bincount(np.concatenate(draws), minlength=40) / 2000
    assert np.abs(each - 0.25).max() < 0.05


def test_a_mean_is_clipped_summed_noised_and_shared_over_the_expected() -> None:
    vectors = [torch.tensor(row) for row in ([3.0, 4.0], [0.1, 0.2], [math.nan, 0.0])]
    found = release_mean(
        vectors, mechanism_of(1.0), expected_patients=4.0, randomness=EqualNoise(2.0)
    )
    noise = 2 * mechanism_of(1.0).noise_std
    wanted = (torch.tensor([0.7, 1.0], dtype=torch.float64) + noise) / 4
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=0)
    assert found.dtype == torch.float64


def test_a_mean_over_nobody_is_noise_of_the_shape_it_would_have() -> None:
    found = release_mean(
        [], mechanism_of(1.0), expected_patients=2.0, randomness=EqualNoise(1.0), shape=(2, 3)
    )
    assert found.shape == (2, 3)
    assert float(found.min()) > 0
    with pytest.raises(ValueError, match="shape"):
        release_mean([], mechanism_of(1.0), expected_patients=2.0, randomness=SILENT)
    with pytest.raises(ValueError, match="one shape"):
        release_mean(
            [torch.ones(2), torch.ones(1)],
            mechanism_of(1.0),
            expected_patients=2.0,
            randomness=SILENT,
        )


def test_networks_that_learn_in_the_forward_pass_are_refused_with_every_place() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1),
        nn.BatchNorm2d(2),
        nn.InstanceNorm2d(2, track_running_stats=True),
        nn.utils.parametrizations.spectral_norm(nn.Conv2d(2, 2, 1)),
        nn.InstanceNorm2d(2, affine=True),
    )
    with pytest.raises(BadInput) as refusal:
        require_private_ready(network)
    places = [problem.name for problem in refusal.value.problems]
    assert places[:2] == ["1", "2"]
    assert places[2].startswith("3.")
    assert len(places) == 3


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_older_spectral_norm_is_refused_too() -> None:
    with pytest.raises(BadInput, match="spectral norm"):
        require_private_ready(nn.utils.spectral_norm(nn.Conv2d(2, 2, 1)))


@pytest.mark.parametrize("make", [critic, unet, segresnet])
def test_our_networks_are_ready(make: Callable[[int], nn.Module]) -> None:
    require_private_ready(make(3))
