"""Proton density and relaxation times of every tissue at 1.5 T and 3 T, and how patients vary.

Sources, by the letter used in the tables below:
  B  BrainWeb's simulator (Cocosco 1997, Kwan 1999): PD, T1, T2, T2* at 1.5 T.
  W  Wansapura 1999, JMRI 9:531: T1 and T2 of white and grey matter in vivo at 3 T.
  S  Stanisz 2005, MRM 54:507: T1 and T2 of tissues at 1.5 T and 3 T (in vitro, longer T1 at 3 T;
     they bound the variation drawn here).
  R  Rooney 2007, MRM 57:308: T1 of CSF is about 4.3 s, whatever the field.
  P  Piechnik 2009, MRM 61:579: T2 of CSF at 3 T, about 1.8 s; used at both fields.
  H  Rohrer 2005, Invest Radiol 40:715: relaxivity of gadopentetate in plasma at 37 degrees C.
  *  our own choice: no one paper gives it at both fields. Deep grey lies between white matter and
     cortex, with a shorter T2 for its iron. Tumour values follow the rule that free water
     lengthens T1 and T2 (necrosis most, then oedema, then cellular tumour); they differ widely
     between patients, so a wide spread is drawn around them.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medsynth_common.labels import TISSUES, Tissue

Table = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """What a pulse sequence sees of each tissue; every array is (len(TISSUES),), times in ms."""

    pd: Table
    t1: Table
    t2: Table
    t2_star: Table

    def with_gadolinium(self, millimolar: Table, *, field: float) -> "Relaxation":
        """Shorten the relaxation times by a contrast agent of `millimolar` in each tissue."""
        r1, r2 = GADOLINIUM[field]
        # Relaxivities are per mM and second; times here are in ms.
        return Relaxation(
            pd=self.pd,
            t1=1 / (1 / self.t1 + r1 * millimolar / 1000),
            t2=1 / (1 / self.t2 + r2 * millimolar / 1000),
            t2_star=1 / (1 / self.t2_star + r2 * millimolar / 1000),
        )

    def with_water(self, share: float) -> "Relaxation":
        """Give every tissue `share` more free water: more protons, longer T1 and T2."""
        return Relaxation(
            pd=self.pd * (1 + 0.2 * share),
            t1=self.t1 * (1 + share),
            t2=self.t2 * (1 + share),
            t2_star=self.t2_star * (1 + share),
        )


#: Field (T) -> tissue -> (PD relative to water, T1 ms, T2 ms, T2* ms, sources).
_LITERATURE: Final[dict[float, dict[Tissue, tuple[float, float, float, float, str]]]] = {
    1.5: {
        Tissue.CSF: (
            1.00,
            4300,
            1790,
            58,
            "PD, T2*: B; T1: R (B's 2569 leaves FLAIR bright); T2: P",
        ),
        Tissue.VENTRICLE: (1.00, 4300, 1790, 58, "as CSF"),
        Tissue.GREY: (0.86, 833, 83, 69, "B"),
        Tissue.WHITE: (0.77, 500, 70, 61, "B"),
        Tissue.DEEP_GREY: (0.84, 700, 75, 55, "*"),
        Tissue.CORE: (0.95, 2100, 240, 120, "*"),
        Tissue.OEDEMA: (0.92, 1150, 150, 90, "*"),
        Tissue.ENHANCING: (0.89, 1050, 108, 70, "*"),
    },
    3.0: {
        Tissue.CSF: (1.00, 4300, 1790, 50, "PD: B; T1: R; T2: P; T2*: *"),
        Tissue.VENTRICLE: (1.00, 4300, 1790, 50, "as CSF"),
        Tissue.GREY: (0.86, 1331, 110, 52, "PD: B; T1, T2: W; T2*: *"),
        Tissue.WHITE: (0.77, 832, 80, 46, "PD: B; T1, T2: W; T2*: *"),
        Tissue.DEEP_GREY: (0.84, 1130, 85, 40, "*"),
        Tissue.CORE: (0.95, 2500, 240, 90, "*"),
        Tissue.OEDEMA: (0.92, 1550, 185, 70, "*"),
        Tissue.ENHANCING: (0.89, 1500, 125, 50, "*"),
    },
}

#: Field (T) -> longitudinal and transverse relaxivity, per mM and second (H).
GADOLINIUM: Final[dict[float, tuple[float, float]]] = {1.5: (4.1, 4.6), 3.0: (3.7, 5.2)}

#: The fields that the tables know, in tesla.
FIELDS: Final = tuple(_LITERATURE)

#: Gadolinium in mM some minutes after 0.1 mmol/kg: high where the blood-brain barrier leaks, a
#: trace where there is only blood (5 % of grey matter, 2 % of white). Ours: blood at 0.5 mM.
_CONCENTRATION: Final = {
    Tissue.GREY: 0.025,
    Tissue.WHITE: 0.01,
    Tissue.DEEP_GREY: 0.02,
    Tissue.CORE: 0.02,
    Tissue.OEDEMA: 0.02,
    Tissue.ENHANCING: 0.55,
}

#: Relative SD between patients of (PD, T1, T2): healthy tissue, and the free water in tumours.
_HEALTHY_SPREAD: Final = (0.01, 0.035, 0.035)
_TUMOUR_SPREAD: Final = (0.02, 0.12, 0.12)
#: Added to the spread by `randomise` = 1; wide enough to cover protocols nobody listed.
_RANDOM_SPREAD: Final = (0.10, 0.35, 0.35)
_TUMOUR_TISSUES: Final = (Tissue.CORE, Tissue.OEDEMA, Tissue.ENHANCING)


def literature(field: float) -> Relaxation:
    """Give the published values at `field` (1.5 or 3.0 T); background is air, PD 0."""
    rows = np.array(
        [
            _LITERATURE[field][tissue][:4] if tissue in _LITERATURE[field] else (0, 1000, 100, 50)
            for tissue in TISSUES
        ],
        dtype=np.float64,
    )
    return Relaxation(pd=rows[:, 0], t1=rows[:, 1], t2=rows[:, 2], t2_star=rows[:, 3])


def patient(field: float, rng: np.random.Generator, *, randomise: float) -> Relaxation:
    """Draw one patient's values around the published ones; `randomise` 0..1 widens the draw."""
    mean = literature(field)
    sources = np.array(
        [_TUMOUR_SPREAD if tissue in _TUMOUR_TISSUES else _HEALTHY_SPREAD for tissue in TISSUES]
    )
    spread = np.hypot(sources, randomise * np.array(_RANDOM_SPREAD))  # (tissue, 3)
    draws = np.exp(spread * np.clip(rng.standard_normal(spread.shape), -2.5, 2.5))
    # One person's cerebrospinal fluid is the same in the ventricles as around the brain.
    draws[Tissue.VENTRICLE] = draws[Tissue.CSF]
    return Relaxation(
        pd=mean.pd * draws[:, 0],
        t1=mean.t1 * draws[:, 1],
        t2=mean.t2 * draws[:, 2],
        t2_star=mean.t2_star * draws[:, 2],
    )


def concentration(rng: np.random.Generator, *, randomise: float) -> Table:
    """Draw a patient's gadolinium in mM of each tissue, (len(TISSUES),)."""
    table = np.array([_CONCENTRATION.get(tissue, 0.0) for tissue in TISSUES])
    draw: Table = table * np.exp((0.2 + 0.4 * randomise) * np.clip(rng.standard_normal(), -2, 2))
    return draw
