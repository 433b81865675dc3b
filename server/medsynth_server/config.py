"""A run's settings: TOML, strict. Flag > environment > file > default.

The defaults are the demo: three hospitals, 48^3 phantoms, epsilon 8, minutes on two CPU cores.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from medsynth_common.dataset import DataConfig
from medsynth_common.errors import BadConfig, Problem
from medsynth_common.networks import PRESETS, NetworkSettings
from medsynth_common.phantom.subject import LARGEST, SMALLEST
from medsynth_common.plan import AdversarialSettings, Bits, Grid, SegmentSettings, problems_of
from medsynth_common.privacy.mechanism import Value


def _sides(smallest: int, largest: int) -> AfterValidator:
    def check(grid: tuple[int, ...]) -> tuple[int, ...]:
        if any(not smallest <= side <= largest for side in grid):
            raise ValueError(f"three sides of {smallest} to {largest} voxels")
        return grid

    return AfterValidator(check)


class Federation(Value):
    """Who takes part, and how their updates are combined.

    Attributes:
        sites: number of simulated hospitals (phantoms; a data folder brings its own).
        patients: phantoms each trains on.
        test_patients: phantoms each holds out for evaluation.
        strategy: a Flower strategy by name.
        deadline: seconds to wait for a round's answers.
        update_bits: of each weight that a site sends; 4 and 8 round its difference to the plan's.

    """

    sites: int = Field(default=3, ge=1, le=1000)
    patients: int = Field(default=60, ge=1, le=100_000)
    test_patients: int = Field(default=6, ge=1, le=1000)
    strategy: Literal["fedavg", "fedadam", "fedprox", "median", "trimmed-mean", "krum"] = "fedavg"
    deadline: float = Field(default=3600.0, gt=0)
    update_bits: Bits = 32


class Privacy(Value):
    """How much may be known of a patient.

    Attributes:
        epsilon: what all stages together cost the patients of any site.
        delta: the failure probability epsilon is stated with; below 1/patients of every site.
        cap: the lifetime cap written into a simulated site's policy; above `epsilon`, so that
            rounds repeated after a crash can be charged again. None: 1.25 times epsilon.

    """

    epsilon: float = Field(default=8.0, gt=0, le=1000)
    delta: float = Field(default=1e-3, gt=0, lt=1)
    cap: float | None = Field(default=None, gt=0)

    @property
    def lifetime_cap(self) -> float:
        """The cap a simulated site is given."""
        return self.cap if self.cap is not None else 1.25 * self.epsilon


class Pretrain(Value):
    """Public training at the coordinator on phantoms of randomised scanners.

    Attributes:
        start: `shipped`: from the weights that come with medsynth, without training; `fresh`: from
            nothing, by the settings below. None: shipped where they are of this size.

    """

    start: Literal["shipped", "fresh"] | None = None
    rounds: int = Field(default=3, ge=1, le=10_000)
    steps: int = Field(default=80, ge=1, le=1_000_000)
    batch: int = Field(default=4, ge=1, le=1024)
    scanners: int = Field(default=16, ge=2, le=10_000)
    phantoms: int = Field(default=6, ge=2, le=10_000)
    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    segmenter_learning_rate: float = Field(default=5e-3, gt=0, le=1)


class Moments(Value):
    """Stage moments; `share` and the other shares are relative parts of epsilon."""

    enabled: bool = True
    level_share: float = Field(default=0.25, gt=0)
    spread_share: float = Field(default=0.1, gt=0)


class Segment(SegmentSettings):
    """Stage segment: free training on synthetic pairs first, then private rounds at the sites."""

    enabled: bool = True
    directions: int = Field(default=64, ge=0, le=1024)
    sites: Literal[1] = 1  # the run counts them
    share: float = Field(default=0.4, gt=0)
    free_steps: int = Field(default=40, ge=0, le=1_000_000)
    rounds: int = Field(default=6, ge=1, le=100_000)
    steps: int = Field(default=5, ge=1, le=100_000)
    sampling_rate: float = Field(default=0.2, gt=0, le=1)
    clip: float = Field(default=1.0, gt=0)


class Adversarial(AdversarialSettings):
    """Stage adversarial. Without a `clip` of its own the critic's is measured on public volumes."""

    enabled: bool = True
    share: float = Field(default=0.25, gt=0)
    rounds: int = Field(default=2, ge=1, le=100_000)
    steps: int = Field(default=1, ge=1, le=100_000)
    sampling_rate: float = Field(default=1.0, gt=0, le=1)
    clip: float | None = Field(default=None, gt=0)
    paired_share: float = Field(default=0.25, gt=0)
    paired_clip: float = Field(default=1.0, gt=0)
    paired_sampling_rate: float = Field(default=0.2, gt=0, le=1)


class Metrics(Value):
    """Stage metrics, off unless asked for: a noised Dice of the federated segmenter at the sites.

    It costs its share of epsilon, and is of patients that the segmenter was trained on. A site
    answers only if its policy lists the stage.
    """

    enabled: bool = False
    share: float = Field(default=0.05, gt=0)


class Evaluation(Value):
    """What is made and measured at the end.

    Attributes:
        synthetic: volumes in the synthetic set.
        steps: training steps of the segmenter that sees only them.
        reference: also run the same federation without privacy, as the upper bound.

    """

    synthetic: int = Field(default=36, ge=1, le=1_000_000)
    steps: int = Field(default=80, ge=1, le=1_000_000)
    reference: bool = True


class Table(Value):
    """What `evaluate` trains, to fill the table of Shin et al. 2018.

    Attributes:
        seeds: trainings of every cell, each from other random weights.
        architectures: the segmenters.
        steps: training steps of every cell, whatever it is trained on.
        synthetic: volumes of each generator; None for as many as there are real patients.
        learning_rate: Adam's; it falls to 0 as a cosine does.
        real_share: part of each site's patients that a fine-tuned segmenter sees.
        tuning_share: part of its steps that it sees them in; as long, a segmenter of real and
            synthetic volumes ends on real ones alone.
        tuning_rate: factor on the learning rate of the fine-tuning.

    """

    seeds: int = Field(default=3, ge=1, le=100)
    architectures: Annotated[
        tuple[Literal["unet", "segresnet"], ...], Field(min_length=1, max_length=2)
    ] = ("unet",)
    steps: int = Field(default=200, ge=1, le=1_000_000)
    synthetic: int | None = Field(default=None, ge=1, le=100_000)
    learning_rate: float = Field(default=5e-3, gt=0, le=1)
    real_share: float = Field(default=0.1, gt=0, le=1)
    tuning_share: float = Field(default=0.3, gt=0, lt=1)
    tuning_rate: float = Field(default=0.4, gt=0, le=1)


class RunConfig(Value):
    """Everything a run depends on."""

    name: str = Field(default="demo", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    seed: int | None = Field(default=None, ge=0, lt=2**62)
    # Public phantoms are drawn on the run's grid, real patients or not.
    grid: Annotated[Grid, _sides(SMALLEST, LARGEST)] = (48, 48, 48)
    crop: Annotated[Grid, _sides(8, LARGEST)] = (32, 32, 32)
    preset: Literal["cpu", "gpu"] = "cpu"
    networks: NetworkSettings = NetworkSettings()
    workers: int = Field(default=2, ge=1, le=256)
    threads: int = Field(default=2, ge=1, le=256)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    privacy: Privacy | Literal["off"] = Privacy()
    federation: Federation = Federation()
    pretrain: Pretrain = Pretrain()
    moments: Moments = Moments()
    segment: Segment = Segment()
    adversarial: Adversarial = Adversarial()
    metrics: Metrics = Metrics()
    evaluation: Evaluation = Evaluation()
    table: Table = Table()
    data: DataConfig = DataConfig()

    @property
    def starts_shipped(self) -> bool:
        """Whether the run starts from the weights that come with medsynth."""
        start = self.pretrain.start
        return start == "shipped" or (start is None and self.networks == PRESETS["cpu"])

    @model_validator(mode="after")
    def _fits(self) -> "RunConfig":
        self.networks.check_sides(self.grid, self.crop)
        if self.pretrain.start == "shipped" and self.networks != PRESETS["cpu"]:
            raise ValueError("pretrain.start 'shipped' has the sizes of networks of preset 'cpu'")
        if self.metrics.enabled and not self.segment.enabled:
            raise ValueError("metrics measure the federated segmenter, and segment is not enabled")
        if self.federation.strategy == "fedprox" and not self.segment.proximal:
            raise ValueError("strategy 'fedprox' is fedavg unless segment.proximal is above 0")
        return self


def load_config(path: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """Read a TOML file and lay flags over it.

    Args:
        path: the file; None for the defaults.
        overrides: dotted keys to values, such as `{"privacy.epsilon": 2.0}`.

    Raises:
        BadConfig: with every problem; an unknown key comes with the nearest known one.

    """
    values = read_settings(path) if path else {}
    for dotted, value in overrides.items():
        _put(values, dotted.split("."), value)
    return parse_config(values, name=str(path) if path else "settings")


def parse_config(values: Mapping[str, Any], *, name: str) -> RunConfig:
    """Check settings given as nested mappings. Raises `BadConfig` with every problem."""
    values = dict(values)
    preset, sizes = values.get("preset", "cpu"), values.get("networks", {})
    if isinstance(preset, str) and preset in PRESETS and isinstance(sizes, Mapping):
        values["networks"] = {**PRESETS[preset].model_dump(mode="json"), **sizes}
    try:
        # As JSON, for strict values: a list is then a tuple, but 1 is still no `true`.
        return RunConfig.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise BadConfig(_problems(error, name=name)) from error


def dump_config(config: RunConfig) -> str:
    """Write every setting as TOML; reading it back gives the same settings."""
    values = config.model_dump(mode="json", exclude_none=True)
    return tomli_w.dumps(values)


def read_settings(path: Path) -> dict[str, Any]:
    """Read a TOML file as it is. Raises `BadConfig` when it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(
            Problem(name=str(path), value=error.strerror or "unreadable", wanted="a TOML file")
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(Problem(name=str(path), value=str(error), wanted="valid TOML")) from error


def _put(values: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = values.get(key)
        values[key] = dict(inner) if isinstance(inner, Mapping) else {}
        values = values[key]
    values[keys[-1]] = value


def _problems(error: ValidationError, *, name: str) -> list[Problem]:
    """Tell every fault by the key it stands under; a choice's other half is no fault."""
    told: dict[str, Problem] = {}
    for problem, fault in zip(problems_of(error, name=name), error.errors(), strict=True):
        place = [str(key) for key in fault["loc"]]
        if place[:1] == ["privacy"] and len(place) > 1:
            table = isinstance(fault["input"], Mapping) or len(place) > 2
            if table == (place[1] != Privacy.__name__):
                continue  # a table was given and this is about "off", or the other way round
            place = ["privacy", *place[2:]]
        where = f"{name}: {'.'.join(place)}" if place else name
        told.setdefault(where, _problem(where, place, problem, fault))
    return list(told.values())


def _problem(where: str, place: Sequence[str], found: Problem, fault: Mapping[str, Any]) -> Problem:
    if fault["type"] == "extra_forbidden":
        return _with_nearest(where, place)
    if fault["type"] == "value_error" and isinstance(fault["input"], Mapping):
        wanted = found.wanted.removeprefix("Value error, ")
        return Problem(name=where, value="settings that do not go together", wanted=wanted)
    wanted = found.wanted.removeprefix("Value error, ").removeprefix("Input should be ")
    if place == ["privacy"]:
        wanted = "a table of privacy settings, or 'off'"
    return Problem(name=where, value=found.value, wanted=wanted)


def _with_nearest(where: str, place: Sequence[str]) -> Problem:
    """Say that a key is unknown, and which known one it may have meant."""
    nearest = difflib.get_close_matches(place[-1], _known_keys(place[:-1]), n=1, cutoff=0.5)
    wanted = f"a known key{f', such as {nearest[0]!r}' if nearest else ''}"
    return Problem(name=where, value=f"unknown key {place[-1]!r}", wanted=wanted)


def _known_keys(path: Sequence[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for key in path:
        field = model.model_fields.get(key)
        kinds = [field.annotation] if field else []
        kinds += list(getattr(field.annotation, "__args__", ())) if field else []
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if inner:
            model = inner[0]
    return list(model.model_fields)
