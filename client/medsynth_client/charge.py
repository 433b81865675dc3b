"""What a private step is told by, and what the ledger keeps of it.

Apart from the accountant, which takes seconds to load: a policy needs this and no more.
"""

from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

Kind = tuple[float, float]  # noise multiplier, sampling rate


class Mechanism(Protocol):
    """What a private step is told by; unprotected when the noise multiplier is 0."""

    @property
    def name(self) -> str:
        """What it protects."""

    @property
    def clip(self) -> float:
        """Largest L2 norm one patient adds to a step's sum."""

    @property
    def noise_multiplier(self) -> float:
        """Noise SD over clip."""

    @property
    def sampling_rate(self) -> float:
        """Probability with which each patient takes part in a step."""

    @property
    def steps(self) -> int:
        """Number of noisy sums released."""


class Charge(BaseModel):
    """A mechanism as the ledger keeps it.

    Attributes:
        name: what it protects.
        clip: largest norm of one patient's part; None when unprotected.
        noise_multiplier: noise SD over clip; 0 when unprotected.
        sampling_rate: probability with which each patient takes part in a step.
        steps: number of noisy sums released.

    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=100)
    clip: float | None = Field(gt=0)
    noise_multiplier: float = Field(ge=0)
    sampling_rate: float = Field(gt=0, le=1)
    steps: int = Field(ge=1)

    @classmethod
    def of(cls, mechanism: Mechanism) -> "Charge":
        """Take down a mechanism. Raises pydantic's ValidationError when it cannot be one."""
        return cls(
            name=mechanism.name,
            clip=mechanism.clip if mechanism.noise_multiplier else None,
            noise_multiplier=mechanism.noise_multiplier,
            sampling_rate=mechanism.sampling_rate,
            steps=mechanism.steps,
        )

    @property
    def kind(self) -> Kind:
        """Steps of the same kind add up."""
        return self.noise_multiplier, self.sampling_rate
