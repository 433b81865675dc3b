"""The release check's chart: how near synthetic volumes and people lie to one another."""

from typing import Final

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from medsynth_common.release_check.result import NearnessFinding
from medsynth_server.report.figures import STYLE, WIDTH, source
from medsynth_server.report.palette import INK, PROTECTED, PUBLIC

_ROWS: Final = (
    ("synthetic → training", PROTECTED, "o"),
    ("held-out → training", INK, "s"),
    ("synthetic → held-out", PUBLIC, "^"),
)


def distances(images: NearnessFinding) -> str:
    """Draw one strip a comparison, one mark a volume; return an image source.

    The marks are spread up and down by rank so that they do not hide one another.
    """
    groups = (images.to_training, images.held_out_to_training, images.to_held_out)
    drawn = [(row, values) for row, values in zip(_ROWS, groups, strict=True) if values]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.55 * len(drawn) + 0.7), layout="constrained")
        panel = figure.subplots()
        panel.set_xlabel("distance to the nearest (0 is the same picture)")
        panel.set_yticks(range(len(drawn))[::-1], [word for (word, _, _), _ in drawn])
        panel.grid(axis="y", visible=False)
        panel.spines["left"].set_visible(False)
        for height, ((_, colour, marker), values) in enumerate(drawn[::-1]):
            ordered = np.sort(values)
            spread = height + 0.26 * np.sin(np.arange(len(ordered)) * 2.4)  # golden angle
            panel.plot(ordered, spread, marker, color=colour, markersize=4, alpha=0.65, mew=0)
            panel.plot([np.median(ordered)] * 2, [height - 0.4, height + 0.4], color=colour, lw=2)
        panel.set_ylim(-0.6, len(drawn) - 0.4)
        panel.set_xlim(0, 1.08 * max(max(values) for _, values in drawn))
        return source(figure)
