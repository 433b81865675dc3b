"""Colours and words that mean the same thing in every picture and table of the report.

The colours keep apart for the common kinds of colour blindness (after Okabe & Ito 2008), and none
of them carries a meaning alone: each has a word, a marker or a line style beside it.
"""

from dataclasses import dataclass
from typing import Final, Literal

from medsynth_common.labels import Contrast, Tissue
from medsynth_common.plan import Stage

LineStyle = Literal["-", "--", ":"]

INK: Final = "#1c2530"
QUIET: Final = "#5b6673"
RULE: Final = "#d8dde3"
PROTECTED: Final = "#0b5c8a"
UNPROTECTED: Final = "#b3261e"
PUBLIC: Final = "#5b6673"

TISSUE_COLOUR: Final = {
    Tissue.BACKGROUND: "#000000",
    Tissue.CSF: "#56b4e9",
    Tissue.VENTRICLE: "#2271b2",
    Tissue.GREY: "#8c8c8c",
    Tissue.WHITE: "#dcdcd2",
    Tissue.DEEP_GREY: "#b9a58a",
    Tissue.CORE: "#d55e00",
    Tissue.OEDEMA: "#009e73",
    Tissue.ENHANCING: "#f0e442",
}
TISSUE_WORD: Final = {
    Tissue.BACKGROUND: "background",
    Tissue.CSF: "CSF",
    Tissue.VENTRICLE: "ventricles",
    Tissue.GREY: "grey matter",
    Tissue.WHITE: "white matter",
    Tissue.DEEP_GREY: "deep grey matter",
    Tissue.CORE: "tumour core (necrotic)",
    Tissue.OEDEMA: "oedema",
    Tissue.ENHANCING: "enhancing tumour",
}
CONTRAST_WORD: Final = {
    Contrast.T1: "T1",
    Contrast.T1GD: "T1 + gadolinium",
    Contrast.T2: "T2",
    Contrast.FLAIR: "FLAIR",
}
STAGE_WORD: Final = {
    Stage.PRETRAIN: "Pre-training on public data",
    Stage.MOMENTS: "Matching tissue intensities (moments)",
    Stage.SEGMENT: "Training the segmenter",
    Stage.ADVERSARIAL: "Training the generator (adversarial)",
    Stage.METRICS: "Measuring at the hospitals, with noise (metrics)",
}


@dataclass(frozen=True, kw_only=True)
class ArmLook:
    """How one arm is named and drawn; an arm without protection is red wherever it stands."""

    word: str
    colour: str
    marker: str
    line: LineStyle


def arm_look(*, protected: bool) -> ArmLook:
    """Give the look of an arm: what matters of it is whether it was private."""
    if protected:
        return ArmLook(word="private", colour=PROTECTED, marker="o", line="-")
    return ArmLook(word="no privacy", colour=UNPROTECTED, marker="D", line="--")
