"""How well are tissues found: two forms of network, two kinds of training, and clustering.

    python -m benchmarks.anatomy /path/to/people --picture docs/pictures

The people are pairs `X_t1.nii.gz` (brain alone) and `X_seg.nii.gz` (DLMUSE labels), such as
IXI's. The first two thirds by name are trained on beside phantoms, or not at all; the last third is
measured. Then phantoms with a tumour, of scanners that no training drew. Networks are kept in
`runs/bench/anatomy`.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.phantom_pictures import COLOURS
from medsynth_common.anatomy import VOXEL_MM, TissueNetwork
from medsynth_common.dataset.brain import bounding_box
from medsynth_common.dataset.clustering import tissue_clusters
from medsynth_common.dataset.prepare import to_tissue
from medsynth_common.durable import write_json
from medsynth_common.labels import CONTRASTS, TUMOUR, Contrast, Tissue
from medsynth_common.phantom import SITE_SCANNERS, make_phantom
from medsynth_common.volumes import read_volume
from medsynth_server.anatomy.pretrain import AnatomyPlan, pretrain_anatomy
from medsynth_server.anatomy.training import Form

#: What DLMUSE's numbers are here; the brainstem and the ventral diencephalon count as white matter.
DLMUSE: Final[Mapping[int, Tissue]] = (
    dict.fromkeys((1, 46), Tissue.CSF)
    | dict.fromkeys((4, 11, 49, 50, 51, 52), Tissue.VENTRICLE)
    | dict.fromkeys((35, 40, 41, 61, 62, 69, *range(81, 96)), Tissue.WHITE)
    | dict.fromkeys((31, 32, 38, 39, 47, 48, 71, 72, 73, *range(100, 208)), Tissue.GREY)
    | dict.fromkeys((23, 30, 36, 37, *range(55, 61), 75, 76), Tissue.DEEP_GREY)
)
#: What is compared; the ventricles and the deep nuclei also for themselves.
GROUPS: Final = {
    "CSF": (Tissue.CSF, Tissue.VENTRICLE),
    "grey": (Tissue.GREY, Tissue.DEEP_GREY),
    "white": (Tissue.WHITE,),
    "ventricles": (Tissue.VENTRICLE,),
    "deep grey": (Tissue.DEEP_GREY,),
}
FORMS: Final[tuple[Form, ...]] = ("plain", "pix2pix")
#: Contrasts that a phantom is shown with.
SUBSETS: Final = {
    "all four": CONTRASTS,
    "T1": (Contrast.T1,),
}
_SHAPE: Final = (76, 92, 76)
_PHANTOM_SEED: Final = 900_000

Labels = NDArray[np.uint8]
Labeller = Callable[["Case"], Labels]


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A head to label: contrasts (4, x, y, z), those it lacks zero, and its true tissues."""

    name: str
    image: NDArray[np.float32]
    labels: Labels
    affine: NDArray[np.float64]

    @property
    def tumour(self) -> Labels:
        """The tumour's classes, 0 elsewhere, as a hospital has them."""
        return np.where(np.isin(self.labels, TUMOUR), self.labels, np.uint8(0))

    def seen_with(self, contrasts: Sequence[Contrast]) -> "Case":
        """The same head with other contrasts left out."""
        kept = np.array([one in contrasts for one in CONTRASTS]).reshape(-1, 1, 1, 1)
        image = (self.image * kept).astype(np.float32)
        return Case(name=self.name, image=image, labels=self.labels, affine=self.affine)


def people(folder: Path) -> list[Case]:
    """Read the pairs of `folder`, cut to the brain's box."""
    cases = []
    for path in sorted(folder.glob("*_t1.nii.gz")):
        t1 = read_volume(path)
        seg = read_volume(path.with_name(path.name.replace("_t1", "_seg")))
        box = bounding_box(t1.data > 0)
        brain = t1.data[box] > 0
        labels = np.where(brain, np.maximum(to_tissue(seg.data[box], DLMUSE), 1), 0)
        image = np.zeros((len(CONTRASTS), *brain.shape), dtype=np.float32)
        image[0] = t1.data[box]
        name = path.name.removesuffix("_t1.nii.gz")
        cases.append(Case(name=name, image=image, labels=labels.astype(np.uint8), affine=t1.affine))
    return cases


def phantoms(count: int) -> Iterator[Case]:
    """Draw heads with a tumour on the six scanners of the simulated sites."""
    for number in range(count):
        scanner = SITE_SCANNERS[number % len(SITE_SCANNERS)]
        made = make_phantom(_PHANTOM_SEED + number, _SHAPE, scanner, tumours=1)
        affine = np.diag([VOXEL_MM, VOXEL_MM, VOXEL_MM, 1.0])
        yield Case(name=scanner.name, image=made.image, labels=made.labels, affine=affine)


def by_network(network: TissueNetwork) -> Labeller:
    """Label with a network."""
    return lambda case: network.label(case.image, case.labels > 0, case.tumour, affine=case.affine)


def by_clustering(case: Case) -> Labels:
    """Label by clustering; for T1 alone, it stands for FLAIR too, and upside down for T2."""
    image = case.image
    if not image[1:].any():
        t1 = image[0]
        image = np.stack([t1, t1, (t1.max() - t1) * (t1 > 0), t1])
    spacing = (VOXEL_MM,) * 3
    return tissue_clusters(image, case.labels > 0, case.tumour, spacing=spacing)


def mean_dice(cases: Sequence[Case], label: Labeller) -> dict[str, float]:
    """Give each group's Dice outside tumours, the mean over heads."""
    scores: dict[str, list[float]] = {group: [] for group in GROUPS}
    for case in cases:
        found = label(case)
        healthy = case.tumour == 0
        for group, tissues in GROUPS.items():
            a = np.isin(found, tissues) & healthy
            b = np.isin(case.labels, tissues) & healthy
            scores[group].append(2 * int((a & b).sum()) / int(a.sum() + b.sum()))
    return {group: float(np.mean(values)) for group, values in scores.items()}


def train(form: Form, learners: Path | None, folder: Path, options: Mapping[str, int]) -> Path:
    """Train a network, or find it trained."""
    name = f"{form}-{'people' if learners else 'phantoms'}-{options['steps']}.safetensors"
    if not (folder / name).exists():
        public = () if learners is None else (learners,)
        plan = AnatomyPlan.model_validate({"form": form, **options})
        pretrain_anatomy(plan, folder / name, public=public)
    return folder / name


def write_learners(source: Path, names: Sequence[str], folder: Path) -> Path:
    """Make a public folder of the people to learn from: links, and what its numbers mean."""
    folder = folder / source.name
    folder.mkdir()
    for name in names:
        for ending in ("_t1.nii.gz", "_seg.nii.gz"):
            (folder / f"{name}{ending}").symlink_to((source / f"{name}{ending}").absolute())
    values = "".join(f'{number} = "{tissue.name.lower()}"\n' for number, tissue in DLMUSE.items())
    (folder / "LABELS.toml").write_text(
        'source = "public"\nlicence = "CC BY-SA 3.0; labels: SBIA"\n'
        f'credit = "IXI; DLMUSE"\n[values]\n0 = "background"\n{values}'
    )
    return folder


def main() -> None:
    """Train, measure, print two tables, and write them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.anatomy", description=__doc__)
    parser.add_argument("people", type=Path, help="folder of pairs")
    parser.add_argument("--steps", type=int, default=AnatomyPlan().steps)
    parser.add_argument("--phantoms", type=int, default=6, help="to measure on")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--picture", type=Path, help="folder for anatomy.png")
    given = parser.parse_args()
    torch.set_num_threads(1)
    everyone = people(given.people)
    count = len(everyone) * 2 // 3
    measured, drawn = everyone[count:], list(phantoms(given.phantoms))
    labellers: dict[str, Labeller] = {"clustering": by_clustering}
    with tempfile.TemporaryDirectory() as scratch:
        names = [case.name for case in everyone[:count]]
        learners = write_learners(given.people, names, Path(scratch))
        for public in (None, learners):
            for form in FORMS:
                path = train(form, public, given.out / "anatomy", {"steps": given.steps})
                name = f"{form}, phantoms" + (f" + {count} people" if public else "")
                labellers[name] = by_network(TissueNetwork.read(path))
    results = {name: {"people": mean_dice(measured, label)} for name, label in labellers.items()}
    for name, label in labellers.items():
        for subset, contrasts in SUBSETS.items():
            seen = [case.seen_with(contrasts) for case in drawn]
            results[name][subset] = mean_dice(seen, label)
    Console(width=120).print(_table(f"{len(measured)} people, T1 alone", results, ("people",)))
    Console(width=120).print(
        _table(
            f"{len(drawn)} phantoms with a tumour, scanners not trained on", results, tuple(SUBSETS)
        )
    )
    write_json(given.out / "anatomy.json", {"steps": given.steps, "results": results})
    if given.picture:
        pictured = [measured[0], measured[-1], drawn[0].seen_with((Contrast.T1,))]
        plain = {name: label for name, label in labellers.items() if not name.startswith("pix")}
        _draw(pictured, plain, given.picture)


def _table(
    title: str, results: Mapping[str, Mapping[str, Mapping[str, float]]], columns: Sequence[str]
) -> Table:
    table = Table(title=f"Mean Dice: {title}")
    for heading in ("", "shown", *GROUPS):
        table.add_column(heading, justify="right" if heading in GROUPS else "left")
    for name, scores in results.items():
        for column in columns:
            if column in scores:
                numbers = [f"{scores[column][group]:.3f}" for group in GROUPS]
                table.add_row(name, "T1" if column == "people" else column, *numbers)
    return table


def _draw(cases: Sequence[Case], labellers: Mapping[str, Labeller], folder: Path) -> None:
    mpl.use("Agg")
    columns = ("T1", "true", *labellers)
    figure, axes = plt.subplots(
        2 * len(cases), len(columns), figsize=(2 * len(columns), 4 * len(cases)), facecolor="black"
    )
    for number, case in enumerate(cases):
        found = [label(case) for label in labellers.values()]
        for row, axis in enumerate((2, 1)):
            middle = int(case.labels.shape[axis] * (0.52 if axis == 2 else 0.45))
            for cell, title, volume in zip(
                axes[2 * number + row], columns, (case.image[0], case.labels, *found), strict=True
            ):
                cut = np.take(volume, middle, axis=axis).T
                if title == "T1":
                    cell.imshow(cut, cmap="gray", origin="lower", vmax=np.percentile(volume, 99.8))
                else:
                    cell.imshow(
                        cut, cmap=COLOURS, vmin=0, vmax=8, origin="lower", interpolation="nearest"
                    )
                cell.set_title(f"{title} ({case.name})", color="white", fontsize=6)
                cell.axis("off")
    figure.tight_layout(pad=0.3)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "anatomy.png", dpi=75)
    plt.close(figure)


if __name__ == "__main__":
    main()
