"""Ways to take one step on the same crops: without privacy, ours, and Opacus' two.

All take the hinge loss of a critic on real patches, the mean over a patient's crops, and one step
of Adam. Ours and Opacus' hooks clip a patient's whole gradient. Opacus' ghost clipping knows no
patient with several crops: it clips crops, which is another promise and no more work.
"""

from collections.abc import Callable
from functools import partial

import torch
from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

from medsynth_common.privacy.mechanism import Gaussian
from medsynth_common.privacy.patients import PatientOptimizer
from medsynth_common.privacy.randomness import SystemRandomness

Step = Callable[[], object]


def plain(network: nn.Module, crops: Tensor) -> Step:
    """All crops (patient, crop, channel, *grid) in one batch, without privacy."""
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> None:
        optimizer.zero_grad()
        _hinge(network, crops.flatten(0, 1)).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def ours(network: nn.Module, crops: Tensor, *, bfloat16: bool = False) -> Step:
    """Patient by patient, as the sites do."""
    mechanism = Gaussian(name="bench", clip=1.0, noise_multiplier=1.0, sampling_rate=0.5, steps=1)
    optimizer = PatientOptimizer(
        torch.optim.Adam(network.parameters()),
        mechanism,
        expected_patients=len(crops),
        randomness=SystemRandomness(),
        bfloat16=bfloat16,
    )

    def loss(patient: Tensor) -> Tensor:
        return _hinge(network, patient).mean()

    return lambda: optimizer.step(partial(loss, patient) for patient in crops)


def ours_in_bfloat16(network: nn.Module, crops: Tensor) -> Step:
    """The same with `precision = "bfloat16"`."""
    return ours(network, crops, bfloat16=True)


def hooks(network: nn.Module, crops: Tensor) -> Step:
    """Opacus' hooks, a gradient for each crop, added up for each patient before clipping."""
    patients, each = crops.shape[:2]
    module = GradSampleModule(network, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.Adam(network.parameters()),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=patients,
        loss_reduction="mean",
    )

    def step() -> None:
        (_hinge(module, crops.flatten(0, 1)).sum() / each).backward()  # type: ignore[no-untyped-call]
        for one in optimizer.params:
            one.grad_sample = one.grad_sample.view(patients, each, *one.shape).sum(1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def ghost(network: nn.Module, crops: Tensor) -> Step:
    """Opacus' ghost clipping, of crops."""
    module = GradSampleModuleFastGradientClipping(network, loss_reduction="mean", max_grad_norm=1.0)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.Adam(network.parameters()),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=crops.shape[0] * crops.shape[1],
        loss_reduction="mean",
    )
    loss = DPLossFastGradientClipping(module, optimizer, _Hinge(), loss_reduction="mean")

    def step() -> None:
        loss(_patches(module(crops.flatten(0, 1)))).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


class _Hinge(nn.Module):
    """The loss in the form that ghost clipping asks for."""

    reduction = "mean"

    def forward(self, patches: Tensor) -> Tensor:
        each = torch.relu(1 - patches).flatten(1).mean(1)
        return each if self.reduction == "none" else each.mean()


def _hinge(network: nn.Module, crops: Tensor) -> Tensor:
    """The loss of each crop."""
    return torch.relu(1 - _patches(network(crops))).flatten(1).mean(1)


def _patches(output: Tensor | list[Tensor]) -> Tensor:
    return output[-1] if isinstance(output, list) else output  # a critic gives its layers too
