"""A recording proxy on a trainer's Unix socket, and what it makes of the bytes it saw.

It knows HTTP/2 frames (RFC 9113, section 4) and gRPC's five-byte prefix, and nothing of gRPC's own
code: what it gives back is what went over the wire.
"""

import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from medsynth_common.wire.site_pb2 import PlanPart, UpdatePart
from medsynth_common.wire.trainer_rpc import TrainerClient

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _PADDED = 0, 0x8


@dataclass
class Connection:
    """Every byte of one connection: up is what the trainer sent."""

    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One call of `Carry`: the plan's parts, and everything that came back for it."""

    plan: Sequence[PlanPart]
    answer: Sequence[UpdatePart]


class SocketObserver:
    """Listens beside the trainer's socket and hands every byte on, both ways."""

    def __init__(self, trainer: Path) -> None:
        self._trainer = trainer
        self.socket = trainer.with_name("observed.sock")
        self.connections: list[Connection] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.socket))
        self._listener.listen()
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def close(self) -> None:
        """Hang up both ways; what was recorded stays."""
        for end in (self._listener, *self._ends):
            with suppress(OSError):  # it has hung up already
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()
        self.socket.unlink()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return  # shut down
            trainer = socket.socket(socket.AF_UNIX)
            self._ends += [caller, trainer]
            try:
                trainer.connect(str(self._trainer))
            except OSError:  # it is not up yet: the caller will try again
                caller.shutdown(socket.SHUT_RDWR)
                continue
            seen = Connection()
            self.connections.append(seen)
            self._start(self._pump, caller, trainer, seen.down)
            self._start(self._pump, trainer, caller, seen.up)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket, seen: bytearray) -> None:
        with suppress(OSError):  # one end is gone
            while content := source.recv(1 << 16):
                seen += content
                target.sendall(content)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class ObservedClient(TrainerClient):
    """The engine's client of a trainer, with an observer in between."""

    observers: list[SocketObserver]  # given by the test that puts it in place

    def __init__(self, path: Path) -> None:
        self._observer = SocketObserver(path)
        self.observers.append(self._observer)
        super().__init__(self._observer.socket)

    def close(self) -> None:
        super().close()
        self._observer.close()


def exchanges(connection: Connection) -> Iterator[Exchange]:
    """Every call of `Carry`, in order; calls of `Describe` ask with nothing."""
    asked = _messages(bytes(connection.down).removeprefix(_PREFACE))
    told = _messages(bytes(connection.up))
    for stream, questions in sorted(asked.items()):
        if questions != [b""]:
            yield Exchange(
                plan=[PlanPart.FromString(one) for one in questions],
                answer=[UpdatePart.FromString(one) for one in told.get(stream, [])],
            )


def _messages(wire: bytes) -> Mapping[int, list[bytes]]:
    """Put each stream's gRPC messages together from its DATA frames."""
    streams: dict[int, bytearray] = defaultdict(bytearray)
    place = 0
    while place < len(wire):
        size = int.from_bytes(wire[place : place + 3], "big")
        kind, flags = wire[place + 3], wire[place + 4]
        stream = int.from_bytes(wire[place + 5 : place + 9], "big") & 0x7FFFFFFF
        payload = wire[place + 9 : place + 9 + size]
        assert len(payload) == size, "a frame was cut off"
        if kind == _DATA:
            padding = payload[0] if flags & _PADDED else 0
            streams[stream] += payload[1 : size - padding] if flags & _PADDED else payload
        place += 9 + size
    return {stream: list(_unprefixed(bytes(data))) for stream, data in streams.items()}


def _unprefixed(data: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(data):
        assert data[place] == 0, "a compressed message, which cannot be searched"
        size = int.from_bytes(data[place + 1 : place + 5], "big")
        yield data[place + 5 : place + 5 + size]
        place += 5 + size
