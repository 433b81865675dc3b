"""What a site can be asked to do, one file each; `WORK` is the whole list."""

from collections.abc import Callable, Mapping
from typing import Final

from medsynth_client.order import Order, Outcome
from medsynth_client.stages.adversarial import train_generator
from medsynth_client.stages.metrics import release_metrics
from medsynth_client.stages.moments import release_moments
from medsynth_client.stages.segment import train_segmenter
from medsynth_common.plan import Stage

WORK: Final[Mapping[Stage, Callable[[Order], Outcome]]] = {
    Stage.MOMENTS: release_moments,
    Stage.SEGMENT: train_segmenter,
    Stage.ADVERSARIAL: train_generator,
    Stage.METRICS: release_metrics,
}

__all__ = ["WORK", "Order", "Outcome"]
