"""Preparing one patient of four contrasts, 240x240x155 at 1 mm, beside MONAI's plain chain.

Ours turns, finds the brain, clusters tissues where no anatomy map is given, resamples with
anti-aliasing and keeps every lesion; the chain loads, turns, crops, scales and resamples. Each
run is a process of its own on one thread; they alternate, so that a busy machine slows both, and
medians of process CPU time are compared. Printed beside: peak memory, and how long it takes when
the patient was prepared before.
"""

import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
from scipy import ndimage

from benchmarks import memory, results
from benchmarks.results import Goal
from medsynth_common.labels import BRATS_VALUE_OF, CONTRASTS
from medsynth_common.phantom import SITE_SCANNERS, make_phantom
from medsynth_common.volumes import write_volume

#: Preparing may take this many times what the plain chain takes, which does a part of it.
BAR: Final = 2.0
#: What it may take in absolute figures: seconds on one core, GiB, and seconds from the cache.
SECONDS, GIBIBYTES, AGAIN_SECONDS = 6.0, 1.5, 0.2
ROUNDS: Final = 5
GRID: Final = (128, 128, 128)
_SHAPE: Final = (240, 240, 155)
_ENDINGS: Final = ("_t1", "_t1ce", "_t2", "_flair")


def write_patient(folder: Path) -> None:
    """Write a phantom enlarged to a clinical grid, with noise and whole numbers, as BraTS has."""
    made = make_phantom(7, (60, 60, 40), SITE_SCANNERS[0], tumours=1)
    cut = tuple(slice(0, side) for side in _SHAPE)
    labels = made.labels.repeat(4, 0).repeat(4, 1).repeat(4, 2)[cut]
    values = np.zeros(_SHAPE, dtype=np.uint8)
    for tissue, value in BRATS_VALUE_OF.items():
        values[labels == tissue] = value
    noise = np.random.default_rng(0)
    for ending, contrast in zip(_ENDINGS, made.image, strict=True):
        image = ndimage.zoom(contrast, 4, order=1)[cut] * 800 + noise.normal(0, 8, _SHAPE)
        whole = np.where(labels > 0, image.round().clip(min=0), 0).astype(np.float32)
        path = folder / f"{folder.name}{ending}.nii.gz"
        write_volume(path, whole, np.eye(4), description="benchmark")
    write_volume(folder / f"{folder.name}_seg.nii.gz", values, np.eye(4), description="benchmark")


def ours(root: Path) -> None:
    """Prepare the patient as a site does, or find it prepared."""
    from medsynth_common.dataset import DataConfig
    from medsynth_common.dataset.source import FolderSource, load_patients

    source = FolderSource(root=str(root / "data"), data=DataConfig(), site="a", patients=("p",))
    (volume,) = load_patients(source, GRID, cache=root / "cache")
    volume.image.mean()  # mapped from disk: now it was read as well


def chain(root: Path) -> None:
    """Prepare the patient with MONAI's transforms."""
    from monai import transforms as t

    keys = [str(contrast) for contrast in CONTRASTS]
    files = {
        key: str(root / "data" / "a" / "p" / f"p{ending}.nii.gz")
        for key, ending in zip([*keys, "label"], [*_ENDINGS, "_seg"], strict=True)
    }
    t.Compose(
        [
            t.LoadImaged([*keys, "label"], ensure_channel_first=True),
            t.Orientationd([*keys, "label"], axcodes="RAS", labels=None),
            t.ConcatItemsd(keys, "image"),
            t.CropForegroundd(["image", *keys, "label"], source_key="image"),
            t.ScaleIntensityRangePercentilesd("image", 0, 99, 0, 1, clip=True, channel_wise=True),
            t.Resized(
                ["image", "label"], GRID, mode=["trilinear", "nearest"], anti_aliasing=[True, False]
            ),
        ]
    )(files)


def _run(what: str, root: Path) -> dict[str, float]:
    """Run one of them in a process of its own; return its own figures."""
    command = [sys.executable, "-m", "benchmarks.prepare_patient", what, str(root)]
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **threads}, capture_output=True, text=True, check=True
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _measure(what: str, root: Path) -> dict[str, float]:
    # Imports are paid for before the clock starts, by both.
    for module in ("torch", "monai.transforms", "medsynth_common.dataset.source"):
        importlib.import_module(module)
    before, began = time.process_time(), time.perf_counter()
    {"ours": ours, "chain": chain}[what](root)
    return {
        "cpu": time.process_time() - before,
        "wall": time.perf_counter() - began,
        "gibibytes": memory.peak() / 2**30,
    }


def main(*, rounds: int = ROUNDS) -> bool:
    """Measure; whether the ratio and every figure is under its bar."""
    figures: dict[str, list[dict[str, float]]] = {"chain": [], "first": [], "again": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_patient(root / "data" / "a" / "p")
        time.sleep(3)  # files that were just written are not trusted to stay as they are
        for _ in range(rounds):
            shutil.rmtree(root / "cache", ignore_errors=True)
            for name, what in (("chain", "chain"), ("first", "ours"), ("again", "ours")):
                figures[name].append(_run(what, root))
    found = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in figures.items()
    }
    first, again = found["first"], found["again"]
    names = {"chain": "MONAI's chain", "first": "ours", "again": "ours, prepared before"}
    return results.record(
        "prepare_patient",
        title="Preparing a patient, beside MONAI's plain chain",
        about=f"A patient of 240 x 240 x 155 to {GRID[0]}^3; one thread, medians of {rounds}; "
        "peak memory with all libraries.",
        rows=[
            {
                "": names[name],
                "CPU s": figure["cpu"],
                "wall s": figure["wall"],
                "peak GiB": figure["gibibytes"],
            }
            for name, figure in found.items()
        ],
        goals=[
            Goal(
                what="ours over MONAI's chain", figure=first["cpu"] / found["chain"]["cpu"], bar=BAR
            ),
            Goal(what="ours", figure=first["cpu"], bar=SECONDS, unit="s"),
            Goal(what="ours, peak memory", figure=first["gibibytes"], bar=GIBIBYTES, unit="GiB"),
            Goal(what="ours, prepared before", figure=again["cpu"], bar=AGAIN_SECONDS, unit="s"),
        ],
    )


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], Path(sys.argv[2]))))
