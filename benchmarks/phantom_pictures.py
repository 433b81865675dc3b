"""Draw the pictures of docs/phantoms.md: subjects x planes x (label, four contrasts).

python benchmarks/phantom_pictures.py docs/pictures
"""

import sys
from pathlib import Path
from typing import Final

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from medsynth_common.labels import CONTRASTS, TUMOUR
from medsynth_common.phantom import SITE_SCANNERS, Phantom, make_phantom

#: One colour for each `Tissue`, in order.
COLOURS: Final = ListedColormap(
    [
        "#000000",
        "#3a6ea5",
        "#5fd0ff",
        "#9a9a9a",
        "#f2f2f2",
        "#c9a26b",
        "#7a1fa2",
        "#3fae49",
        "#ff4d2e",
    ]
)
_PLANES: Final = {"sagittal": 0, "coronal": 1, "axial": 2}


def main(folder: Path) -> None:
    """Write one picture for each grid, and one of the six sites."""
    folder.mkdir(parents=True, exist_ok=True)
    for edge in (48, 96, 128):
        phantoms = {
            f"patient {seed}, {scanner.name}": make_phantom(
                seed, (edge, edge, edge), scanner, tumours=1
            )
            for seed, scanner in ((1, SITE_SCANNERS[3]), (8, SITE_SCANNERS[1]))
        }
        _save(_picture(phantoms, tuple(_PLANES)), folder / f"phantom-{edge}.png")
    sites = {s.name: make_phantom(8, (96, 96, 96), s, tumours=1) for s in SITE_SCANNERS}
    _save(_picture(sites, ("axial",)), folder / "phantom-sites.png")


def _picture(phantoms: dict[str, Phantom], planes: tuple[str, ...]) -> Figure:
    rows = len(phantoms) * len(planes)
    figure, axes = plt.subplots(rows, 5, figsize=(10, 2 * rows), squeeze=False, facecolor="black")
    pictures = iter(axes)
    for name, phantom in phantoms.items():
        for plane in planes:
            row = next(pictures)
            slices = _slices(phantom, _PLANES[plane])
            row[0].set_title(f"{name}: {plane}", color="white", fontsize=6)
            row[0].imshow(slices[0].T, cmap=COLOURS, vmin=0, vmax=8, interpolation="nearest")
            for cell, contrast, values in zip(row[1:], CONTRASTS, slices[1:], strict=True):
                cell.set_title(contrast.value, color="white", fontsize=6)
                cell.imshow(values.T, cmap="gray", vmin=0, vmax=1.05)
            for cell in row:
                cell.invert_yaxis()
                cell.axis("off")
    figure.tight_layout(pad=0.3)
    return figure


def _slices(phantom: Phantom, axis: int) -> list[np.ndarray]:
    """Cut labels and contrasts through the middle of the tumour."""
    middle = np.median(np.argwhere(np.isin(phantom.labels, TUMOUR)), axis=0).astype(int)
    return [np.take(v, middle[axis], axis=axis) for v in (phantom.labels, *phantom.image)]


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
