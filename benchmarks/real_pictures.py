"""Draw the pictures of docs/synthesize.md that are of real patients and of what was learned there.

    python -m benchmarks.real_pictures DATA WORK docs/pictures

DATA holds `ms_lesions/` and `tcga_lgg/` as published. WORK keeps the mended copy and the run, which
goes on where it stopped: `deploy/examples/real_pairs.toml`, without privacy, on public patients.
Both are hospitals of one run; ms-lesions holds one patient out.

The rows below a real one are painted from a patient's own label map: here alone, since these are
public. Credit lines are drawn into the pictures.
"""

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.phantom_pictures import COLOURS
from medsynth_common.dataset import DataConfig, examine, find_patients
from medsynth_common.dataset.mend import write_prepared
from medsynth_common.editing import EditKind, apply_all, draw_edits
from medsynth_common.labels import CONTRASTS, TUMOUR
from medsynth_common.learning.label_bank import label_bank
from medsynth_common.tensors import unpack
from medsynth_server.config import RunConfig, load_config, read_settings
from medsynth_server.model import Model
from medsynth_server.run_folder import RunFolder
from medsynth_server.simulate import simulate
from medsynth_server.simulated_sites import SimulatedSite, folder_sites
from medsynth_server.synthesis import Painter
from medsynth_server.synthesize import PAINTED_WITH

_EXAMPLES: Final = Path(__file__).parents[1] / "deploy" / "examples"
#: Each data set as a hospital: its folder, and whom to credit.
_SITES: Final = {
    "ms-lesions": (
        "ms_lesions",
        "Real: Lesjak et al. 2017, doi:10.1007/s12021-017-9348-7, CC BY. Changed: resampled.",
    ),
    "tcga-lgg": (
        "tcga_lgg",
        "Real: TCIA TCGA-LGG, doi:10.7937/K9/TCIA.2016.L4LTD3TK, CC BY 3.0; tumour map automatic. "
        "Changed: resampled.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a picture: a label map and four contrasts of it, at the axial slice `z`."""

    name: str
    labels: Tensor
    image: Tensor
    z: int


def main(data: Path, work: Path, pictures: Path) -> None:
    """Train, or go on, and write `real-SITE.png` for each data set."""
    mpl.use("Agg")
    config = load_config(_EXAMPLES / "real_pairs.toml", {})
    patients = prepared(data, work / "patients")
    run = simulate(config, work / "run", data=patients).folder
    pictures.mkdir(parents=True, exist_ok=True)
    for site in folder_sites(patients, config):
        rows = list(_rows(site, painter(run, config), config))
        for real, same_map in pairwise(rows):
            if real.name.startswith("real"):
                print(f"{site.name}, {real.name}: mean distance {_distance(real, same_map):.3f}")
        figure = _picture(rows, _SITES[site.name][1])
        figure.savefig(pictures / f"real-{site.name}.png", dpi=80)


def prepared(data: Path, out: Path) -> Path:
    """Write both data sets, mended, as two hospitals in one folder."""
    for site, (folder, _) in _SITES.items():
        if (out / site).exists():
            continue
        table = read_settings(_EXAMPLES / f"{folder}.toml")["data"]
        config = DataConfig.model_validate(table)
        examination = examine(find_patients(data / folder, config), config)
        examination.raise_errors()
        copy = write_prepared(data / folder, examination, config, out.parent / f"mended-{site}")
        out.mkdir(exist_ok=True)
        (out / site).mkdir()
        for patient in sorted(copy.folder.glob("sites/*/*")):
            patient.rename(out / site / patient.name)
        shutil.rmtree(copy.folder)
    return out


def painter(run: RunFolder, config: RunConfig) -> Painter:
    """Paint with the run's own weights, whether its set was released or not."""
    files = [run.weights / f"{part}.safetensors" for part in PAINTED_WITH]
    tensors = {name: t for file in files for name, t in unpack(file.read_bytes()).items()}
    model = Model(networks=config.networks, tensors=tensors)
    return Painter(model, [*_SITES], grid=config.grid, device=torch.device("cpu"))


def _rows(site: SimulatedSite, paint: Painter, config: RunConfig) -> Iterator[Row]:
    def synthetic(name: str, labels: Tensor, z: int) -> Row:
        draw = torch.Generator().manual_seed(4)
        image = paint.paint(labels[None], [site.name], draw)[0]
        return Row(name=f"synthetic: {name}", labels=labels, image=image, z=z)

    known = site.load_trained_on(config, count=2)
    held_out = site.load_held_out(config)
    for volume in (known + held_out)[-2:]:
        seen = "trained on" if any(volume is one for one in known) else "held out"
        z = _fullest(np.isin(volume.labels.numpy(), TUMOUR))
        yield Row(name=f"real ({seen})", labels=volume.labels, image=volume.image, z=z)
        yield synthetic("same map", volume.labels, z)
    for kind in (EditKind.MOVED, EditKind.LARGER):
        before = known[-1].labels.numpy()
        edits = draw_edits(np.random.default_rng(6), before, kind)
        after = apply_all(edits, before)
        changed = np.isin(after, TUMOUR) & ~np.isin(before, TUMOUR)
        yield synthetic(f"tumour {kind}", torch.from_numpy(after), _fullest(changed))
    drawn = label_bank(3, 1, config.grid)[0]
    yield synthetic("a phantom's map", drawn, _fullest(np.isin(drawn.numpy(), TUMOUR)))


def _distance(real: Row, synthetic: Row) -> float:
    """Mean absolute difference inside the brain, over all contrasts."""
    return float((real.image - synthetic.image).abs()[:, real.labels > 0].mean())


def _fullest(mask: NDArray[np.bool_]) -> int:
    """Find the axial slice with the most voxels of a mask (x, y, z)."""
    return int(mask.sum(axis=(0, 1)).argmax())


def _picture(rows: Sequence[Row], credit: str) -> Figure:
    figure, axes = plt.subplots(len(rows), 5, figsize=(10, 2.05 * len(rows)), facecolor="black")
    for cells, row in zip(axes, rows, strict=True):
        cells[0].imshow(
            row.labels[:, :, row.z].T, cmap=COLOURS, vmin=0, vmax=8, interpolation="nearest"
        )
        cells[0].set_title(row.name, color="white", fontsize=7)
        for cell, contrast, values in zip(cells[1:], CONTRASTS, row.image, strict=True):
            cell.imshow(values[:, :, row.z].T, cmap="gray", vmin=0, vmax=1.05)
            cell.set_title(contrast.value, color="white", fontsize=7)
        for cell in cells:
            cell.invert_yaxis()
            cell.axis("off")
    figure.tight_layout(pad=0.3, rect=(0, 0.02, 1, 1))
    figure.text(0.01, 0.004, credit, color="white", fontsize=6)
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
