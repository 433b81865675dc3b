"""Draw the picture of docs/synthesize.md: every kind of edit, before and after, labels and images.

python -m benchmarks.edit_pictures docs/pictures
"""

import sys
from pathlib import Path
from typing import Final

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from benchmarks.phantom_pictures import COLOURS
from medsynth_common.editing import EditKind, apply_all, draw_edits
from medsynth_common.labels import CONTRASTS, Contrast
from medsynth_common.phantom import SITE_SCANNERS, draw_labels, image
from medsynth_common.phantom.anatomy import Labels

_EDGE: Final = 96
_SHOWN: Final = (Contrast.FLAIR, Contrast.T1GD)
_PATIENTS: Final = 2


def main(folder: Path) -> None:
    """Write `edits.png`: a row for each kind of edit, in the slice that changed most."""
    mpl.use("Agg")
    kinds = [kind for kind in EditKind if kind is not EditKind.RANDOM]
    rows = []
    for kind in kinds:
        for patient in range(_PATIENTS):
            tumours = 0 if kind is EditKind.INSERTED else 1
            rng = np.random.default_rng([12, patient])
            before = draw_labels(rng, (_EDGE, _EDGE, _EDGE), tumours=tumours)
            edits = draw_edits(np.random.default_rng([17, patient]), before, kind)
            rows.append((str(kind), before, apply_all(edits, before)))
    folder.mkdir(parents=True, exist_ok=True)
    _picture(rows).savefig(folder / "edits.png", dpi=75)


def _picture(rows: list[tuple[str, Labels, Labels]]) -> Figure:
    across = 2 * (1 + len(_SHOWN))
    height = len(rows) // _PATIENTS
    figure, axes = plt.subplots(
        height, across * _PATIENTS, figsize=(1.5 * across * _PATIENTS, 1.6 * height)
    )
    figure.set_facecolor("black")
    for number, (name, before, after) in enumerate(rows):
        start = across * (number % _PATIENTS)
        cells = axes[number // _PATIENTS][start : start + across]
        z = int(np.argmax((before != after).sum(axis=(0, 1))))
        pictures = [*zip(_slices(before, z), _slices(after, z), strict=True)]
        titles = ["labels", *(contrast.value for contrast in _SHOWN)]
        for place, (title, pair) in enumerate(zip(titles, pictures, strict=True)):
            looks = {"cmap": COLOURS, "vmax": 8} if place == 0 else {"cmap": "gray", "vmax": 1.05}
            for cell, when, shown in zip(cells[2 * place :], ("", " after"), pair, strict=False):
                cell.imshow(shown.T, vmin=0, interpolation="nearest", **looks)
                cell.set_title(f"{name}: {title}{when}", color="white", fontsize=8)
    for cell in axes.ravel():
        cell.invert_yaxis()
        cell.axis("off")
    figure.tight_layout(pad=0.3)
    return figure


def _slices(labels: Labels, z: int) -> list[np.ndarray]:
    """One axial slice of the labels and of the contrasts that a scanner would have taken."""
    taken = image(labels, SITE_SCANNERS[3], np.random.default_rng(5))
    return [labels[:, :, z], *(taken[CONTRASTS.index(contrast)][:, :, z] for contrast in _SHOWN)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
