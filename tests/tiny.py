"""The smallest federation there is: three phantoms, three networks of a few channels, one plan.

Everything is made once and never changed: tests that spoil something make their own.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsynth_common.learning.directions import Directions
from medsynth_common.learning.features import fit_scale
from medsynth_common.learning.moments import Prior, fit_prior
from medsynth_common.learning.variation import Variation
from medsynth_common.learning.volumes import Volume
from medsynth_common.networks import Generator, NetworkSettings, build_critic, build_segmenter
from medsynth_common.phantom import SITE_SCANNERS, make_phantom
from medsynth_common.plan import (
    AdversarialSettings,
    MetricsSettings,
    MomentsSettings,
    PlanHeader,
    RoundPlan,
    SegmentSettings,
    Stage,
)
from medsynth_common.privacy.mechanism import Gaussian, Unprotected
from medsynth_common.tensors import state_of, under, with_prefix
from medsynth_server.public_directions import find_directions

GRID: Final = (24, 24, 24)
CROP: Final = (16, 16, 16)
PATIENTS: Final = 3
FIRST_SEED: Final = 100
SITE: Final = "site-a"
NETWORKS: Final = NetworkSettings(
    generator_channels=(4, 8),
    detail_channels=4,
    critic_channels=4,
    segmenter_channels=(4, 8),
)
SETTINGS: Final = {
    Stage.MOMENTS: MomentsSettings(),
    Stage.SEGMENT: SegmentSettings(crops=2),
    Stage.ADVERSARIAL: AdversarialSettings(generator_steps=1, batch=2, label_bank=2, crops=2),
    Stage.METRICS: MetricsSettings(),
}
#: What each stage's work spends, in the order of a plan; `paired` only where it is switched on.
MECHANISMS: Final = {
    Stage.MOMENTS: ("level",),
    Stage.SEGMENT: ("segmenter",),
    Stage.ADVERSARIAL: ("critic",),
    Stage.METRICS: ("metrics",),
}

#: Makes a site's folder: `new_site(name, seed=..., **changes of its policy)`.
NewSite = Callable[..., Path]


class Quiet:
    """Randomness without chance: everyone is sampled, crops lie in the corner, noise is none."""

    seeded = True

    def uniform(self, n: int) -> NDArray[np.float64]:
        return np.zeros(n)

    def normal(self, shape: Sequence[int], std: float) -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.float64)


@lru_cache
def volumes(scanner: int = 0, first: int = FIRST_SEED, count: int = PATIENTS) -> tuple[Volume, ...]:
    """Phantoms with a tumour each, as one scanner sees them."""
    made = [make_phantom(first + k, GRID, SITE_SCANNERS[scanner], tumours=1) for k in range(count)]
    return tuple(
        Volume(image=torch.from_numpy(one.image), labels=torch.from_numpy(one.labels))
        for one in made
    )


@lru_cache
def prior() -> Prior:
    """What two public scanners say."""
    return fit_prior([volumes(scanner, 500) for scanner in (1, 2)])


@lru_cache
def model() -> Mapping[str, Tensor]:
    """Every tensor that any stage's plan holds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        generator = Generator(NETWORKS)
        # An untrained generator paints and no more; its weights must have a say here.
        torch.nn.init.normal_(generator.paint.weight, std=0.02)
        critic, segmenter = build_critic(NETWORKS), build_segmenter(NETWORKS)
    return {
        **with_prefix("generator", state_of(generator)),
        **with_prefix("segmenter", state_of(segmenter)),
        **with_prefix("critic", state_of(critic)),
        **with_prefix("features", fit_scale(critic, volumes(1, 500), 3).tensors()),
        **with_prefix("prior", prior().tensors()),
        **with_prefix("variation", Variation.independent().tensors()),
        **with_prefix("style", prior().style().tensors()),
    }


@lru_cache
def directions(count: int) -> Directions:
    """Where the segmenter's gradients point on phantoms of two scanners."""
    segmenter = build_segmenter(NETWORKS)
    segmenter.load_state_dict(under("segmenter", model()))
    public = [volume for scanner in (1, 2) for volume in volumes(scanner, 500)]
    crops = ((one.image[None], one.labels[None]) for one in cycle(public))
    return find_directions(segmenter, crops, count=count, spatial_dims=3)


def gaussian(name: str, **changes: Any) -> Gaussian:
    """A mechanism that costs little."""
    fields = {"clip": 1.0, "noise_multiplier": 5.0, "sampling_rate": 1.0, "steps": 1}
    return Gaussian(name=name, **{**fields, **changes})


def unprotected(name: str, *, steps: int = 1) -> Unprotected:
    """The same mechanism without protection."""
    return Unprotected(name=name, sampling_rate=1.0, steps=steps)


def header(stage: Stage = Stage.MOMENTS, **changes: Any) -> PlanHeader:
    """The head of a plan for `stage`, with some fields changed."""
    fields: dict[str, Any] = {
        "run": "run-1",
        "stage": stage,
        "round": 1,
        "site": SITE,
        "grid": GRID,
        "crop": CROP,
        "networks": NETWORKS,
        "settings": SETTINGS[stage],
        "mechanisms": tuple(gaussian(name) for name in MECHANISMS[stage]),
        "public_seed": 11,
    }
    return PlanHeader(**{**fields, **changes})


def plan(stage: Stage = Stage.MOMENTS, **changes: Any) -> RoundPlan:
    """A plan for `stage` with the weights it needs, and some fields of its head changed."""
    parts = {
        Stage.MOMENTS: ("prior", "style"),
        Stage.SEGMENT: ("segmenter",),
        Stage.METRICS: ("segmenter",),
        Stage.ADVERSARIAL: ("generator", "segmenter", "critic", "features", "variation", "style"),
    }[stage]
    weights = {name: t for name, t in model().items() if name.split(".")[0] in parts}
    head = header(stage, **changes)
    if isinstance(head.settings, SegmentSettings) and head.settings.directions:
        weights |= with_prefix("directions", directions(head.settings.directions).tensors())
    return RoundPlan(header=head, weights=weights)


def adversarial(**changes: Any) -> AdversarialSettings:
    """The tiny settings of the adversarial stage, with some changed."""
    return SETTINGS[Stage.ADVERSARIAL].model_copy(update=changes)  # type: ignore[return-value]
