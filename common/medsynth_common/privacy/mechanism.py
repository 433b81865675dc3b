"""What decides privacy: who is sampled how often, the clip, the noise, the number of steps.

Everything else (crops, learning rate, batch layout) decides only learning or speed and stands
elsewhere, so that a tuning change can never be a privacy change. "Privacy off" is a mechanism
with the same methods. Clipping, noising and what they cost stand together in this file.
"""

import math
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from medsynth_common.privacy.randomness import Randomness

#: A life's training is far below this; a plan above it is a mistake or an attack.
MAX_STEPS: Final = 10_000_000
#: So is more noise than this.
MAX_NOISE: Final = 1e9
#: Noise is made for a clip this much larger: what rounding could add to a contribution.
CLIP_MARGIN: Final = 1e-5
#: Releases are rounded to this fraction of the clip. The low bits of a floating-point sum can
#: tell which sum it was, whatever noise was added (Mironov, CCS 2012).
GRID: Final = 2.0**-20

#: A smaller scale is near the numbers that floating point cannot hold in full.
_LEAST_FACTOR: Final = 1e-290

Name = Annotated[str, Field(min_length=1, max_length=100)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
SamplingRate = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=MAX_NOISE)]


class Value(BaseModel):
    """A frozen value that checks itself; its numbers are finite and unknown names are errors."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Release(Value):
    """What the accountant has to know of `steps` equal releases.

    Attributes:
        noise_multiplier: noise SD over the most one patient can add; 0 is no protection.
        sampling_rate: probability with which each patient takes part in a step.
        steps: how often it happened.

    """

    noise_multiplier: float = Field(ge=0, le=MAX_NOISE)
    sampling_rate: SamplingRate
    steps: Steps


class Gaussian(Value):
    """Poisson-subsampled Gaussian mechanism on patients (Abadi et al., CCS 2016).

    Attributes:
        name: what it protects, such as `critic`.
        clip: largest L2 norm that one patient adds to a step's sum.
        noise_multiplier: noise SD over clip.
        sampling_rate: probability with which each patient takes part in a step.
        steps: number of noisy sums released.

    """

    kind: Literal["gaussian"] = "gaussian"
    name: Name
    clip: Positive
    noise_multiplier: Positive
    sampling_rate: SamplingRate
    steps: Steps

    @property
    def protected(self) -> bool:
        """Whether a patient is protected at all."""
        return True

    @property
    def noise_std(self) -> float:
        """SD of the noise on each coordinate of a step's sum."""
        return self.noise_multiplier * self.clip * (1 + CLIP_MARGIN)

    @property
    def releases(self) -> tuple[Release, ...]:
        """What the accountant charges for."""
        return (_release(self),)

    def clip_factor(self, norm: float) -> float:
        """Scale that brings a contribution of this norm under the clip.

        It is 0 when the norm is not finite: one bad voxel must neither poison the sum nor, by
        poisoning it, tell that its patient took part. So it is where the scale would have
        lost its digits.
        """
        factor = self.clip / max(norm, self.clip) if math.isfinite(norm) else 0.0
        return factor if factor > _LEAST_FACTOR else 0.0

    def noised(self, total: Tensor, randomness: Randomness) -> Tensor:
        """Give the float64 sum `total` with noise, on a fixed grid; same shape and device."""
        noise = randomness.normal(total.shape, self.noise_std).to(total.device)
        grid = GRID * self.clip
        return noise.add_(total).div_(grid).round_().mul_(grid)


class Unprotected(Value):
    """No clip and no noise: upper bounds and research only, with an epsilon of infinity."""

    kind: Literal["unprotected"] = "unprotected"
    name: Name
    sampling_rate: SamplingRate
    steps: Steps

    @property
    def protected(self) -> bool:
        """Whether a patient is protected at all."""
        return False

    @property
    def clip(self) -> float:
        """No bound on what one patient adds."""
        return math.inf

    @property
    def noise_multiplier(self) -> float:
        """No noise."""
        return 0.0

    @property
    def noise_std(self) -> float:
        """No noise."""
        return 0.0

    @property
    def releases(self) -> tuple[Release, ...]:
        """What the accountant charges for."""
        return (_release(self),)

    def clip_factor(self, norm: float) -> float:
        """1, or 0 for a norm that is not finite."""
        return 1.0 if math.isfinite(norm) else 0.0

    def noised(self, total: Tensor, randomness: Randomness) -> Tensor:
        """Give `total` as it is."""
        return total


Mechanism = Annotated[Gaussian | Unprotected, Field(discriminator="kind")]


def _release(mechanism: Gaussian | Unprotected) -> Release:
    return Release(
        noise_multiplier=mechanism.noise_multiplier,
        sampling_rate=mechanism.sampling_rate,
        steps=mechanism.steps,
    )
