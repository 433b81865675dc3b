"""Opening a federation to its sites: link, door and grid, and the pulse that keeps them."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import SiteCard
from medsynth_server.coordinator.door import Door
from medsynth_server.coordinator.heap import trimmer
from medsynth_server.engines.flower import FlowerGrid
from medsynth_server.flower.link import Link

_PULSE_SECONDS: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Premises:
    """Where a federation is served from.

    Attributes:
        database: of the link; nodes keep their numbers in it.
        listen: host and port to bind; port 0: any free one.
        certificate: the server's, PEM.
        key: the server's, PEM.

    """

    database: Path
    listen: str
    certificate: Path
    key: Path


@dataclass(frozen=True, kw_only=True)
class Attendance:
    """How many sites must be there, and what to do until they are.

    Attributes:
        quorum: how many.
        join_deadline: seconds to wait for them.
        tell: says who is missing.
        stopping: whether to wait no longer.

    """

    quorum: int
    join_deadline: float
    tell: Callable[[str], None]
    stopping: Callable[[], bool] = lambda: False


@contextmanager
def opened(
    premises: Premises,
    cards: Callable[[], Mapping[str, SiteCard]],
    key: SigningKey,
    attendance: Attendance,
    *,
    on_pulse: Callable[[FlowerGrid], None] = lambda grid: None,
) -> Iterator[tuple[FlowerGrid, Door]]:
    """Serve the sites until the block ends; gives the way to ask them, and the open door.

    Args:
        premises: where.
        cards: the enrolled sites' cards, as they are now.
        key: the coordinator's, for plans.
        attendance: who must be there.
        on_pulse: called every few seconds, from another thread.

    Raises:
        ConnectionFailed: the address cannot be bound.

    """
    premises.database.parent.mkdir(parents=True, exist_ok=True)
    link = Link(premises.database)
    try:
        grid = FlowerGrid(
            link,
            cards,
            key,
            quorum=attendance.quorum,
            join_deadline=attendance.join_deadline,
            tell=attendance.tell,
            stopping=attendance.stopping,
        )
        door = Door(
            link.app,
            listen=premises.listen,
            certificate=premises.certificate,
            key=premises.key,
            enrolled=grid.enrolled,
        )
        with door, _pulse(link, lambda: on_pulse(grid)):
            yield grid, door
    finally:
        link.close()


@contextmanager
def _pulse(link: Link, on_pulse: Callable[[], None]) -> Iterator[None]:
    """Keep the link's run alive, also while the coordinator trains and asks nobody."""
    done = threading.Event()
    trim = trimmer()

    def beat() -> None:
        # What fails here ends this thread; the grid beats too, and so the run meets the same.
        while not done.wait(_PULSE_SECONDS):
            link.beat()
            on_pulse()
            trim()

    on_pulse()
    thread = threading.Thread(target=beat, name="pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
