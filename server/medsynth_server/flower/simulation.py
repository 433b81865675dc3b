"""Flower's simulation runtime, which runs nodes as Ray's actors, and what it must be told first."""

import logging
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from medsynth_common.command_line import QUIET
from medsynth_common.errors import BadConfig, MedsynthError, Problem

_START_SECONDS: Final = 300.0
_LOOK_SECONDS: Final = 0.1
#: Where Ray finds a cluster; without it, it starts on this machine.
_CLUSTER: Final = "RAY_ADDRESS"
#: Read by Ray as it is imported; the second is about a change of its own that it warns of.
_BEFORE_RAY: Final = {**QUIET, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class SimulationFailed(MedsynthError):
    """Flower's simulation runtime did not start, or ended before its time."""


def require_ray() -> None:
    """Raise `BadConfig` unless Ray is installed."""
    if find_spec("ray") is None:
        problem = Problem(
            name="engine",
            value="ray",
            wanted="Ray, which is not installed",
            mend="pip install 'medsynth-federated[ray]', or take --engine local",
        )
        raise BadConfig(problem)


@contextmanager
def simulation_grid(app: ClientApp, *, nodes: int, actors: int, gpus: float) -> Iterator[Grid]:
    """Run so many nodes of an app; gives the grid of them, for as long as the block.

    Args:
        app: what each node does with a message.
        nodes: how many.
        actors: processes on this machine that nodes share; on a cluster, one for each CPU.
        gpus: of each actor, which may be a part of one.

    Raises:
        SimulationFailed: the runtime did not start; Ray's own logs say why.

    """
    os.environ.update(_BEFORE_RAY)
    grids: queue.Queue[Grid] = queue.Queue()
    failed: list[BaseException] = []
    done = threading.Event()
    server = ServerApp()

    @server.main()  # type: ignore[untyped-decorator] # flwr ships no types that mypy follows
    def hand_out(grid: Grid, context: Any) -> None:
        grids.put(grid)
        done.wait()

    def run() -> None:
        from flwr.simulation import run_simulation

        # One machine, seen by nobody else; a cluster says for itself what it has.
        here = {"num_cpus": actors, "_node_ip_address": "127.0.0.1"}
        # What actors print stays in Ray's logs: a run's own progress is what a person should see.
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        settings = {
            "init_args": quiet if _CLUSTER in os.environ else quiet | here,
            "client_resources": {"num_cpus": 1, "num_gpus": gpus},
        }
        try:
            run_simulation(server, app, nodes, backend_config=settings)
        except BaseException as error:  # the edge of a thread: told by who waits for the grid
            failed.append(error)

    thread = threading.Thread(target=run, name="simulation", daemon=True)
    thread.start()
    try:
        yield _wait_for(grids, thread, nodes, failed)
    finally:
        done.set()
        thread.join()


def _wait_for(
    grids: "queue.Queue[Grid]", thread: threading.Thread, nodes: int, failed: list[BaseException]
) -> Grid:
    """Give the grid once all its nodes are there."""
    grid: Grid | None = None
    waited = 0.0
    while thread.is_alive() and waited < _START_SECONDS:
        if grid is None and not grids.empty():
            grid = grids.get()
        if grid is not None and len(list(grid.get_node_ids())) == nodes:
            return grid
        thread.join(_LOOK_SECONDS)
        waited += _LOOK_SECONDS
    why = f"{type(failed[0]).__name__}: {failed[0]}" if failed else "it did not come up in time"
    raise SimulationFailed(f"Flower's simulation runtime: {why} (Ray's logs: /tmp/ray)")
