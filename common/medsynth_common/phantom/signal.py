"""Pulse sequences and the signal equations they obey (Bernstein, Handbook of MRI Pulse Sequences).

All times are in ms. A sequence checks itself when it is made and gives the magnitude signal of
every tissue; with a turbo (fast) spin echo, `te` is the effective echo time.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medsynth_common.errors import BadInput, Problem
from medsynth_common.phantom.tissue import Relaxation, Table


class _Sequence(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tr: float
    te: float

    def _problems(self) -> Iterable[Problem]:
        if self.tr <= 0:
            yield Problem(name="tr", value=f"{self.tr:g}", wanted="a positive time in ms")
        if self.te <= 0:
            yield Problem(name="te", value=f"{self.te:g}", wanted="a positive time in ms")
        elif self.te >= self.tr > 0:
            yield Problem(name="te", value=f"{self.te:g}", wanted=f"less than tr = {self.tr:g}")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if problems := tuple(self._problems()):
            raise BadInput(problems)
        return self


class SpinEcho(_Sequence):
    """PD (1 - exp(-TR/T1)) exp(-TE/T2)."""

    kind: Literal["spin echo"] = "spin echo"

    def signal(self, tissue: Relaxation) -> Table:
        """Give the magnitude signal of each tissue, (len(TISSUES),)."""
        recovered = 1 - np.exp(-self.tr / tissue.t1)
        signal: Table = tissue.pd * recovered * np.exp(-self.te / tissue.t2)
        return signal


class GradientEcho(_Sequence):
    """A spoiled gradient echo at its steady state, after Ernst: flip angle in degrees.

    PD sin(a) (1 - E1) / (1 - cos(a) E1) exp(-TE/T2*), with E1 = exp(-TR/T1).
    """

    kind: Literal["gradient echo"] = "gradient echo"
    flip: float

    def _problems(self) -> Iterable[Problem]:
        yield from super()._problems()
        if not 0 < self.flip <= 90:
            yield Problem(name="flip", value=f"{self.flip:g}", wanted="an angle in (0, 90] degrees")

    def signal(self, tissue: Relaxation) -> Table:
        """Give the magnitude signal of each tissue, (len(TISSUES),)."""
        angle = np.deg2rad(self.flip)
        e1 = np.exp(-self.tr / tissue.t1)
        steady = np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1)
        signal: Table = tissue.pd * steady * np.exp(-self.te / tissue.t2_star)
        return signal


class InversionRecovery(_Sequence):
    """PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2): FLAIR, with TI at the null of CSF."""

    kind: Literal["inversion recovery"] = "inversion recovery"
    ti: float

    def _problems(self) -> Iterable[Problem]:
        yield from super()._problems()
        if not 0 < self.ti < self.tr:
            yield Problem(
                name="ti", value=f"{self.ti:g}", wanted=f"a time between 0 and tr = {self.tr:g} ms"
            )

    def signal(self, tissue: Relaxation) -> Table:
        """Give the magnitude signal of each tissue, (len(TISSUES),)."""
        recovered = np.abs(1 - 2 * np.exp(-self.ti / tissue.t1) + np.exp(-self.tr / tissue.t1))
        signal: Table = tissue.pd * recovered * np.exp(-self.te / tissue.t2)
        return signal


#: The sequences a T1-weighted image may come from.
T1Sequence = Annotated[SpinEcho | GradientEcho, Field(discriminator="kind")]
