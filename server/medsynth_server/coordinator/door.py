"""The coordinator's open door: the link under TLS, behind the guard, in a thread of its own."""

import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import uvicorn

from medsynth_common.errors import ConnectionFailed, Problem
from medsynth_server.coordinator.guard import Guard
from medsynth_server.coordinator.pki import split_address

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 5.0
#: Connections at once; each of an enrolled node's may hold one object's body in memory.
_AT_ONCE: Final = 1024


class Door:
    """Serves an application until it is closed. Use it as a context manager."""

    def __init__(
        self,
        app: Any,
        *,
        listen: str,
        certificate: Path,
        key: Path,
        enrolled: Callable[[bytes], bool],
    ) -> None:
        # Bound here and not by uvicorn, which ends the whole process when a port is taken.
        self._socket = _bind(listen)
        self._server = uvicorn.Server(
            uvicorn.Config(
                Guard(app, enrolled=enrolled),
                ssl_certfile=certificate,
                ssl_keyfile=key,
                limit_concurrency=_AT_ONCE,
                timeout_graceful_shutdown=1,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="door", daemon=True
        )
        # What strangers send is no news; what ends the server is told by `__enter__`.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)

    @property
    def port(self) -> int:
        """The port that is bound."""
        port: int = self._socket.getsockname()[1]
        return port

    def __enter__(self) -> "Door":
        self._thread.start()
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self._socket.close()
                raise ConnectionFailed("the coordinator's server did not start")
            time.sleep(0.02)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join(_STOP_SECONDS)
        self._socket.close()


def _bind(listen: str) -> socket.socket:
    host, port = split_address(listen)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        problem = Problem(
            name=f"listen {listen}",
            value=error.strerror or type(error).__name__,
            wanted="an address of this machine and a free port",
        )
        raise ConnectionFailed(str(problem)) from error
