"""The price of privacy: one private step over one non-private step.

The ways to step alternate in one run, so that a busy machine slows all, and each round begins with
another; medians are compared, and the ratios of single rounds tell how far to trust these. On
the CPU it is process CPU time on one thread, and memory is what a step needs beyond what stood
there before it; where there is a GPU, a large step is timed there too, by the clock. Steps in
bfloat16 are taken where the hardware computes in it.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from monai.networks.blocks.segresnet_block import ResBlock
from monai.networks.nets import PatchDiscriminator, SegResNet, UNet
from torch import Tensor, nn

from benchmarks import memory, results
from benchmarks.results import Cell, Goal
from benchmarks.speed import dp_ways
from benchmarks.speed.dp_ways import Step
from medsynth_common.allocator import keep_freed_memory

#: A private step may cost this many non-private ones.
BAR: Final = 1.1
ROUNDS: Final = 5
WAYS: Final[Mapping[str, Callable[[nn.Module, Tensor], Step]]] = {
    "non-private": dp_ways.plain,
    "ours": dp_ways.ours,
    "hooks": dp_ways.hooks,
    "ghost": dp_ways.ghost,
}
_IN_BFLOAT16: Final = "ours, bfloat16"
#: A private step on a GPU may cost this many non-private ones; one in bfloat16, no more than one.
_GPU_BAR: Final = 1.25
_BFLOAT16_BAR: Final = 1.0
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


GPU_CASE: Final = _case("SegResNet 3D 128^3, GPU", lambda: _segresnet(3), 2, 1, 4, 128, 128, 128)
CASES: Final = (
    _case("PatchGAN 2D 128^2", lambda: _critic(2), 4, 4, 12, 128, 128),
    _case("PatchGAN 3D 64^3", lambda: _critic(3), 2, 2, 12, 64, 64, 64),
    _case("UNet 2D 128^2", lambda: _unet(2, (16, 32, 64, 128, 256)), 4, 4, 4, 128, 128),
    _case("UNet 3D 48^3", lambda: _unet(3, (16, 32, 64, 128)), 2, 2, 4, 48, 48, 48),
    _case("SegResNet 2D 128^2", lambda: _segresnet(2), 2, 4, 4, 128, 128),
    _case("SegResNet 3D 32^3", lambda: _segresnet(3), 2, 2, 4, 32, 32, 32),
)


def measure(case: Case, rounds: int, *, device: str = "cpu") -> list[dict[str, Cell]]:
    """A row for each way: median milliseconds, over the non-private one's, and peak memory."""
    ways = _ways(device)
    crops = torch.randn(case.patients, case.crops, *case.crop, device=device)
    steps = {name: way(case.network().to(device).train(), crops) for name, way in ways.items()}
    memory: dict[str, float | None] = {}
    for name, step in steps.items():
        step()  # Adam's memory is there from now on
        memory[name] = _needed(step) if device == "cpu" else _needed_on_gpu(step)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds):
        first = number % len(names)  # who comes after whom matters: caches, freed memory
        for name in names[first:] + names[:first]:
            start = _now(device)
            steps[name]()
            seconds[name].append(_now(device) - start)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return [
        {
            "network": case.name,
            "patients x crops": f"{case.patients} x {case.crops}",
            "way": name,
            "ms": 1000 * medians[name],
            "over non-private": medians[name] / medians["non-private"],
            "round by round": _spread(seconds[name], seconds["non-private"]),
            "peak MiB": memory[name],
        }
        for name in steps
    ]


def _spread(seconds: Sequence[float], base: Sequence[float]) -> str:
    """The least and the largest of the rounds' own ratios."""
    ratios = [one / other for one, other in zip(seconds, base, strict=True)]
    return f"{min(ratios):.3g}..{max(ratios):.3g}"


def _ways(device: str) -> dict[str, Callable[[nn.Module, Tensor], Step]]:
    """Opacus' ways are compared on the CPU alone; a GPU's memory is for a step as large as it."""
    names = WAYS if device == "cpu" else ("non-private", "ours")
    ways = {name: WAYS[name] for name in names}
    return ways | ({_IN_BFLOAT16: dp_ways.ours_in_bfloat16} if _has_bfloat16(device) else {})


def _now(device: str) -> float:
    """Seconds: of this process' CPU time, or by the clock once the GPU has done all it was told."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _needed_on_gpu(step: Step) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _needed(step: Step) -> float | None:
    """MiB that a step takes at its peak beyond what is there before it; Linux alone tells."""
    if not memory.RESETS:
        return None
    before = memory.count_anew()
    step()
    return (memory.peak() - before) / 2**20


def main(*, rounds: int = ROUNDS) -> bool:
    """Measure every case; whether ours is under its bars."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a trainer does; whichever way came first would do it for the others
    try:
        found = [measure(case, rounds) for case in CASES]
    finally:
        torch.set_num_threads(threads)
    gpu = measure(GPU_CASE, rounds, device="cuda") if torch.cuda.is_available() else []
    return results.record(
        "dp_step",
        title="A private step over a non-private step",
        about="Forward, backward, clipping, noise and Adam on the same crops; process CPU time on "
        f"one thread (on a GPU, wall time), ways interleaved, medians of {rounds}. Hooks and ghost "
        "are Opacus'; ghost clips crops, not patients.",
        rows=[row for rows in [*found, gpu] for row in rows],
        goals=[goal for rows in found for goal in _goals(_by_way(rows))] + _gpu_goals(gpu),
        notes=[] if _has_bfloat16("cpu") else [_NO_BFLOAT16],
    )


def _by_way(rows: Sequence[Mapping[str, Cell]]) -> dict[str, Mapping[str, Cell]]:
    return {str(row["way"]): row for row in rows}


def _goals(rows: Mapping[str, Mapping[str, Cell]]) -> list[Goal]:
    mine, base = rows["ours"], rows["non-private"]
    name = str(mine["network"])
    memory, other = mine["peak MiB"], base["peak MiB"]
    goals = [
        Goal(what=f"{name}: ours over non-private, CPU time", figure=_ratio(mine), bar=BAR),
        _bfloat16_goal(name, rows.get(_IN_BFLOAT16)),
    ]
    if isinstance(memory, float) and isinstance(other, float):
        what = f"{name}: ours over non-private, peak memory"
        goals.append(Goal(what=what, figure=memory / other, bar=1.0))
    return goals


def _gpu_goals(rows: Sequence[Mapping[str, Cell]]) -> list[Goal]:
    """The goals of a GPU: not measured where there is none."""
    found = _by_way(rows)
    what = f"{GPU_CASE.name}: ours over non-private"
    return [
        Goal(what=what, figure=_ratio(found.get("ours")), bar=_GPU_BAR),
        _bfloat16_goal(GPU_CASE.name, found.get(_IN_BFLOAT16)),
    ]


def _bfloat16_goal(network: str, row: Mapping[str, Cell] | None) -> Goal:
    what = f"{network}: ours in bfloat16 over non-private in float32"
    return Goal(what=what, figure=_ratio(row), bar=_BFLOAT16_BAR)


def _ratio(row: Mapping[str, Cell] | None) -> float | None:
    ratio = row["over non-private"] if row else None
    assert not isinstance(ratio, str)
    return ratio


#: Said on the page where bfloat16 could only be imitated.
_NO_BFLOAT16: Final = (
    "this processor has no bfloat16 arithmetic (amx_bf16, avx512_bf16), so none was measured"
)


def _has_bfloat16(device: str) -> bool:
    if device != "cpu":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(results.bfloat16_arithmetic())
