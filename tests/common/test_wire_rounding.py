"""Rounded updates: what comes back, how far off it may be, and what a peer may not send."""

import pytest
import torch
from torch import Tensor

from medsynth_common.errors import BadMessage
from medsynth_common.plan import Bits
from medsynth_common.update import check_tensors
from medsynth_common.wire.rounding import STEPS, restored, rounded, rounded_form

ROUNDED: list[Bits] = [4, 8]


def weights(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (5, 3, 3, 3), "conv.bias": (5,), "act": (1,), "none": (0, 2)}
    return {n: scale * torch.randn(shape, generator=draw) for n, shape in shapes.items()}


START = weights(1)
MOVED = {name: START[name] + move for name, move in weights(2, 1e-2).items()}


@pytest.mark.parametrize("bits", ROUNDED)
def test_it_has_the_form_that_both_sides_expect(bits: Bits) -> None:
    check_tensors(rounded(MOVED, START, bits), rounded_form(START, bits))


@pytest.mark.parametrize("bits", ROUNDED)
def test_it_comes_back_within_half_a_step_of_all_but_the_farthest(bits: Bits) -> None:
    coded = rounded(MOVED, START, bits)
    back = restored(coded, START, bits)
    levels = 2 ** (bits - 1) - 1
    for name, step in zip(sorted(START), coded[STEPS].tolist(), strict=True):
        assert back[name].dtype == START[name].dtype
        moved = MOVED[name].double() - START[name].double()
        held = moved.clamp(-levels * step, levels * step)
        off = (back[name].double() - START[name].double() - held).abs()
        assert bool((off <= step / 2 + 1e-6).all())


def test_the_variance_it_adds_to_noise_is_small() -> None:
    start = {"w": torch.zeros(100_000)}
    noise = {"w": torch.randn(100_000, generator=torch.Generator().manual_seed(3))}
    for bits, most in ((4, 0.03), (8, 0.001)):
        back = restored(rounded(noise, start, bits), start, bits)  # type: ignore[arg-type]
        assert float((back["w"] - noise["w"]).square().mean()) < most


def test_one_far_weight_does_not_silence_the_others() -> None:
    start = {"w": torch.zeros(1000)}
    moved = {"w": torch.full((1000,), 1e-3)}
    moved["w"][7] = 5e-2
    back = restored(rounded(moved, start, 4), start, 4)["w"]
    assert bool((back[:7] > 0).all())


def test_an_eighth_and_a_quarter_of_the_bytes() -> None:
    start = {"w": torch.zeros(64, 64), "b": torch.zeros(64)}
    plain = sum(t.numel() * 4 for t in start.values())
    for bits in ROUNDED:
        sent = rounded({k: t + 1 for k, t in start.items()}, start, bits)
        assert sum(t.numel() * t.element_size() for t in sent.values()) == plain * bits / 32 + 8


@pytest.mark.parametrize("bits", ROUNDED)
def test_weights_that_did_not_move_come_back_as_they_were(bits: Bits) -> None:
    back = restored(rounded(START, START, bits), START, bits)
    assert all(torch.equal(back[name], START[name]) for name in START)


def test_unrounded_weights_pass_as_they_are() -> None:
    assert rounded(MOVED, START, 32).keys() == MOVED.keys()
    assert all(restored(MOVED, START, 32)[name] is MOVED[name] for name in MOVED)
    assert rounded_form(START, 32) == START


@pytest.mark.parametrize("bits", ROUNDED)
def test_a_number_off_the_grid_is_refused(bits: Bits) -> None:
    coded = rounded(MOVED, START, bits)
    coded["conv.bias"][0] = -128 if bits == 8 else 0
    with pytest.raises(BadMessage, match=r"conv\.bias"):
        restored(coded, START, bits)
