"""Charts as inline SVG: training curves, Dice with error bars, intensity ridges.

Figures are made without pyplot: no window system, no state shared between reports.
"""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from medsynth_common.labels import CONTRASTS, TISSUES, Contrast, Region, Tissue
from medsynth_server.record import IntensityEvent
from medsynth_server.report.palette import (
    CONTRAST_WORD,
    INK,
    QUIET,
    RULE,
    TISSUE_COLOUR,
    TISSUE_WORD,
    LineStyle,
)

#: What all charts of the report share.
STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": RULE,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "path",
    "svg.hashsalt": "medsynth",  # the same record gives the same bytes
}
WIDTH: Final = 10.4  # inches; the page scales it


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one line or dot is drawn, and what the legend calls it."""

    word: str
    colour: str
    marker: str = ""
    line: LineStyle = "-"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One loss over the rounds of a stage; a value that was not finite is NaN, and a gap."""

    loss: str
    look: Look
    rounds: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class DiceRow:
    """One model's row in the Dice chart: mean and SD per region, None where not measured."""

    name: str
    look: Look
    scores: Mapping[Region, tuple[float, float | None] | None]


def curves(drawn: Sequence[Curve]) -> str:
    """Draw a stage's losses, one panel each, all arms in it; return an image source."""
    losses = list(dict.fromkeys(curve.loss for curve in drawn))
    columns = min(len(losses), 3)
    rows = -(-len(losses) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.1 * rows + 0.3), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel in panels[len(losses) :]:
            panel.set_visible(False)
        for panel, loss in zip(panels, losses, strict=False):
            panel.set_title(loss)
            panel.set_xlabel("round")
            panel.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            panel.yaxis.set_major_locator(MaxNLocator(nbins=4))
            for curve in drawn:
                if curve.loss == loss:
                    _draw_curve(panel, curve)
        _legend(figure, [curve.look for curve in drawn])
        return source(figure)


def _draw_curve(panel: Axes, curve: Curve) -> None:
    few = len(curve.rounds) <= 12
    panel.plot(
        curve.rounds,
        curve.values,
        color=curve.look.colour,
        linestyle=curve.look.line,
        linewidth=1.8,
        marker=curve.look.marker if few else None,
        markersize=4,
    )


def dice(rows: Sequence[DiceRow]) -> str:
    """Draw one panel a region, one line a model: mean Dice with an SD bar."""
    heights = np.arange(len(rows))[::-1]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.36 * len(rows) + 0.9), layout="constrained")
        panels = figure.subplots(1, len(Region), sharey=True)
        for panel, region in zip(panels, Region, strict=True):
            panel.set_title(region.value.capitalize())
            panel.set_xlim(0, 1)
            panel.set_ylim(-0.6, len(rows) - 0.4)
            panel.set_xlabel("Dice (1 is perfect)")
            panel.grid(axis="y", visible=False)
            panel.spines["left"].set_visible(False)
            panel.set_yticks(heights, [row.name for row in rows])
            for height, row in zip(heights, rows, strict=True):
                _draw_score(panel, float(height), row, region)
        for label, row in zip(panels[0].get_yticklabels(), rows, strict=True):
            label.set_color(row.look.colour)
        return source(figure)


def _draw_score(panel: Axes, height: float, row: DiceRow, region: Region) -> None:
    score = row.scores.get(region)
    if score is None:
        panel.text(0.02, height, "not measured", va="center", color=QUIET, fontsize=8)
        return
    mean, sd = score
    if sd is not None:
        low, high = max(0.0, mean - sd), min(1.0, mean + sd)
        panel.plot([low, high], [height] * 2, color=row.look.colour, linewidth=2.2, alpha=0.45)
    panel.plot(mean, height, row.look.marker, color=row.look.colour, markersize=6.5)


def ridges(arms: Sequence[tuple[Look, Sequence[IntensityEvent]]], *, real_word: str) -> str:
    """Draw one site's intensities: a panel a contrast, a ridge a tissue, a line an arm.

    The real voxels are the same whichever arm they are compared with, and are drawn once.
    """
    told = [histogram for _, histograms in arms for histogram in histograms]
    tissues = [t for t in TISSUES if any(h.tissue == t for h in told)]
    contrasts = [c for c in CONTRASTS if any(h.contrast == c for h in told)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.42 * len(tissues) + 1.1), layout="constrained")
        panels = figure.subplots(1, len(contrasts), sharey=True, squeeze=False)[0]
        for panel, contrast in zip(panels, contrasts, strict=True):
            panel.set_title(CONTRAST_WORD[contrast])
            panel.set_xlabel("intensity")
            panel.spines["left"].set_visible(False)
            panel.xaxis.set_major_locator(MaxNLocator(nbins=4))
            panel.grid(axis="y", visible=False)
            middles = [base + 0.3 for base in range(len(tissues))]
            panel.set_yticks(middles, [TISSUE_WORD[t] for t in tissues[::-1]])
            for base, tissue in enumerate(tissues[::-1]):
                _draw_ridge(panel, arms, contrast, tissue, float(base))
        real = Patch(facecolor="#b9c3cd", edgecolor=QUIET, linewidth=0.5, label=real_word)
        _legend(figure, [look for look, _ in arms], real)
        return source(figure)


def _draw_ridge(
    panel: Axes,
    arms: Sequence[tuple[Look, Sequence[IntensityEvent]]],
    contrast: Contrast,
    tissue: Tissue,
    base: float,
) -> None:
    drawn = [
        (look, histogram)
        for look, histograms in arms
        for histogram in histograms
        if (histogram.contrast, histogram.tissue) == (contrast, tissue)
    ]
    peak = max(
        (_shares(bins).max() for _, h in drawn for bins in (h.real, h.synthetic)), default=0.0
    )
    scale = 0.85 / max(peak, 1e-12)
    for place, (look, histogram) in enumerate(drawn):
        edges = np.asarray(histogram.edges)
        centres = (edges[:-1] + edges[1:]) / 2
        if place == 0:
            panel.fill_between(
                centres,
                base,
                base + scale * _shares(histogram.real),
                facecolor=TISSUE_COLOUR[tissue],
                edgecolor=QUIET,
                linewidth=0.5,
            )
        panel.plot(
            centres,
            base + scale * _shares(histogram.synthetic),
            color=look.colour,
            linestyle=look.line,
            linewidth=1.5,
        )


def _shares(counts: Sequence[float]) -> NDArray[np.float64]:
    bins = np.asarray(counts, dtype=np.float64)
    shares: NDArray[np.float64] = bins / max(bins.sum(), 1e-12)
    return shares


def _legend(figure: Figure, looks: Sequence[Look], *more: Artist) -> None:
    lines = [
        Line2D([], [], color=look.colour, linestyle=look.line, marker=look.marker, label=look.word)
        for look in dict.fromkeys(looks)
    ]
    handles = [*more, *lines]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))


def source(figure: Figure) -> str:
    """Turn a figure into an image source that holds all of it."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + b64encode(stream.getvalue()).decode()
