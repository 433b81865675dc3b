"""Scanners: what makes the same patient look different at two hospitals."""

from collections.abc import Iterable
from typing import Annotated, Final, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medsynth_common.errors import BadInput, Problem
from medsynth_common.phantom.signal import (
    GradientEcho,
    InversionRecovery,
    SpinEcho,
    T1Sequence,
)
from medsynth_common.phantom.tissue import FIELDS

_CSF_T1: Final = 4300.0


class Scanner(BaseModel):
    """A scanner and the protocol a hospital runs on it; frozen, checked when made, JSON-able.

    Attributes:
        name: how reports call it.
        field: main field in tesla, 1.5 or 3.
        t1, t1gd, t2, flair: the sequence of each contrast.
        noise: SD of the noise in each quadrature channel, relative to the brain's mean signal.
        bias: size of the coil's shading: SD of the logarithm of its sensitivity.
        resolution: full width at half maximum of the blur along x, y, z, in voxels.
        texture: SD of the grain that coils and reconstruction leave, relative to the signal.
        grain: size of that grain in voxels.

    Raises:
        BadInput: a value that no scanner has; all such values are told.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(min_length=1)]
    field: float
    t1: T1Sequence
    t1gd: T1Sequence
    t2: SpinEcho
    flair: InversionRecovery
    noise: float
    bias: float
    resolution: tuple[float, float, float]
    texture: float
    grain: float

    @property
    def sequences(self) -> tuple[SpinEcho | GradientEcho | InversionRecovery, ...]:
        """The sequences in the order of `CONTRASTS`."""
        return (self.t1, self.t1gd, self.t2, self.flair)

    def _problems(self) -> Iterable[Problem]:
        if self.field not in FIELDS:
            known = " or ".join(f"{field:g}" for field in FIELDS)
            yield Problem(name="field", value=f"{self.field:g}", wanted=f"{known} tesla")
        for name, most in (("noise", 1.0), ("bias", 1.0), ("texture", 1.0)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                yield Problem(name=name, value=f"{value:g}", wanted=f"0 to {most:g}")
        if not all(0 <= width <= 8 for width in self.resolution):
            yield Problem(
                name="resolution",
                value=str(self.resolution),
                wanted="0 to 8 voxels along each axis",
            )
        if not 1 <= self.grain <= 16:
            yield Problem(name="grain", value=f"{self.grain:g}", wanted="1 to 16 voxels")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problems := tuple(self._problems()):
            raise BadInput(problems)
        return self


def _null_of_csf(tr: float) -> float:
    """Inversion time, ms, at which fluid gives no signal."""
    return float(_CSF_T1 * np.log(2 / (1 + np.exp(-tr / _CSF_T1))))


def _flair(tr: float, te: float) -> InversionRecovery:
    return InversionRecovery(tr=tr, te=te, ti=round(_null_of_csf(tr), -1))


#: Six protocols of the kinds clinics run, as unlike each other as hospitals are.
SITE_SCANNERS: Final = (
    Scanner(
        name="north 3T",
        field=3.0,
        t1=GradientEcho(tr=22, te=3.5, flip=26),
        t1gd=GradientEcho(tr=22, te=3.5, flip=26),
        t2=SpinEcho(tr=5200, te=92),
        flair=_flair(9000, 110),
        noise=0.020,
        bias=0.11,
        resolution=(0.6, 0.6, 0.7),
        texture=0.015,
        grain=2.0,
    ),
    Scanner(
        name="harbour 1.5T",
        field=1.5,
        t1=SpinEcho(tr=520, te=12),
        t1gd=SpinEcho(tr=520, te=12),
        t2=SpinEcho(tr=3900, te=105),
        flair=_flair(8500, 125),
        noise=0.042,
        bias=0.04,
        resolution=(0.9, 0.9, 1.5),
        texture=0.03,
        grain=3.0,
    ),
    Scanner(
        name="valley 1.5T",
        field=1.5,
        t1=GradientEcho(tr=28, te=5, flip=32),
        t1gd=SpinEcho(tr=640, te=15),
        t2=SpinEcho(tr=4000, te=84),
        flair=_flair(7600, 100),
        noise=0.035,
        bias=0.07,
        resolution=(1.3, 0.8, 0.9),
        texture=0.05,
        grain=1.5,
    ),
    Scanner(
        name="university 3T",
        field=3.0,
        t1=GradientEcho(tr=16, te=2.6, flip=20),
        t1gd=GradientEcho(tr=16, te=2.6, flip=20),
        t2=SpinEcho(tr=6500, te=112),
        flair=_flair(9800, 135),
        noise=0.012,
        bias=0.14,
        resolution=(0.4, 0.4, 0.4),
        texture=0.01,
        grain=2.5,
    ),
    Scanner(
        name="county 1.5T",
        field=1.5,
        t1=SpinEcho(tr=420, te=9),
        t1gd=SpinEcho(tr=480, te=9),
        t2=SpinEcho(tr=4600, te=118),
        flair=_flair(9000, 140),
        noise=0.060,
        bias=0.09,
        resolution=(1.1, 1.1, 1.9),
        texture=0.04,
        grain=4.0,
    ),
    Scanner(
        name="lakeside 3T",
        field=3.0,
        t1=SpinEcho(tr=680, te=9),
        t1gd=GradientEcho(tr=8, te=3, flip=14),
        t2=SpinEcho(tr=4200, te=78),
        flair=_flair(8200, 104),
        noise=0.030,
        bias=0.12,
        resolution=(0.8, 0.8, 1.2),
        texture=0.06,
        grain=2.2,
    ),
)


def random_scanner(rng: np.random.Generator) -> Scanner:
    """Draw a scanner wider than any hospital's choice, for public pre-training."""
    field = float(rng.choice(FIELDS))
    flair_tr = rng.uniform(7000, 11000)
    return Scanner(
        name="random",
        field=field,
        t1=_random_t1(rng, field),
        t1gd=_random_t1(rng, field),
        t2=SpinEcho(tr=rng.uniform(3800, 8000), te=rng.uniform(75, 130)),
        flair=InversionRecovery(
            tr=flair_tr,
            te=rng.uniform(80, 150),
            ti=_null_of_csf(flair_tr) * rng.uniform(0.94, 1.06),
        ),
        noise=float(np.exp(rng.uniform(np.log(0.005), np.log(0.12)))),
        bias=rng.uniform(0, 0.22),
        resolution=_random_blur(rng),
        texture=rng.uniform(0, 0.09),
        grain=rng.uniform(1.2, 6),
    )


def _random_t1(rng: np.random.Generator, field: float) -> SpinEcho | GradientEcho:
    if rng.random() < 0.5:
        return SpinEcho(tr=rng.uniform(350, 800), te=rng.uniform(7, 18))
    # The flip angle stays well above Ernst's, else the image is weighted by proton density.
    low, high = (18, 40) if field > 2 else (24, 45)
    return GradientEcho(tr=rng.uniform(12, 32), te=rng.uniform(2, 6), flip=rng.uniform(low, high))


def _random_blur(rng: np.random.Generator) -> tuple[float, float, float]:
    """Draw a blur; half of all protocols have one direction of thick slices."""
    widths = np.full(3, rng.uniform(0.3, 1.5))
    if rng.random() < 0.5:
        widths[rng.integers(3)] += rng.uniform(0.3, 1.5)
    x, y, z = (float(width) for width in widths)
    return x, y, z
