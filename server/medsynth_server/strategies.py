"""How the sites' weights are combined: Flower's strategies, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from flwr.app import Message
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    Krum,
    Strategy,
)
from torch import Tensor

from medsynth_common.tensors import under, with_prefix
from medsynth_common.update import SiteUpdate
from medsynth_common.wire.records import strategy_records, tensors
from medsynth_server.flower import reply

#: FedProx averages like FedAvg; its proximal term is the sites' part (`segment.proximal`).
STRATEGIES: Final[Mapping[str, Callable[[], Strategy]]] = {
    "fedavg": lambda: FedAvg(fraction_evaluate=1.0),
    "fedprox": lambda: FedAvg(fraction_evaluate=1.0),
    "fedadam": lambda: FedAdam(eta=1e-2, tau=1e-3),
    "median": lambda: FedMedian(),
    "trimmed-mean": lambda: FedTrimmedAvg(beta=0.2),
    "krum": lambda: Krum(num_malicious_nodes=1),
}
#: What FedAdam remembers between rounds, under these attribute names.
_MEMORY: Final = ("m_t", "v_t")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One site's checked update, and the message it answers."""

    update: SiteUpdate
    question: Message


class Combiner:
    """A strategy with its memory made explicit, so that a checkpoint can hold it."""

    def __init__(self, name: str) -> None:
        self._strategy: Any = STRATEGIES[name]()

    def combine(
        self,
        current: Mapping[str, Tensor],
        answers: Sequence[Answer],
        *,
        round: int,
        memory: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Combine the answers' weights.

        Args:
            current: the weights the round started from.
            answers: the sites' checked updates, at least one.
            round: of the stage.
            memory: what this function gave back in the stage's last round.

        Returns:
            the new weights, in the types of `current`; and the strategy's memory.

        """
        if hasattr(self._strategy, "current_arrays"):
            self._strategy.current_arrays = {k: v.numpy() for k, v in current.items()}
        for slot in _MEMORY:
            if hasattr(self._strategy, slot):
                stored = {k: v.numpy() for k, v in under(slot, memory).items()}
                setattr(self._strategy, slot, stored or None)
        replies = [reply(strategy_records(answer.update), answer.question) for answer in answers]
        combined, _ = self._strategy.aggregate_train(round, replies)
        new = {name: value.to(current[name].dtype) for name, value in tensors(combined).items()}
        kept: dict[str, Tensor] = {}
        for slot in _MEMORY:
            values = getattr(self._strategy, slot, None) or {}
            kept |= with_prefix(slot, {k: torch.from_numpy(np.array(v)) for k, v in values.items()})
        return new, kept
