"""Privatised weights in an eighth of the bytes: how far they moved, on a grid of a few steps.

What goes up is the difference to the plan's weights, rounded to 4 or 8 bits with one step size a
tensor. It is made of the release and the plan alone, so it costs no privacy; and the noise that
is in the release anyway is far coarser than a step: at 4 bits rounding adds about 2 % to the
variance of a normal difference (Max 1960), and averaging over sites takes it down like noise.
Rounding is to the nearest, so the same release gives the same bytes on every engine.
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from medsynth_common.errors import BadMessage, Problem
from medsynth_common.plan import Bits

#: Name of the tensor that holds every tensor's step size, in the order of their names.
STEPS: Final = "steps"
#: A step is at most this part of a tensor's root mean square: one far number may not blur the rest.
_COARSEST: Final = 0.43


def rounded(
    weights: Mapping[str, Tensor], start: Mapping[str, Tensor], bits: Bits
) -> dict[str, Tensor]:
    """Encode `weights` as their difference to `start`, which has the same names and shapes."""
    if bits == 32 or not weights:
        return dict(weights)
    coded: dict[str, Tensor] = {}
    steps = []
    for name in sorted(weights):
        moved = (weights[name].double() - start[name].double()).flatten()
        step = _step(moved, bits).float()
        steps.append(step)
        whole = moved.div_(step.double()) if step else torch.zeros_like(moved)
        coded[name] = _packed(whole.round_().clamp_(-_levels(bits), _levels(bits)), bits)
    return coded | {STEPS: torch.stack(steps)}


def restored(
    tensors: Mapping[str, Tensor], start: Mapping[str, Tensor], bits: Bits
) -> dict[str, Tensor]:
    """Undo `rounded`: weights of the names, shapes and types of `start`.

    `tensors` must have the form of `rounded_form`. Raises BadMessage for a number off the grid.
    """
    if bits == 32 or not tensors:
        return dict(tensors)
    weights = {}
    for name, step in zip(sorted(start), tensors[STEPS].double(), strict=True):
        whole = _unpacked(tensors[name], start[name].numel(), bits)
        if whole.numel() and int(whole.min()) < -_levels(bits):
            wanted = f"whole numbers of at least {-_levels(bits)}"
            raise BadMessage(Problem(name=name[:80], value=str(int(whole.min())), wanted=wanted))
        moved = (whole.double() * step).reshape(start[name].shape)
        weights[name] = (start[name].double() + moved).to(start[name].dtype)
    return weights


def rounded_form(start: Mapping[str, Tensor], bits: Bits) -> dict[str, Tensor]:
    """Give tensors, without memory, of the form that `rounded` gives."""
    if bits == 32 or not start:
        return dict(start)
    kind = torch.int8 if bits == 8 else torch.uint8
    sizes = {name: -(-tensor.numel() * bits // 8) for name, tensor in start.items()}
    coded = {n: torch.empty(size, dtype=kind, device="meta") for n, size in sizes.items()}
    return coded | {STEPS: torch.empty(len(coded), device="meta")}


def _levels(bits: Bits) -> int:
    """Steps to either side of none."""
    return int(2 ** (bits - 1)) - 1


def _step(moved: Tensor, bits: Bits) -> Tensor:
    if not moved.numel():
        return torch.zeros((), dtype=torch.float64)
    largest, usual = moved.abs().max(), moved.square().mean().sqrt()
    return torch.minimum(largest / _levels(bits), _COARSEST * usual)


def _packed(whole: Tensor, bits: Bits) -> Tensor:
    if bits == 8:
        return whole.to(torch.int8)
    halves = torch.nn.functional.pad((whole + 8).to(torch.uint8), (0, whole.numel() % 2))
    low, high = halves.view(-1, 2).unbind(1)
    return low | (high << 4)


def _unpacked(packed: Tensor, count: int, bits: Bits) -> Tensor:
    if bits == 8:
        return packed
    halves = torch.stack([packed & 15, packed >> 4], dim=1).flatten()[:count]
    return halves.to(torch.int8) - 8
