"""The price of privacy: one private step over one non-private step, in process CPU time.

The non-private step is one forward and backward of all patients' crops in one batch and one
Adam step. The private step is the same crops patient by patient, clipping, noise and the same
Adam step. The two alternate in one run, so that a busy machine slows both; medians are
compared. One thread.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from monai.networks.nets import PatchDiscriminator, SegResNet, UNet
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from medsynth_common.durable import write_json
from medsynth_common.privacy.mechanism import Gaussian
from medsynth_common.privacy.patients import PatientOptimizer
from medsynth_common.privacy.randomness import SystemRandomness

#: A private step may cost this many non-private ones at two crops or more.
BAR: Final = 1.3
ROUNDS: Final = 5
_NORM: Final = ("INSTANCE", {"affine": True})


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and a batch: `patients` patients of `crops` crops (channels, *grid)."""

    name: str
    network: Callable[[], nn.Module]
    patients: int
    crops: int
    crop: Sequence[int]


def _critic(dimensions: int) -> nn.Module:
    width = {2: 64, 3: 32}[dimensions]
    network: nn.Module = PatchDiscriminator(dimensions, width, in_channels=12, norm=_NORM)
    return network


def _unet(dimensions: int, channels: Sequence[int]) -> nn.Module:
    strides = (2,) * (len(channels) - 1)
    network: nn.Module = UNet(dimensions, 4, 4, channels, strides, num_res_units=2)
    return network


CASES: Final = (
    Case(
        name="PatchGAN 2D 128^2",
        network=lambda: _critic(2),
        patients=4,
        crops=4,
        crop=(12, 128, 128),
    ),
    Case(
        name="PatchGAN 3D 64^3",
        network=lambda: _critic(3),
        patients=2,
        crops=2,
        crop=(12, 64, 64, 64),
    ),
    Case(
        name="UNet 2D 128^2",
        network=lambda: _unet(2, (16, 32, 64, 128, 256)),
        patients=4,
        crops=4,
        crop=(4, 128, 128),
    ),
    Case(
        name="UNet 3D 48^3",
        network=lambda: _unet(3, (16, 32, 64, 128)),
        patients=2,
        crops=2,
        crop=(4, 48, 48, 48),
    ),
    Case(
        name="SegResNet 3D 32^3",
        network=lambda: SegResNet(3, init_filters=16, in_channels=4, out_channels=4),
        patients=4,
        crops=2,
        crop=(4, 32, 32, 32),
    ),
)


class _Contest:
    """One case's two ways to step, on networks and optimizers of their own."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._crops = torch.randn(case.patients, case.crops, *case.crop)
        self._plain = case.network().train()
        self._plain_optimizer = torch.optim.Adam(self._plain.parameters())
        self._network = case.network().train()
        self._private = PatientOptimizer(
            torch.optim.Adam(self._network.parameters()),
            Gaussian(name="bench", clip=1.0, noise_multiplier=1.0, sampling_rate=0.5, steps=1),
            expected_patients=case.patients,
            randomness=SystemRandomness(),
        )
        self.seconds: dict[str, list[float]] = {"plain": [], "private": []}

    def plain_step(self) -> None:
        self._plain_optimizer.zero_grad()
        _loss(self._plain, self._crops.flatten(0, 1)).backward()  # type: ignore[no-untyped-call]
        self._plain_optimizer.step()

    def private_step(self) -> None:
        self._private.step(partial(_loss, self._network, crops) for crops in self._crops)

    def round(self) -> None:
        """Time each way once."""
        for name, step in (("plain", self.plain_step), ("private", self.private_step)):
            start = time.process_time()
            step()
            self.seconds[name].append(time.process_time() - start)


def _loss(network: nn.Module, crops: Tensor) -> Tensor:
    output = network(crops)
    patches = output[-1] if isinstance(output, list) else output  # a critic gives its layers too
    return torch.relu(1 - patches).mean()


def measure(case: Case, rounds: int) -> dict[str, float | str]:
    """Give medians in milliseconds and their ratio, after one round to warm up."""
    contest = _Contest(case)
    contest.round()
    for times in contest.seconds.values():
        times.clear()
    for _ in range(rounds):
        contest.round()
    plain, private = (statistics.median(contest.seconds[way]) for way in ("plain", "private"))
    return {
        "case": case.name,
        "patients": case.patients,
        "crops": case.crops,
        "parameters": sum(one.numel() for one in case.network().parameters()),
        "plain_ms": 1000 * plain,
        "private_ms": 1000 * private,
        "ratio": private / plain,
    }


def main(out: Path = Path("runs/bench/dp_step.json"), *, rounds: int = ROUNDS) -> bool:
    """Measure every case, print a table, write `out`; whether every ratio is under the bar."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        results = [measure(case, rounds) for case in CASES]
    finally:
        torch.set_num_threads(threads)
    write_json(out, {"bar": BAR, "rounds": rounds, "torch": torch.__version__, "cases": results})
    Console().print(_table(results))
    return all(float(result["ratio"]) <= BAR for result in results)


def _table(results: Sequence[dict[str, float | str]]) -> Table:
    table = Table(title=f"Private step over non-private step (bar {BAR}, CPU time, one thread)")
    for heading in ("network", "patients x crops", "parameters", "plain ms", "private ms", "ratio"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for result in results:
        table.add_row(
            str(result["case"]),
            f"{result['patients']} x {result['crops']}",
            f"{result['parameters']:,}",
            f"{result['plain_ms']:.0f}",
            f"{result['private_ms']:.0f}",
            f"{result['ratio']:.2f}",
        )
    return table
