"""The few directions of weight space in which learning happens, found without any patient.

A private step's noise grows with the number of weights, a patient's gradient does not: among a
hundred thousand weights a few dozen patients are lost in it. But gradients of one task are much
alike: those of invented patients span a few dozen directions, and nearly all of a real patient's
mean gradient lies in these (Zhou, Wu and Banerjee, ICLR 2021; Yu et al., ICLR 2021). Private steps
along them need noise for as many numbers as there are directions.

Gradients are much longer along some directions than along others, and where they are short there
is as much to learn. So a gradient's coordinates are divided by the root of its usual length there,
once before noise is added and once after, which makes of the step what Adam makes of it: as long
in every direction, and bounded in each.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from medsynth_common.errors import MedsynthError
from medsynth_common.tensors import TensorParts

#: A direction in which public gradients are shorter than this part of the longest is rounding.
_LEAST: Final = 1e-4
#: A step along a direction is at most so many usual ones. One is Adam's own bound, and lost .002
#: to .010 of Dice; two lost nothing measurable.
_FURTHEST: Final = 2.0
_PART: Final = 1 << 18
_LARGEST_ROOT: Final = 127


@dataclass(frozen=True, kw_only=True)
class Directions(TensorParts):
    """Some directions, those along which public gradients are longest first.

    Attributes:
        roots: (direction, weight) int8, the basis as it travels: a number is its root's square with
            the root's sign, times the row's `scale`. Some weights are moved a hundred times as far
            as most; evenly spaced numbers would leave no digits to these.
        scale: (direction,) float32.
        reach: (direction,) float32, root mean square of public gradients along each; or 0.

    """

    roots: Tensor
    scale: Tensor
    reach: Tensor

    @classmethod
    def of(cls, gradients: Tensor, *, count: int) -> "Directions":
        """Find the `count` directions that hold most of public gradients (gradient, weight).

        Raises `MedsynthError` for gradients that are not finite, or nothing but zeros.
        """
        # Of the small matrix of inner products: there are far more weights than gradients. In
        # float64, since a tenth of the reach is a hundredth of these; a part of them at a time.
        parts = (part.double() for part in torch.split(gradients, _PART, dim=1))
        inner = torch.stack([part @ part.T for part in parts]).sum(0) / len(gradients)
        if not 0 < float(inner.trace()) < math.inf:
            raise MedsynthError("directions: public gradients must be finite and not all zero")
        squares, mixes = torch.linalg.eigh(inner)
        # Ascending, and rounding may leave a little below 0.
        reach = squares.flip(0)[:count].clamp(min=0).sqrt()
        there = reach > _LEAST * reach[0]
        mixes = mixes.flip(1)[:, :count] * there
        rows = (mixes / (reach + ~there) / len(gradients) ** 0.5).T.to(gradients) @ gradients
        missing = count - len(rows)
        reach = F.pad(reach * there, (0, missing))
        return cls.along(F.pad(rows, (0, 0, 0, missing)), reach.float())

    @classmethod
    def along(cls, rows: Tensor, reach: Tensor) -> "Directions":
        """Write down directions that are given: `rows` as `basis` has them, but for rounding."""
        largest = rows.abs().amax(1)
        parts = rows / torch.where(largest > 0, largest, 1.0).unsqueeze(1)
        roots = (parts.abs().sqrt() * _LARGEST_ROOT).round() * parts.sign()
        return cls(
            roots=roots.to(torch.int8), scale=(largest / _LARGEST_ROOT**2).float(), reach=reach
        )

    @classmethod
    def none(cls, count: int, weights: int) -> "Directions":
        """The form of `count` directions among so many weights; none of them leads anywhere."""
        return cls(
            roots=torch.zeros(count, weights, dtype=torch.int8),
            scale=torch.zeros(count),
            reach=torch.zeros(count),
        )

    @cached_property
    def basis(self) -> Tensor:
        """(direction, weight) float32: rows of length 1, upright on each other; or 0."""
        rows = self.roots.float()  # in place from here on: there may be hundreds of megabytes
        return rows.mul_(self.roots.abs()).mul_(self.scale.unsqueeze(1))

    def coordinates(self, gradient: Tensor) -> Tensor:
        """A gradient (weight,) as one number a direction; a public one has length 1, usually."""
        along: Tensor = self.basis.to(gradient) @ gradient
        return along * self._inverse(self.reach).sqrt() / self._length

    def step(self, coordinates: Tensor) -> Tensor:
        """How far to go along each direction for a mean of coordinates, at a rate of 1.

        Adam's first step moves every weight by its rate. This step is as long, in all, if the mean
        is of a usual gradient's length; and twice that at most in each direction. Where patients
        are unlike what is public, their gradients are long where public ones are short, and what
        evens these would throw the weights far away.
        """
        along = coordinates.to(self.reach) * self.reach.sqrt() * self._length
        usual = (self._inverse(self.reach) * along).clamp(-_FURTHEST, _FURTHEST)
        return usual * self._even

    @property
    def _even(self) -> float:
        """Adam's first step of all weights, shared among the directions."""
        count, weights = self.roots.shape
        return math.sqrt(weights / count)

    @property
    def rates(self) -> Tensor:
        """How far a step goes along each for a gradient of 1; not at all where there is none."""
        return self._inverse(self.reach) * self._even

    def weights(self, along: Tensor) -> Tensor:
        """What going so far along each (direction,) adds to the weights (weight,)."""
        added: Tensor = along @ self.basis.to(along)
        return added

    @staticmethod
    def _inverse(reach: Tensor) -> Tensor:
        inverse: Tensor = torch.where(reach > 0, reach, torch.inf).reciprocal()
        return inverse

    @property
    def _length(self) -> Tensor:
        """Root mean square length of public gradients' evened coordinates."""
        length: Tensor = self.reach.sum().sqrt()
        return length
