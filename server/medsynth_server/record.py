"""A run's record: what was measured (`metrics.jsonl`) and what privacy was spent (`privacy.json`).

Training appends to it, the report reads it, and nothing else stands between the two: a figure that
is not in the record is in no report. Every value checks itself when it is made and again when read.
"""

import math
import os
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from medsynth_common.durable import append_line, write_bytes
from medsynth_common.errors import BadData, Problem
from medsynth_common.labels import Contrast, Region, Tissue
from medsynth_common.plan import Stage


class Arm(StrEnum):
    """The two trainings of a run: the one that is meant, and the one it is compared with."""

    PRIVATE = "private"
    REFERENCE = "reference"


#: The segmenters that a run compares; others may stand beside them.
BEFORE_TRAINING: Final = "before training"
FEDERATED: Final = "federated"
SYNTHETIC_ONLY: Final = "synthetic only"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _null_unless_finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


#: A measurement that may have failed: JSON has no NaN, so what is not finite is recorded as null.
Measured = Annotated[float | None, BeforeValidator(_null_unless_finite)]
Count = Annotated[int, Field(ge=0)]


class NoisedMetric(_Frozen):
    """A figure that sites released with noise, and the noise's standard deviation on it."""

    value: Measured
    noise_sd: Measured = Field(ge=0)

    @property
    def words(self) -> str:
        """The figure with its noise, and whose patients it is of."""
        if self.value is None or self.noise_sd is None:
            return "drowned in the noise"
        return f"{self.value:.3f} ± {self.noise_sd:.3f} (SD of the noise; training patients)"


class Told(_Frozen):
    """What a site said of its privacy beside an answer, by its own ledger.

    Attributes:
        epsilon: of this run; null without a bound.
        cap: the most it allows for life; null likewise.
        delta: the probability that epsilon does not speak for.
        patients: its declared size.
        rehearsal: its noise can be repeated.

    """

    epsilon: float | None = Field(default=None, ge=0)
    cap: float | None = Field(default=None, gt=0)
    delta: float = Field(gt=0, lt=1)
    patients: Count
    rehearsal: bool = False


class RoundEvent(_Frozen):
    """One finished round.

    Attributes:
        arm: which training it belongs to.
        stage: which part of that training.
        round: its number within the stage, from 1.
        seconds: wall time.
        losses: measured on public or synthetic data at the coordinator, never at a site.
        site_metrics: of the sites' own patients: private releases, charged like all others.
        sites: the sites that answered.
        told: what each of them said of its privacy.
        refused: the sites that did not, each with the name of its error.
        bytes_up: bytes that all sites sent.
        bytes_down: bytes that were sent to all sites.

    """

    event: Literal["round"] = "round"
    arm: Arm
    stage: Stage
    round: int = Field(ge=1)
    seconds: float = Field(ge=0)
    losses: Mapping[str, Measured] = {}
    site_metrics: Mapping[str, NoisedMetric] = {}
    sites: tuple[str, ...] = ()
    told: Mapping[str, Told] = {}
    refused: Mapping[str, str] = {}
    bytes_up: Count = 0
    bytes_down: Count = 0

    @property
    def identity(self) -> tuple[str, ...]:
        """What a later event must share to replace this one."""
        return (self.event, self.arm, self.stage, str(self.round))


class EvaluationEvent(_Frozen):
    """How well one segmenter finds one tumour region, over held-out patients.

    Attributes:
        arm: which training it belongs to.
        model: which segmenter, such as `federated` or `synthetic only`.
        trained_on: the same in plain words.
        region: what had to be found.
        dice_mean: mean Dice over patients, 0..1; null where no patient has the region.
        dice_sd: standard deviation over patients.
        patients: how many patients it was measured on.
        per_site: mean Dice of each site's held-out patients.
        chance: two-sided p of Wilcoxon's signed-rank test over the same patients against the model
            before training; null where there is no such comparison.

    """

    event: Literal["evaluation"] = "evaluation"
    arm: Arm
    model: str = Field(min_length=1)
    trained_on: str
    region: Region
    dice_mean: Measured = Field(ge=0, le=1)
    dice_sd: Measured = Field(ge=0)
    patients: Count
    per_site: Mapping[str, Measured] = {}
    chance: Measured = Field(default=None, ge=0, le=1)

    @property
    def identity(self) -> tuple[str, ...]:
        """What a later event must share to replace this one."""
        return (self.event, self.arm, self.model, self.region)


class IntensityEvent(_Frozen):
    """Histograms of one tissue in one contrast of one site, real beside synthetic.

    Attributes:
        arm: which training made the synthetic images.
        site: whose scanner they imitate.
        contrast: the MR contrast.
        tissue: the label class the voxels belong to.
        edges: bin edges, ascending, one more than there are bins.
        real: voxels (or their share) in each bin.
        synthetic: the same for synthetic images.

    """

    event: Literal["intensity"] = "intensity"
    arm: Arm
    site: str
    contrast: Contrast
    tissue: Tissue
    edges: tuple[float, ...] = Field(min_length=2)
    real: tuple[Annotated[float, Field(ge=0)], ...]
    synthetic: tuple[Annotated[float, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _bins_agree(self) -> Self:
        bins = len(self.edges) - 1
        if len(self.real) != bins or len(self.synthetic) != bins:
            raise ValueError(f"{bins + 1} edges need {bins} bins of real and of synthetic")
        if any(high <= low for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges must ascend")
        return self

    @property
    def identity(self) -> tuple[str, ...]:
        """What a later event must share to replace this one."""
        return (self.event, self.arm, self.site, self.contrast, str(self.tissue))


class NoteEvent(_Frozen):
    """A finding in plain words, such as that private training did not help."""

    event: Literal["note"] = "note"
    text: str = Field(min_length=1)

    @property
    def identity(self) -> tuple[str, ...]:
        """What a later event must share to replace this one."""
        return (self.event, self.text)


Event = Annotated[
    RoundEvent | EvaluationEvent | IntensityEvent | NoteEvent, Field(discriminator="event")
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


class RunLog:
    """Appends events to `metrics.jsonl`; each is on disk before `append` returns.

    A last line that a crash tore is dropped when the log is opened, so that what follows it
    starts a line of its own.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)

    def append(self, event: Event) -> None:
        """Add one event; on a full disk (OSError) the log stays as it was."""
        try:
            append_line(self._path, event.model_dump_json())
        except OSError:
            _drop_torn_line(self._path)
            raise


def read_events(path: Path) -> tuple[Event, ...]:
    """Read a log, in order; empty when there is none yet.

    A torn last line counts as not written. A resumed run may hold a round (an evaluation, a
    histogram, a note) twice: the last one counts.

    Raises:
        BadData: a whole line is not an event; every such line is told.

    """
    if not path.exists():
        return ()
    content = path.read_bytes()
    events: dict[tuple[str, ...], Event] = {}
    problems: list[Problem] = []
    for number, line in enumerate(content[: _whole_lines(content)].splitlines(), start=1):
        try:
            event = _EVENT.validate_json(line)
        except ValidationError as error:
            problems.extend(_problems(error, name=f"{path.name} line {number}"))
            continue
        events.pop(event.identity, None)  # the repeated one takes its later place
        events[event.identity] = event
    if problems:
        raise BadData(problems)
    return tuple(events.values())


def epsilon_words(epsilon: float | None) -> str:
    """Write an epsilon with two decimals, rounded up: never less than was spent."""
    if epsilon is None:
        return "none"
    return str(Decimal(repr(epsilon)).quantize(Decimal("0.01"), rounding=ROUND_CEILING))


class MechanismSpent(_Frozen):
    """One noisy mechanism at one site, and what it would have cost alone."""

    name: str = Field(min_length=1)
    clip: float = Field(ge=0)
    noise_multiplier: float = Field(ge=0)
    sampling_rate: float = Field(ge=0, le=1)
    steps: Count
    releases: Count
    epsilon_alone: float | None = Field(default=None, ge=0)


class SitePrivacy(_Frozen):
    """What one site spent: all its mechanisms composed, beside the cap it set.

    Attributes:
        epsilon: the bound over everything released; null where there is none.
        cap: the most the site allows; null where it allows anything, as an unprotected arm must.
        delta: the probability that the bound does not speak for.
        patients_declared: the public size of the site's data set, not its true count.
        mechanisms: what was released.

    """

    epsilon: float | None = Field(ge=0)
    cap: float | None = Field(gt=0)
    delta: float = Field(gt=0, lt=1)
    patients_declared: Count
    mechanisms: tuple[MechanismSpent, ...]

    @property
    def over(self) -> bool:
        """Whether more was spent than the site allows."""
        return self.cap is not None and (self.epsilon or 0.0) > self.cap

    @property
    def cap_words(self) -> str:
        """The cap as a report says it."""
        return "none" if self.cap is None else f"{self.cap:g}"


class ArmPrivacy(_Frozen):
    """Whether a training was private, and what each site spent in it."""

    protected: bool
    sites: Mapping[str, SitePrivacy]

    @model_validator(mode="after")
    def _protection_is_bounded(self) -> Self:
        unbounded = [name for name, site in self.sites.items() if site.epsilon is None]
        if self.protected and unbounded:
            raise ValueError(f"a protected arm needs an epsilon for {', '.join(unbounded)}")
        return self


class PrivacyStatement(_Frozen):
    """The privacy of a whole run: `privacy.json`.

    Attributes:
        unit: whose presence the bound is about.
        seeded: the noise came from a seed and can be replayed: a rehearsal, not a release.
        arms: the statement of each training.

    """

    unit: Literal["patient"] = "patient"
    seeded: bool
    arms: Mapping[Arm, ArmPrivacy]

    def protects(self, arm: Arm) -> bool:
        """Tell whether `arm` has a privacy bound at all."""
        return arm in self.arms and self.arms[arm].protected


def write_privacy(path: Path, statement: PrivacyStatement) -> None:
    """Write the statement, whole or not at all."""
    write_bytes(path, (statement.model_dump_json(indent=2) + "\n").encode())


def read_privacy(path: Path) -> PrivacyStatement | None:
    """Read the statement; None when there is none yet. Raises BadData when it does not check."""
    if not path.exists():
        return None
    try:
        return PrivacyStatement.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadData(_problems(error, name=path.name)) from error


def _whole_lines(content: bytes) -> int:
    """Count the bytes up to and with the last newline: what a crash cannot have torn."""
    return content.rfind(b"\n") + 1


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = _whole_lines(content)
    if whole < len(content):
        with path.open("r+b") as stream:
            stream.truncate(whole)
            os.fsync(stream.fileno())


def _problems(error: ValidationError, *, name: str) -> list[Problem]:
    return [
        Problem(
            name=f"{name}: {'.'.join(map(str, fault['loc']))}" if fault["loc"] else name,
            value=repr(fault["input"])[:80],
            wanted=fault["msg"],
        )
        for fault in error.errors(include_url=False)
    ]
