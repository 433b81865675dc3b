"""Asking sites by Flower messages: what the engines that are Flower grids have in common."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from flwr.app import Message

from medsynth_common.errors import BadMessage
from medsynth_common.plan import RoundPlan
from medsynth_common.update import SiteUpdate
from medsynth_common.wire.records import plan_to_records, update_from_records
from medsynth_server.flower import train_message


class _MessageGrid(Protocol):
    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]: ...


class ByMessages:
    """Gives a grid of messages the way of asking that a federation wants."""

    def ask(
        self: _MessageGrid, plans: Mapping[int, RoundPlan], *, timeout: float
    ) -> Iterator[tuple[int, SiteUpdate | str]]:
        """Ask nodes; gives each one's update, or the name of an error in its place."""
        questions = (
            train_message(plan_to_records(plan), node, ttl=timeout) for node, plan in plans.items()
        )
        for answer in self.send_and_receive(questions, timeout=timeout):
            yield answer.metadata.src_node_id, update_in(answer)


def update_in(answer: Message) -> SiteUpdate | str:
    """Take the update out of an answer, or the name of an error."""
    if answer.has_error():
        return str(answer.error.reason)[:64]
    try:
        return update_from_records(answer.content)
    except BadMessage as error:
        return type(error).__name__
