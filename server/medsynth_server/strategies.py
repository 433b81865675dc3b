"""How the sites' weights are combined: Flower's strategies, by name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
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
from medsynth_common.wire.records import arrays, tensors
from medsynth_server.flower import reply, train_message
from medsynth_server.shelf import Draft, Shelf

#: FedProx averages like FedAvg; its proximal term is the sites' part (`segment.proximal`).
STRATEGIES: Final[Mapping[str, Callable[[], Strategy]]] = {
    "fedavg": lambda: FedAvg(fraction_evaluate=1.0),
    "fedprox": lambda: FedAvg(fraction_evaluate=1.0),
    "fedadam": lambda: FedAdam(eta=1e-2, tau=1e-3),
    "median": lambda: FedMedian(),
    "trimmed-mean": lambda: FedTrimmedAvg(beta=0.2),
    "krum": lambda: Krum(num_malicious_nodes=1),
}
#: They look at a site's weights as a whole; the others, at each number for itself.
_OF_THE_WHOLE: Final = {"krum"}
#: Where each number is combined for itself, so many are in memory at once: of one site at most,
#: and of all.
_PIECE: Final = 1 << 20
_ROOM: Final = 1 << 22
#: What FedAdam remembers between rounds, under these attribute names.
_MEMORY: Final = ("m_t", "v_t")

#: A tensor's name, and which of its numbers: from, and up to before.
_Span = tuple[str, int, int]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One site's checked update."""

    update: SiteUpdate


class Combiner:
    """A strategy with its memory made explicit, so that a checkpoint can hold it.

    Where the strategy combines each number for itself (all but Krum), the weights pass through it
    in pieces: answers that lie on disk are never in memory together, however many sites there are;
    and then the new weights lie there too, until they are looked at.
    """

    def __init__(self, name: str) -> None:
        self._strategy: Any = STRATEGIES[name]()
        self._in_pieces = name not in _OF_THE_WHOLE

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
        shelves = [a.update.weights for a in answers if isinstance(a.update.weights, Shelf)]
        new: _Memory | Draft
        new = Draft(current, folder=shelves[0].folder) if shelves else _Memory(current)
        kept: dict[str, dict[str, Tensor]] = {slot: {} for slot in _MEMORY}
        for piece in self._pieces(current, sites=len(answers)):
            taken = {name: _flat(current, name)[start:stop] for name, start, stop in piece}
            before = {
                slot: {
                    name: _flat(stored, name)[start:stop]
                    for name, start, stop in piece
                    if name in stored
                }
                for slot in _MEMORY
                if (stored := under(slot, memory))
            }
            combined, after = self._combine(taken, _part(answers, piece), round, before)
            for name, start, stop in piece:
                new.put(name, start, combined[name])
                for slot, values in after.items():
                    whole = kept[slot].setdefault(
                        name, torch.empty(current[name].shape, dtype=values[name].dtype)
                    )
                    whole.view(-1)[start:stop] = values[name]
        return new.tensors(), {
            name: value for slot in _MEMORY for name, value in with_prefix(slot, kept[slot]).items()
        }

    def _pieces(self, current: Mapping[str, Tensor], *, sites: int) -> Iterator[list[_Span]]:
        """Which numbers go through the strategy together."""
        if not self._in_pieces:
            yield [(name, 0, tensor.numel()) for name, tensor in current.items()]
            return
        held: list[_Span] = []
        room = length = max(1, min(_PIECE, _ROOM // sites))
        for name, tensor in current.items():
            for start in range(0, max(1, tensor.numel()), length):
                span = (name, start, min(start + length, tensor.numel()))
                # One span of a tensor a piece, as pieces are named by tensors.
                if held and (span[2] - start > room or held[-1][0] == name):
                    yield held
                    held, room = [], length
                held.append(span)
                room -= span[2] - start
        if held:
            yield held

    def _combine(
        self,
        current: Mapping[str, Tensor],
        answers: Sequence[RecordDict],
        round: int,
        memory: Mapping[str, Mapping[str, Tensor]],
    ) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        if hasattr(self._strategy, "current_arrays"):
            self._strategy.current_arrays = {k: v.numpy() for k, v in current.items()}
        for slot in _MEMORY:
            if hasattr(self._strategy, slot):
                stored = {k: v.numpy() for k, v in memory.get(slot, {}).items()}
                setattr(self._strategy, slot, stored or None)
        replies = [
            reply(content, train_message(RecordDict(), node))
            for node, content in enumerate(answers, start=1)
        ]
        combined, _ = self._strategy.aggregate_train(round, replies)
        after = {
            slot: {k: torch.from_numpy(np.array(v)) for k, v in values.items()}
            for slot in _MEMORY
            if (values := getattr(self._strategy, slot, None))
        }
        return tensors(combined), after


class _Memory:
    """Tensors of a given form that are being made, in memory: as `Draft`."""

    def __init__(self, forms: Mapping[str, Tensor]) -> None:
        self._tensors = {name: torch.empty_like(form) for name, form in forms.items()}

    def put(self, name: str, start: int, values: Tensor) -> None:
        whole = self._tensors[name]
        whole.view(-1)[start : start + values.numel()] = values.to(whole.dtype)

    def tensors(self) -> dict[str, Tensor]:
        return self._tensors


def _part(answers: Sequence[Answer], piece: Sequence[_Span]) -> list[RecordDict]:
    """What the strategy may see of each answer: some of its numbers, and the site's public size."""
    return [
        RecordDict(
            {
                "arrays": _arrays(answer.update.weights, piece),
                "metrics": MetricRecord({"num-examples": answer.update.header.declared_patients}),
            }
        )
        for answer in answers
    ]


def _arrays(weights: Mapping[str, Tensor], piece: Sequence[_Span]) -> ArrayRecord:
    if isinstance(weights, Shelf):
        return arrays({name: weights.piece(name, start, stop) for name, start, stop in piece})
    return arrays({name: _flat(weights, name)[start:stop] for name, start, stop in piece})


def _flat(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """A tensor's numbers in a row, where they lie."""
    return weights[name].view(-1)
