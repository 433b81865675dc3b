"""Making a set beside the bare forward pass of the generator, on the same volumes.

`synthesize` reads or draws label maps, paints, compresses and writes six files a volume, durably.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from benchmarks import results
from benchmarks.results import Cell, Goal
from medsynth_common.durable import write_bytes
from medsynth_common.labels import one_hot
from medsynth_common.learning.painting import paint
from medsynth_common.learning.variation import Variation
from medsynth_common.phantom import SITE_SCANNERS, make_phantom
from medsynth_common.set_layout import Layout, phantom_affine
from medsynth_common.style import Style, stack
from medsynth_common.tensors import pack, with_prefix
from medsynth_common.volumes import write_volume
from medsynth_server.config import RunConfig, dump_config, parse_config
from medsynth_server.label_source import STATEMENT
from medsynth_server.model import Model
from medsynth_server.record import Arm, ArmPrivacy, PrivacyStatement, SitePrivacy, write_privacy
from medsynth_server.synthesize import Wish, synthesize

BAR: Final = 0.9
VOLUMES: Final = 16
ROUNDS: Final = 3
_GRID: Final = (48, 48, 48)


def write_run(folder: Path, config: RunConfig) -> Model:
    """Write as much of a finished run as painting needs; its generator is untrained."""
    model = Model.fresh(config.networks, seed=1)
    styles = with_prefix("style.site-1", Style.neutral().tensors())
    write_bytes(folder / "weights" / "generator.safetensors", pack(model.part("generator")))
    write_bytes(folder / "weights" / "styles.safetensors", pack(styles))
    variation = Variation.independent().tensors()
    write_bytes(
        folder / "weights" / "variation.safetensors", pack(with_prefix("variation", variation))
    )
    write_bytes(folder / "config.toml", dump_config(config).encode())
    spent = SitePrivacy(epsilon=None, cap=None, delta=1e-3, patients_declared=60, mechanisms=())
    unprotected = ArmPrivacy(protected=False, sites={"site-1": spent})
    write_privacy(
        folder / "privacy.json", PrivacyStatement(seeded=True, arms={Arm.PRIVATE: unprotected})
    )
    return model


def write_maps(folder: Path) -> None:
    """Write label maps that may be used."""
    for index in range(VOLUMES):
        labels = make_phantom(index, _GRID, SITE_SCANNERS[0], tumours=1).labels
        path = folder / f"map-{index:03d}.nii.gz"
        write_volume(path, labels, phantom_affine(_GRID), description="benchmark")
    (folder / STATEMENT).write_text('source = "synthetic"\nlicence = "Apache-2.0"\n')


def _bare(model: Model, threads: int) -> Callable[[], object]:
    """Paint as many volumes one after the other, each on all threads, and drop them."""
    generator = model.generator(torch.device("cpu")).eval()
    labels = torch.from_numpy(make_phantom(1, _GRID, SITE_SCANNERS[0]).labels)
    classes = one_hot(labels.unsqueeze(0))
    style, draw = stack([Style.neutral()]), torch.Generator()

    def work() -> None:
        torch.set_num_threads(threads)  # making a set leaves another number behind
        with torch.no_grad():
            for _ in range(VOLUMES):
                paint(generator, classes, style, draw)

    return work


def main() -> bool:
    """Measure; whether a set takes hardly longer than painting it."""
    config = parse_config({"grid": list(_GRID), "networks": {}}, name="benchmark")
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="medsynth-synthesis-") as name:
        root = Path(name)
        model = write_run(root / "run", config)
        write_maps(root / "maps")

        def made(labels: Path | None) -> Callable[[], object]:
            wish = Wish(
                count=VOLUMES,
                edits=(),
                style="mix",
                labels=labels,
                layout=Layout.BRATS,
                licence="CC0-1.0",
                seed=1,
            )
            return lambda: synthesize(root / "run", root / f"set-{time.monotonic_ns()}", wish)

        ways = {
            "bare forward pass": _bare(model, config.threads),
            "a set from a folder of label maps": made(root / "maps"),
            "a set from label maps that are drawn": made(None),
        }
        for number in range(ROUNDS + 1):
            for way, work in ways.items():
                began = time.perf_counter()
                work()
                if number:  # the first warms up
                    seconds.setdefault(way, []).append(time.perf_counter() - began)
    medians = {way: statistics.median(each) for way, each in seconds.items()}
    bare, folder, _ = medians.values()
    rows: list[dict[str, Cell]] = [
        {"way": way, "volumes/s": VOLUMES / taken, "over bare": bare / taken}
        for way, taken in medians.items()
    ]
    return results.record(
        "synthesis",
        title="Making a set, beside the bare forward pass of the generator",
        about=f"{VOLUMES} volumes of {_GRID[0]}^3 by the CPU preset, {config.threads} threads, "
        f"{math.prod(_GRID) * 18 / 1e6:.1f} MB of voxels each before compression; wall time, "
        f"medians of {ROUNDS}, ways interleaved.",
        rows=rows,
        goals=[
            Goal(
                what="a set from a folder, over the bare forward pass",
                figure=bare / folder,
                bar=BAR,
                least=True,
            )
        ],
    )
