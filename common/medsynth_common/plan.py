"""What goes down to a site: a `RoundPlan`, a frozen value that checks itself.

A plan says what to train and with how much noise. It holds no code, no seed of any privacy noise,
and nothing of another site's patients that was not privatised there first.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator
from torch import Tensor

from medsynth_common.errors import BadMessage, Problem
from medsynth_common.identity.seal import Seal
from medsynth_common.networks.settings import NetworkSettings
from medsynth_common.privacy.mechanism import Mechanism, Value
from medsynth_common.tensors import HashedTensors

Kind = TypeVar("Kind", bound=BaseModel)
#: A header of ours has a few thousand bytes. Its faults are told one by one, so it is bounded.
LARGEST_HEADER: Final = 1 << 16
#: How many faults of one message are told: a peer's nonsense must not fill a log.
MOST_PROBLEMS: Final = 20
#: What a site or run may be called.
SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Name = Annotated[str, Field(pattern=f"^{SITE_NAME.pattern}$")]
#: Of each weight on its way up; 32 sends weights as they are. See `wire.rounding`.
Bits = Literal[4, 8, 32]
Grid = Annotated[tuple[int, ...], Field(min_length=3, max_length=3)]
Patch = Annotated[
    tuple[Annotated[int, Field(ge=1, le=512)], ...], Field(min_length=3, max_length=3)
]


class Stage(StrEnum):
    """The parts of a run, in order."""

    PRETRAIN = "pretrain"
    MOMENTS = "moments"
    SEGMENT = "segment"
    ADVERSARIAL = "adversarial"
    METRICS = "metrics"


class Critic(StrEnum):
    """The three sizes of discriminator."""

    MEAN_FEATURES = "mean-features"
    HEAD = "head"
    PATCHGAN = "patchgan"


class Game(StrEnum):
    """What a PatchGAN and the generator play for."""

    HINGE = "hinge"
    CROSS_ENTROPY = "cross-entropy"


class Precision(StrEnum):
    """In what a site's private steps run through a network, forward and backward.

    Weights, and clipping, sums and noise of gradients, are float32 and float64 in both.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class MomentsSettings(Value):
    """One Gaussian release of per-tissue intensity moments."""

    stage: Literal[Stage.MOMENTS] = Stage.MOMENTS


class SegmentSettings(Value):
    """DP-SGD on the segmenter; `steps` local steps a round are in the mechanism.

    With `directions`, steps go along so many directions of weight space, which the plan brings,
    and noise is added to so many numbers; with 0, to every weight, and Adam steps.
    `sites` says how many are asked, since the mean of all their steps holds less noise.
    `bfloat16` is faster where GPU or CPU computes in it.
    """

    stage: Literal[Stage.SEGMENT] = Stage.SEGMENT
    precision: Precision = Precision.FLOAT32
    directions: int = Field(default=0, ge=0, le=1024)
    sites: int = Field(default=1, ge=1, le=1_000_000)
    learning_rate: float = Field(default=1e-3, gt=0, le=1)
    crops: int = Field(default=2, ge=1, le=64)
    proximal: float = Field(default=0.0, ge=0, le=100)


class AdversarialSettings(Value):
    """Train the site's critic on its patients, then the generator against it on public labels.

    Attributes:
        game: of the PatchGAN; the other critics have no use for it.
        precision: of a PatchGAN's steps; the generator always paints in float32.
        generator_steps: of a round.
        batch: public label maps of one step.
        crops: cut from each sampled patient.
        critic_weight, consistency_weight, lock_weight: of the parts of the generator's loss.
        paired_weight: of the L1 distance on patients' own pairs; 0 leaves it out. With a PatchGAN
            this is the seed paper's training: critic and generator take turns on the same pairs.
        lesion_share: the part of that distance that is taken in patches around lesion voxels, the
            other part being in patches around brain voxels. 0: the plain mean over all voxels.
        lesion_patch: the patches' sides, in voxels.
        label_bank: how many public label maps there are.

    """

    stage: Literal[Stage.ADVERSARIAL] = Stage.ADVERSARIAL
    critic: Critic = Critic.MEAN_FEATURES
    game: Game = Game.HINGE
    precision: Precision = Precision.FLOAT32
    critic_learning_rate: float = Field(default=1e-3, gt=0, le=1)
    generator_steps: int = Field(default=10, ge=0, le=100_000)
    generator_learning_rate: float = Field(default=2e-4, gt=0, le=1)
    batch: int = Field(default=4, ge=2, le=1024)
    crops: int = Field(default=2, ge=1, le=64)
    critic_weight: float = Field(default=0.5, ge=0)
    consistency_weight: float = Field(default=1.0, ge=0)
    lock_weight: float = Field(default=10.0, ge=0)
    paired_weight: float = Field(default=0.0, ge=0)
    lesion_share: float = Field(default=0.0, ge=0, le=1)
    lesion_patch: Patch = (16, 16, 16)
    label_bank: int = Field(default=16, ge=2, le=4096)

    @property
    def plays_on_pairs(self) -> bool:
        """Whether critic and generator both learn from the patients' own pairs, as pix2pix does."""
        return self.critic is Critic.PATCHGAN and self.paired_weight > 0


class MetricsSettings(Value):
    """One Gaussian release of how well the federated segmenter does on the site's patients."""

    stage: Literal[Stage.METRICS] = Stage.METRICS


Settings = Annotated[
    MomentsSettings | SegmentSettings | AdversarialSettings | MetricsSettings,
    Field(discriminator="stage"),
]


class PlanHeader(Value):
    """All of a plan but its weights.

    Attributes:
        run: under which the site keeps its ledger entries.
        stage: what is trained.
        round: of the stage, from 1.
        site: who is asked.
        grid: voxels of a volume.
        crop: voxels of a crop.
        networks: sizes of the networks.
        settings: of the stage.
        mechanisms: what is spent, in order.
        public_seed: of public label maps.
        update_bits: of each weight in the answer.

    """

    run: Name
    stage: Stage
    round: int = Field(ge=1, le=1_000_000)
    site: Name
    grid: Grid
    crop: Grid
    networks: NetworkSettings
    settings: Settings
    mechanisms: tuple[Mechanism, ...] = Field(max_length=2)
    public_seed: int = Field(ge=0, lt=2**63)
    update_bits: Bits = 32

    @model_validator(mode="after")
    def _parts_agree(self) -> "PlanHeader":
        if self.settings.stage is not self.stage:
            raise ValueError(f"settings are for {self.settings.stage}, the plan for {self.stage}")
        if any(not 8 <= side <= 512 for side in (*self.grid, *self.crop)):
            raise ValueError(f"grid and crop sides must be 8..512, got {self.grid}, {self.crop}")
        self.networks.check_sides(self.grid, self.crop)
        names = [mechanism.name for mechanism in self.mechanisms]
        if len(set(names)) != len(names):
            raise ValueError(f"mechanisms must have different names, got {names}")
        return self


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """One round's orders for one site.

    Attributes:
        header: what to do.
        weights: named tensors the site starts from.
        seal: who says so; no part of the digest. None within one machine.
        hashed: what remembers the weights' hash; plans of the same weights may have one together.

    """

    header: PlanHeader
    weights: Mapping[str, Tensor]
    seal: Seal | None = None
    hashed: HashedTensors = field(default_factory=HashedTensors, repr=False, compare=False)

    def digest(self) -> str:
        """SHA-256 over the canonical header and every tensor's name, type, shape and bytes.

        The weights are hashed once, however often it is asked for.
        """
        digest = hashlib.sha256(canonical_json(self.header))
        digest.update(self.hashed.digest(self.weights))
        return digest.hexdigest()


def canonical_json(value: BaseModel) -> bytes:
    """One spelling of a value: sorted keys, no spaces, UTF-8."""
    return json.dumps(
        value.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


def parse(kind: type[Kind], content: bytes | str, *, name: str) -> Kind:
    """Decode a value from JSON; the first faults become `Problem`s of a `BadMessage`."""
    if len(content) > LARGEST_HEADER:
        wanted = f"at most {LARGEST_HEADER} bytes"
        raise BadMessage(Problem(name=name, value=f"{len(content)} bytes", wanted=wanted))
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise BadMessage(problems_of(error, name=name)[:MOST_PROBLEMS]) from error


def problems_of(error: ValidationError, *, name: str) -> list[Problem]:
    """Turn pydantic's findings into ours: where, what was found, what was wanted."""
    found: list[Problem] = []
    for fault in error.errors(include_url=False):
        place = ".".join(str(part) for part in fault["loc"])
        value: Any = fault["input"]
        found.append(
            Problem(
                name=f"{name}: {place}" if place else name,
                value=repr(value)[:80],
                wanted=fault["msg"],
            )
        )
    return found
