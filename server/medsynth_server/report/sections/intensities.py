"""Intensity histograms: does each tissue have the brightness it has at that hospital?"""

from typing import Final

from medsynth_server.report.figures import Look, ridges
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.palette import arm_look
from medsynth_server.report.section import Section

SITES_SHOWN: Final = 4


def intensities(folder: RunFolder) -> Section:
    """Draw the histograms of the first sites."""
    title = "Tissue intensities"
    if not folder.histograms:
        return Section(
            name="intensities", title=title, missing="No intensity histograms have been recorded."
        )
    real = folder.samples.source if folder.samples else "real or phantom"
    sites = list(dict.fromkeys(event.site for event in folder.histograms))
    shown = sites[:SITES_SHOWN]
    return Section(
        name="intensities",
        title=title,
        facts={
            "drawn": {site: _drawn(folder, site, real_word=real) for site in shown},
            "real": real,
            "sites": len(sites),
            "shown": len(shown),
        },
    )


def _drawn(folder: RunFolder, site: str, *, real_word: str) -> str:
    arms = []
    for arm in folder.arms:
        told = [event for event in folder.histograms if (event.arm, event.site) == (arm, site)]
        if told:
            look = arm_look(protected=folder.protects(arm))
            word = f"synthetic, {look.word}"
            arms.append((Look(word=word, colour=look.colour, line=look.line), told))
    return ridges(arms, real_word=real_word)
