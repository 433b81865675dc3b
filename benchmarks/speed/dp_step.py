"""The price of privacy: one private step over one non-private step, in process CPU time.

The ways to step alternate in one run, so that a busy machine slows all; medians are compared. One
thread. Memory is what a step needs beyond what stood there before it.
"""

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.nets import PatchDiscriminator, SegResNet, UNet
from torch import Tensor, nn

from benchmarks import memory, results
from benchmarks.results import Cell, Goal
from benchmarks.speed import dp_ways
from benchmarks.speed.dp_ways import Step

#: A private step may cost this many non-private ones.
BAR: Final = 1.1
ROUNDS: Final = 3
WAYS: Final[Mapping[str, Callable[[nn.Module, Tensor], Step]]] = {
    "non-private": dp_ways.plain,
    "ours": dp_ways.ours,
    "hooks": dp_ways.hooks,
    "ghost": dp_ways.ghost,
}
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


class _Apart(ResBlock):  # type: ignore[misc]  # MONAI ships no types
    """A block that adds its input to a new tensor: Opacus' hooks bear no change in place."""

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(self.act(self.norm1(x)))
        added: Tensor = x + self.conv2(self.act(self.norm2(inner)))
        return added


def _segresnet(dimensions: int) -> nn.Module:
    network: nn.Module = SegResNet(dimensions, init_filters=16, in_channels=4, out_channels=4)
    for part in network.modules():
        if isinstance(part, ResBlock):
            part.__class__ = _Apart
        if hasattr(part, "inplace"):
            setattr(part, "inplace", False)  # noqa: B010 - torch types attributes as tensors
    return network


def _case(
    name: str, network: Callable[[], nn.Module], patients: int, crops: int, *crop: int
) -> Case:
    return Case(name=name, network=network, patients=patients, crops=crops, crop=crop)


CASES: Final = (
    _case("PatchGAN 2D 128^2", lambda: _critic(2), 4, 4, 12, 128, 128),
    _case("PatchGAN 3D 64^3", lambda: _critic(3), 2, 2, 12, 64, 64, 64),
    _case("UNet 2D 128^2", lambda: _unet(2, (16, 32, 64, 128, 256)), 4, 4, 4, 128, 128),
    _case("UNet 3D 48^3", lambda: _unet(3, (16, 32, 64, 128)), 2, 2, 4, 48, 48, 48),
    _case("SegResNet 2D 128^2", lambda: _segresnet(2), 2, 4, 4, 128, 128),
    _case("SegResNet 3D 32^3", lambda: _segresnet(3), 2, 2, 4, 32, 32, 32),
)


def measure(case: Case, rounds: int) -> list[dict[str, Cell]]:
    """A row for each way: median milliseconds, over the non-private one's, and peak memory."""
    crops = torch.randn(case.patients, case.crops, *case.crop)
    steps = {name: way(case.network().train(), crops) for name, way in WAYS.items()}
    memory: dict[str, float | None] = {}
    for name, step in steps.items():
        step()  # Adam's memory is there from now on
        memory[name] = _needed(step)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return [
        {
            "network": case.name,
            "patients x crops": f"{case.patients} x {case.crops}",
            "way": name,
            "CPU ms": 1000 * medians[name],
            "over non-private": medians[name] / medians["non-private"],
            "peak MiB": memory[name],
        }
        for name in steps
    ]


def _needed(step: Step) -> float | None:
    """MiB that a step takes at its peak beyond what is there before it; Linux alone tells."""
    reset = Path("/proc/self/clear_refs")
    if not (memory.TOLD and reset.exists()):
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not at hand for this step
    before = memory.held()
    reset.write_text("5")
    step()
    return (memory.peak() - before) / 2**20


def main(*, rounds: int = ROUNDS) -> bool:
    """Measure every case; whether ours is under its bars."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [measure(case, rounds) for case in CASES]
    finally:
        torch.set_num_threads(threads)
    return results.record(
        "dp_step",
        title="A private step over a non-private step",
        about="Forward, backward, clipping, noise and Adam on the same crops; process CPU time on "
        f"one thread, ways interleaved, medians of {rounds}. Hooks and ghost are Opacus'; ghost "
        "clips crops, not patients.",
        rows=[row for rows in found for row in rows],
        goals=[goal for rows in found for goal in _goals({str(row["way"]): row for row in rows})],
        notes=[_bf16()],
    )


def _goals(rows: Mapping[str, Mapping[str, Cell]]) -> list[Goal]:
    mine, base = rows["ours"], rows["non-private"]
    name = str(mine["network"])
    ratio, memory, other = mine["over non-private"], mine["peak MiB"], base["peak MiB"]
    assert isinstance(ratio, float)
    goals = [Goal(what=f"{name}: ours over non-private, CPU time", figure=ratio, bar=BAR)]
    if isinstance(memory, float) and isinstance(other, float):
        what = f"{name}: ours over non-private, peak memory"
        goals.append(Goal(what=what, figure=memory / other, bar=1.0))
    return goals


def _bf16() -> str:
    information = Path("/proc/cpuinfo")
    flags = information.read_text() if information.exists() else ""
    if any(flag in flags for flag in ("amx_bf16", "avx512_bf16")):
        return "this processor has bfloat16 arithmetic; forward and backward here are float32"
    return "this processor has no bfloat16 arithmetic (amx_bf16, avx512_bf16), so none was tried"
