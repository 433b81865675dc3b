"""Directions hold public gradients; coordinates and steps are what they say; noise stays small."""

import math

import pytest
import torch
from torch import Tensor

from medsynth_common.errors import MedsynthError
from medsynth_common.learning.directions import Directions
from medsynth_common.learning.guided_steps import GuidedOptimizer
from medsynth_common.privacy.mechanism import Gaussian
from medsynth_common.privacy.randomness import SimulatedRandomness

WEIGHTS, KNOWN, GRADIENTS = 400, 5, 30


def gradients(count: int = GRADIENTS, *, within: int = KNOWN) -> Tensor:
    """Public gradients in a space of `within` dimensions, much longer along some than others."""
    draw = torch.Generator().manual_seed(1)
    axes = torch.linalg.qr(torch.randn(WEIGHTS, within, generator=draw)).Q.T
    lengths = torch.tensor([10.0 ** (-k / 2) for k in range(within)])
    public: Tensor = (torch.randn(count, within, generator=draw) * lengths) @ axes
    return public


def test_they_hold_all_of_gradients_that_have_no_others() -> None:
    found, public = Directions.of(gradients(), count=KNOWN), gradients()
    basis = found.basis
    torch.testing.assert_close(basis @ basis.T, torch.eye(KNOWN), rtol=0, atol=2e-3)
    along = public @ basis.T
    assert float((along @ basis - public).norm()) < 1e-2 * float(public.norm())
    torch.testing.assert_close(found.reach, along.square().mean(0).sqrt(), rtol=1e-2, atol=0)
    assert found.reach.tolist() == sorted(found.reach.tolist(), reverse=True)


def test_the_longest_come_first() -> None:
    fewer, all_of_them = (Directions.of(gradients(), count=n) for n in (2, KNOWN))
    torch.testing.assert_close(fewer.reach, all_of_them.reach[:2])
    torch.testing.assert_close(fewer.basis.abs(), all_of_them.basis[:2].abs())


def test_a_usual_gradient_has_length_one_and_its_step_that_of_adam() -> None:
    found, public = Directions.of(gradients(), count=KNOWN), gradients()
    coordinates = torch.stack([found.coordinates(one) for one in public])
    assert float(coordinates.square().sum(1).mean()) == pytest.approx(1, rel=1e-2)
    # A tenth of it, as a mean over patients is shorter: no direction comes to its bound.
    steps = torch.stack([found.weights(found.step(one / 10)) for one in coordinates])
    assert float(steps.square().sum(1).mean()) == pytest.approx(WEIGHTS / 100, rel=1e-2)
    # As long in every direction, however long gradients are there.
    even = (steps @ found.basis.T).square().mean(0)
    torch.testing.assert_close(even, even.mean().expand(KNOWN), rtol=3e-2, atol=0)


def test_patients_unlike_all_that_is_public_do_not_throw_the_weights_away() -> None:
    """All of their gradient may lie where public ones are shortest, and be as long as the clip."""
    found = Directions.of(gradients(), count=KNOWN)
    for unlike in torch.eye(KNOWN):
        for size in (1.0, -1.0, 100.0):
            step = found.step(size * unlike)
            assert float(step.abs().max()) <= 2 * math.sqrt(WEIGHTS / KNOWN) * (1 + 1e-6)
            assert float(step @ unlike) * size > 0


def test_a_longer_unit_of_the_loss_changes_no_step() -> None:
    one, other = (Directions.of(s * gradients(), count=KNOWN) for s in (1.0, 100.0))
    gradient = gradients()[0]
    torch.testing.assert_close(
        one.weights(one.step(one.coordinates(gradient))),
        other.weights(other.step(other.coordinates(100 * gradient))),
        rtol=0,
        atol=1e-3,
    )


def test_weights_that_move_far_leave_the_others_their_digits() -> None:
    rows = torch.randn(3, 10_000, generator=torch.Generator().manual_seed(3))
    rows[:, 0] = 200
    rows[2] = 0
    rows /= rows.norm(dim=1, keepdim=True) + (rows == 0).all(1, keepdim=True)
    kept = Directions.along(rows, torch.ones(3))
    assert {name: tensor.dtype for name, tensor in kept.tensors().items()} == {
        "roots": torch.int8,
        "scale": torch.float32,
        "reach": torch.float32,
    }
    others, found = rows[:2, 1:], kept.basis[:2, 1:]
    alike = torch.cosine_similarity(others, found, dim=1)
    assert float(alike.min()) > 0.995
    torch.testing.assert_close(kept.basis[:, 0], rows[:, 0])
    assert not bool(kept.basis[2].any())


def test_where_there_are_fewer_the_others_lead_nowhere() -> None:
    public = gradients(count=3)
    found = Directions.of(public, count=KNOWN + 3)
    assert found.basis.shape == (KNOWN + 3, WEIGHTS)
    assert not bool(found.basis[3:].any())
    assert not bool(found.reach[3:].any())
    coordinates = found.coordinates(public[0])
    assert bool(coordinates.isfinite().all())
    assert not bool(coordinates[3:].any())
    noise = torch.zeros(KNOWN + 3)
    noise[3:] = 1000.0
    assert not bool(found.step(noise).any())


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_gradients_that_point_nowhere_are_refused(bad: float) -> None:
    with pytest.raises(MedsynthError, match="finite and not all zero"):
        Directions.of(torch.full((4, WEIGHTS), bad), count=2)


def optimizer(parameter: Tensor, directions: Directions, mechanism: Gaussian) -> GuidedOptimizer:
    return GuidedOptimizer(
        [parameter],
        directions,
        mechanism,
        expected_patients=4.0,
        randomness=SimulatedRandomness("directions"),
        learning_rate=0.01,
    )


def test_a_step_of_noise_alone_is_as_long_as_there_are_directions_not_weights() -> None:
    def moved(directions: Directions, mechanism: Gaussian) -> float:
        weight = torch.zeros(WEIGHTS, requires_grad=True)
        steps = optimizer(weight, directions, mechanism)
        squares = []
        for _ in range(200):
            before = weight.detach().clone()
            steps.step([])
            squares.append(float((weight.detach() - before).square().sum()))
        return sum(squares) / len(squares)

    found = Directions.of(gradients(), count=KNOWN)
    mechanism, loud = (
        Gaussian(name="m", clip=1.0, noise_multiplier=noise, sampling_rate=1.0, steps=1)
        for noise in (1.0, 10.0)
    )

    def wanted(noise: float, rate: float) -> float:
        normal = torch.randn(5000, KNOWN, generator=torch.Generator().manual_seed(5))
        steps = rate * found.step(normal * noise * mechanism.noise_std / 4.0)
        return float(steps.square().sum(1).mean())

    assert moved(found, mechanism) == pytest.approx(wanted(1.0, 0.01), rel=0.2)
    # Ten times the noise, and the rate shorter by the square of its length over 0.7.
    shorter = (10 / 4.0 * math.sqrt(KNOWN) / 0.7) ** -2
    assert moved(found, loud) == pytest.approx(wanted(10.0, 0.01 * shorter), rel=0.2)


def test_a_loss_goes_down_along_them_though_patients_have_other_gradients_too() -> None:
    found = Directions.of(gradients(), count=KNOWN)
    target = found.basis[0].float() + 0.5 * torch.randn(
        WEIGHTS, generator=torch.Generator().manual_seed(2)
    )
    weight = torch.zeros(WEIGHTS, requires_grad=True)
    mechanism = Gaussian(name="m", clip=1.0, noise_multiplier=0.01, sampling_rate=1.0, steps=1)
    steps = optimizer(weight, found, mechanism)

    def loss() -> Tensor:
        return -(weight @ target)

    for _ in range(5):
        steps.step([loss] * 4)
    moved = weight.detach()
    assert float(moved @ target) > 0
    basis = found.basis
    assert float((moved - (moved @ basis.T) @ basis).norm()) < 1e-2 * float(moved.norm())
