"""The table of Shin et al. 2018 (arXiv 1807.10225), as we have it: whole-tumour Dice, mean and SD.

These figures were not re-checked against the printed paper, and every place that shows them says
so. They are of BRATS 2015 patients and other segmenters: a layout to compare with, not a goal.
"""

from collections.abc import Mapping
from typing import Final

from medsynth_server.table.cells import Column

SOURCE: Final = "Shin et al. 2018 (arXiv 1807.10225)"
CAVEAT: Final = "as we have them, not re-checked against the printed paper"

_ORDER: Final = (Column.REAL, Column.BOTH, Column.SYNTHETIC, Column.TUNED)


def _row(*values: tuple[float, float]) -> Mapping[Column, tuple[float, float]]:
    return dict(zip(_ORDER, values, strict=True))


#: Row name to (mean, SD) of each column; there the last column saw 10 % of the real patients.
PAPER: Final = {
    "GAN-based, no augmentation": _row((0.64, 0.14), (0.80, 0.07), (0.25, 0.14), (0.80, 0.18)),
    "GAN-based, augmentation": _row((0.81, 0.13), (0.82, 0.08), (0.44, 0.16), (0.81, 0.09)),
    "Wang et al., augmentation": _row((0.85, 0.15), (0.86, 0.09), (0.66, 0.13), (0.84, 0.15)),
}
