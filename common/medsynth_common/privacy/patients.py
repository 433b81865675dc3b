"""Private steps, patient by patient: sample, clip each patient's whole gradient, sum, noise once.

The unit is the patient: all crops, slices and fakes that a patient brings into a step make one
gradient, which is clipped as one vector. Neighbouring data sets differ by one patient.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, cast

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.optim import Optimizer

from medsynth_common.errors import BadInput, MedsynthError, Problem
from medsynth_common.privacy.mechanism import Gaussian, Unprotected
from medsynth_common.privacy.precision import in_precision
from medsynth_common.privacy.randomness import BLOCK, Randomness

#: So many float64 are worked on at a time, of however many tensors. Fewer would pay more for each
#: operation's beginning; more would not stay in a CPU core's cache, but be fetched from memory by
#: every operation. Whole blocks of noise: pieces draw what a whole would.
_PIECE: Final = 2 * BLOCK
#: The same on a GPU: 64 MB.
_GPU_PIECE: Final = 256 * BLOCK

Loss = Callable[[], Tensor]


def poisson_sample(count: int, rate: float, randomness: Randomness) -> list[int]:
    """Choose each of patients 0 to `count` - 1 by its own coin with probability `rate`.

    The number chosen varies and may be 0; accounting rests on that.
    """
    return [int(patient) for patient in (randomness.uniform(count) < rate).nonzero()[0]]


def require_private_ready(module: nn.Module) -> None:
    """Raise BadInput with every part of `module` that would carry patients past the clip.

    Running statistics and the power iteration of spectral norm are changed by the forward
    pass itself, and would be released without noise.
    """
    problems = [
        Problem(
            name=name or type(module).__name__,
            value=type(part).__name__,
            wanted="no state that a forward pass changes",
            mend="use instance or group norm without running statistics, no spectral norm",
        )
        for name, part in module.named_modules()
        if _keeps_statistics(part)
    ]
    if problems:
        raise BadInput(problems)


def _keeps_statistics(part: nn.Module) -> bool:
    running = {"running_mean", "running_var", "num_batches_tracked"}
    # torch has two spectral norms, one a hook and one a parametrization, neither a public class.
    kinds = {type(part).__name__, *(type(h).__name__ for h in part._forward_pre_hooks.values())}
    return (
        isinstance(part, nn.modules.batchnorm._BatchNorm)
        or not running.isdisjoint(name for name, _ in part.named_buffers(recurse=False))
        or not kinds.isdisjoint({"SpectralNorm", "_SpectralNorm"})
    )


def loss_gradient(
    parameters: Sequence[Tensor], loss: Loss, *, bfloat16: bool = False
) -> Sequence[Tensor]:
    """Compute the loss and its gradient, zero where a parameter has no part in it.

    With `bfloat16` the loss is computed in it where an operation bears that (`in_precision`), and
    so gradients are on their way down; those that arrive have the parameters' type.
    """
    with torch.enable_grad(), in_precision(parameters[0].device, bfloat16=bfloat16):
        value = loss()
    return torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)


class PatientOptimizer:
    """Steps a torch optimizer on private gradients, one gradient per patient.

    One step is one release of `mechanism`: the sum of the patients' gradients, each of norm at
    most `mechanism.clip` over all parameters together, plus noise once, over the number of
    patients *expected* in a step. Who takes part must come from `poisson_sample`.

    Args:
        optimizer: steps the parameters; whatever it remembers is made of released gradients.
        mechanism: clip and noise; `Unprotected` takes the same path without either.
        expected_patients: sampling rate times the declared number of patients. The number that
            happened to be sampled is private.
        randomness: where the noise comes from.
        bfloat16: of `loss_gradient`. What is clipped are the gradients that arrive.

    """

    def __init__(
        self,
        optimizer: Optimizer,
        mechanism: Gaussian | Unprotected,
        *,
        expected_patients: float,
        randomness: Randomness,
        bfloat16: bool = False,
    ) -> None:
        _check_expected(expected_patients)
        self.optimizer = optimizer
        self._bfloat16 = bfloat16
        self.mechanism = mechanism
        self.expected_patients = expected_patients
        self._randomness = randomness

    def step(
        self,
        patient_losses: Iterable[Loss],
        public_loss: Loss | None = None,
        *,
        stand_in: Loss | None = None,
    ) -> None:
        """Take one step on the sampled patients; with none, on noise alone.

        Args:
            patient_losses: for each sampled patient, computes the mean loss over its crops (and
                its fakes). A patient whose gradient is not finite adds nothing.
            public_loss: computes a loss that depends on no patient but through what was
                released. Its gradient is added unclipped and without noise.
            stand_in: of nobody, where nobody was sampled; its gradient is computed and dropped.
                Work that fails, for want of memory, must not tell by it that somebody was.

        Raises:
            MedsynthError: the public gradient is not finite; no patient was touched.

        """
        public = None if public_loss is None else self._public_gradient(public_loss)
        # A new one each step: a step that broke off leaves no half sum to the next.
        release = _Release(self.optimizer, self.mechanism, self.expected_patients, self._randomness)
        if public is not None:
            release.attach_step_hook(lambda _: _add_gradient(self._parameters, public))
        nobody = True
        for loss in patient_losses:
            nobody = False
            for parameter, gradient in zip(self._parameters, self._gradient(loss), strict=True):
                _give_samples(parameter, gradient.unsqueeze(0))  # (patient = 1, *parameter)
            release.signal_skip_step()
            release.step()
            release.zero_grad(set_to_none=True)
        if nobody and stand_in is not None:
            self._gradient(stand_in)
        # No patient is the last: a closing batch of none noises, scales and steps, also when
        # nobody was sampled.
        for parameter in self._parameters:
            _give_samples(parameter, parameter.new_empty((0, *parameter.shape)))
        release.step()
        release.zero_grad(set_to_none=True)

    @property
    def _parameters(self) -> list[Tensor]:
        groups = self.optimizer.param_groups
        return [one for group in groups for one in group["params"] if one.requires_grad]

    def _gradient(self, loss: Loss) -> Sequence[Tensor]:
        return loss_gradient(self._parameters, loss, bfloat16=self._bfloat16)

    def _public_gradient(self, loss: Loss) -> Sequence[Tensor]:
        gradient = self._gradient(loss)
        if not all(bool(part.isfinite().all()) for part in gradient):
            raise MedsynthError("public loss: got a gradient that is not finite")
        return gradient


class _Release(DPOptimizer):  # type: ignore[misc]  # opacus ships no types
    """Opacus' optimizer for one step, with its two pieces of arithmetic made exact, one faster.

    Opacus' `pre_step` tells the story: clip and accumulate, skip or go on, add noise, scale,
    hook, step. Replaced are:
    - clipping and summing, now in float64. Opacus takes norms in float32, which at ten million
      parameters were found up to 4e-4 too small, and sums in float32, where one patient's
      presence changes the rounding of all others. Here what is clipped is what is summed. In
      whatever order the squares of n numbers are added, the norm is off by n * 2^-54 of it at
      most, 1e-9 at ten million; the noise is made for a clip 1e-5 larger (`CLIP_MARGIN`).
    - noise, which Opacus draws from torch's generator; see `randomness`.
    - scaling, the same division: Opacus looks through all parameters anew for each of them.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mechanism: Gaussian | Unprotected,
        expected_patients: float,
        randomness: Randomness,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clip,
            expected_batch_size=expected_patients,
            loss_reduction="mean",
        )
        self._mechanism = mechanism
        self._randomness = randomness
        size, device = sum(one.numel() for one in self.params), self.params[0].device
        # A GPU has no such cache, and has to be told anew for each piece.
        length = min(_PIECE if device.type == "cpu" else _GPU_PIECE, size)
        # Made before any gradient is: these would lie between them, and memory be in pieces.
        self._sum = torch.empty(size, dtype=torch.float64, device=device)
        self._added = False  # until something is, nothing stands in the sum
        # One for all, a piece after the other.
        self._exact = torch.empty(length, dtype=torch.float64, device=device)
        self._cuts = _cuts([one.numel() for one in self.params], length)

    def clip_and_accumulate(self) -> None:
        """Add each patient's clipped gradient to the sum."""
        for patient in zip(*self.grad_samples, strict=True):
            flat = [part.reshape(-1) for part in patient]
            norms = torch.stack([vector_norm(piece) for piece in self._pieces(flat)])
            factor = self._mechanism.clip_factor(float(vector_norm(norms)))
            if factor > 0:
                self._add(flat, factor)

    def _add(self, gradient: Sequence[Tensor], factor: float) -> None:
        totals = torch.split(self._sum, len(self._exact))
        for total, piece in zip(totals, self._pieces(gradient), strict=True):
            if self._added:
                total.add_(piece, alpha=factor)
            else:
                torch.mul(piece, factor, out=total)
        self._added = True

    def add_noise(self) -> None:
        """Make the parameters' gradients of the sum and noise."""
        if not self._added:
            self._sum.zero_()
        released = self.params[0].new_empty(len(self._sum))
        pieces = (torch.split(one, len(self._exact)) for one in (released, self._sum))
        for noised, exact in zip(*pieces, strict=True):
            noised.copy_(self._mechanism.noised(exact, self._randomness))
        sizes = [one.numel() for one in self.params]
        for parameter, part in zip(self.params, torch.split(released, sizes), strict=True):
            parameter.grad = part.view(parameter.shape)

    def scale_grad(self) -> None:
        """Divide by the number of patients expected."""
        torch._foreach_div_([one.grad for one in self.params], float(self.expected_batch_size))

    def _pieces(self, flat: Sequence[Tensor]) -> Iterator[Tensor]:
        """Give flat tensors in float64, end to end, a piece at a time in the same memory."""
        for cuts in self._cuts:
            end = 0
            for index, start, stop in cuts:
                begin, end = end, end + stop - start
                self._exact[begin:end].copy_(flat[index][start:stop])
            yield self._exact[:end]


def _cuts(sizes: Sequence[int], length: int) -> list[list[tuple[int, int, int]]]:
    """Cut flat tensors, laid end to end, into pieces of `length`; the last may be shorter.

    A piece is a list of (tensor, start, stop).
    """
    pieces: list[list[tuple[int, int, int]]] = [[]]
    room = length
    for index, size in enumerate(sizes):
        start = 0
        while start < size:
            if not room:
                pieces.append([])
                room = length
            stop = min(start + room, size)
            pieces[-1].append((index, start, stop))
            room -= stop - start
            start = stop
    return pieces


def release_mean(
    vectors: Iterable[Tensor],
    mechanism: Gaussian | Unprotected,
    *,
    expected_patients: float,
    randomness: Randomness,
    shape: Sequence[int] | None = None,
    stand_in: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Release the mean of one vector per patient, once, with the mechanism's noise.

    Each vector is clipped as a whole; one that is not finite adds nothing.

    Args:
        vectors: one tensor per sampled patient, all of one shape.
        mechanism: clip and noise.
        expected_patients: sampling rate times the declared number of patients.
        randomness: where the noise comes from.
        shape: shape of the vectors; needed where no patient may be sampled.
        stand_in: nobody's vector, which is computed and dropped where nobody was sampled; see
            `PatientOptimizer.step`.

    Returns:
        The noisy mean, float64, of the vectors' shape and on their device; with `shape` given and
        no vector added, on the CPU.

    Raises:
        ValueError: vectors of different shapes, or none and no `shape`.

    """
    _check_expected(expected_patients)
    total = None if shape is None else torch.zeros(tuple(shape), dtype=torch.float64)
    nobody = True
    for vector in vectors:
        nobody = False
        exact = vector.detach().double()
        if total is None:
            total = torch.zeros_like(exact)
        if exact.shape != total.shape:
            raise ValueError(f"vectors must have one shape: {total.shape}, got {exact.shape}")
        factor = mechanism.clip_factor(float(exact.norm()))
        if factor > 0:
            total = total.to(exact.device).add_(exact, alpha=factor)
    if nobody and stand_in is not None:
        stand_in()
    if total is None:
        raise ValueError("a release over no patients needs the shape of their vectors")
    return mechanism.noised(total, randomness) / expected_patients


def _add_gradient(parameters: Iterable[Tensor], gradient: Iterable[Tensor]) -> None:
    for parameter, part in zip(parameters, gradient, strict=True):
        cast(Tensor, parameter.grad).add_(part)


def _give_samples(parameter: Tensor, samples: Tensor) -> None:
    parameter.grad_sample = samples  # type: ignore[attr-defined]  # where Opacus looks


def _check_expected(expected_patients: float) -> None:
    if not (math.isfinite(expected_patients) and expected_patients > 0):
        raise ValueError(f"expected_patients must be above 0, got {expected_patients}")
