"""Flower's state in SQLite, without what a request of a node need not wait for.

A node sends some twenty requests a round. In each, Flower looks for tasks that have died, adds up
traffic and finds the node by its key; and it looks at what was sent while others wait.
"""

import time
from pathlib import Path
from typing import Final

from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore import sql_mixin
from flwr.supercore.inflatable.inflatable_object import UnexpectedObjectContentError
from flwr.supercore.run import RunStatus
from flwr.superlink.federation import NoOpFederationManager

from medsynth_server.flower.objects import ObjectFiles

# Flower gives each connection to its database, one a thread, a cache of 64 MB and a map of 256 MB
# of the file; and a connection gives up when another writes for five seconds, as on a slow disk.
_OURS: Final = {"cache_size": "-4000", "mmap_size": "0", "busy_timeout": "120000"}
sql_mixin.SQLITE_PRAGMAS = (
    *(one for one in sql_mixin.SQLITE_PRAGMAS if one[0] not in _OURS),
    *_OURS.items(),
)

#: How old it may be what is known of a run when a node's request is let pass, seconds.
_FRESH_SECONDS: Final = 1.0


class State(SqlLinkState):  # type: ignore[misc] # flwr ships no types that mypy follows
    """Flower's state of runs, nodes and messages, in a file; their objects are elsewhere."""

    def __init__(self, database: Path, objects: ObjectFiles) -> None:
        super().__init__(str(database), NoOpFederationManager(), objects)
        self._objects = objects
        self._nodes: dict[bytes, int] = {}
        self._runs: dict[int, RunStatus] = {}
        self._looked = float("-inf")
        self.initialize()

    def get_node_id_by_public_key(self, public_key: bytes) -> int | None:
        """Give a node's number, looked up once: it never changes, and no node is unregistered.

        Who is taken out of the federation is turned away before (`Guard`).
        """
        if public_key not in self._nodes:
            found: int | None = super().get_node_id_by_public_key(public_key)
            if found is None:
                return None
            self._nodes[public_key] = found
        return self._nodes[public_key]

    def store_object(
        self, run_id: int, session_id: str, object_id: str, object_content: bytes
    ) -> bool:
        """Keep an object that a node sends; False when it is none that is waited for."""
        try:
            with self._objects.prepared(object_id, object_content):
                stored: bool = super().store_object(run_id, session_id, object_id, object_content)
                return stored
        except (ValueError, UnexpectedObjectContentError):
            return False

    def store_traffic(self, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        """Count nothing: a round's bytes are counted where a round is."""

    def add_clientapp_runtime(self, run_id: int, runtime: float) -> None:
        """Count nothing: sites do not say how long they worked."""

    def get_run_status(self, run_ids: set[int]) -> dict[int, RunStatus]:
        """Tell how runs stand, or stood a moment ago; those of them that are known."""
        now = time.monotonic()
        if now > self._looked + _FRESH_SECONDS or not run_ids <= self._runs.keys():
            self._looked, self._runs = now, super().get_run_status(run_ids)
        return {run: self._runs[run] for run in run_ids if run in self._runs}
