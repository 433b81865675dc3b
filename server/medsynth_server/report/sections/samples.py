"""Pictures: the label map, and real beside synthetic in four contrasts."""

from medsynth_common.labels import CONTRASTS
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.palette import CONTRAST_WORD
from medsynth_server.report.pictures import PATIENTS_SHOWN, legend, plates, tissues_shown
from medsynth_server.report.section import Section


def samples(folder: RunFolder) -> Section:
    """Show the sample volumes."""
    title = "What the images look like"
    if folder.samples is None:
        return Section(
            name="samples", title=title, missing="No sample volumes have been written yet."
        )
    return Section(
        name="samples",
        title=title,
        facts={
            "source": folder.samples.source,
            "held_out": folder.samples.held_out,
            "plates": plates(folder.samples),
            "contrasts": [CONTRAST_WORD[contrast] for contrast in CONTRASTS],
            "legend": legend(tissues_shown(folder.samples)),
            "patients": len(folder.samples.sites),
            "shown": min(len(folder.samples.sites), PATIENTS_SHOWN),
        },
    )
