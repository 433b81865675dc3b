"""The `Trainer` service of `site.proto` over gRPC: the server's half and the caller's half."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from medsynth_common.wire.site_pb2 import DescribeRequest, Description, PlanPart, UpdatePart

_SERVICE = "medsynth.site.Trainer"
_OPTIONS = [
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.so_reuseport", 0),
    # A trainer that was started anew is found at once; gRPC would wait for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class TrainerService(Protocol):
    """What a trainer offers."""

    def describe(self) -> Description:
        """Tell which sites it holds."""

    def carry(self, parts: Iterable[PlanPart]) -> Iterator[UpdatePart]:
        """Carry out one plan."""


def serve(service: TrainerService, socket: Path, *, group: int | None = None) -> Any:
    """Start a gRPC server for `service` on a Unix socket of mode 0600; returns the server.

    With a `group` the socket is that group's too, and its mode 0660.
    The standard health service (`grpc.health.v1`) stands beside it.
    """
    # Imported here: a command that only prints its help need not wait for it.
    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(max_workers=4), options=_OPTIONS)
    handlers = {
        "Describe": grpc.unary_unary_rpc_method_handler(
            lambda _request, context: _or_name(service.describe, context),
            request_deserializer=DescribeRequest.FromString,
            response_serializer=Description.SerializeToString,
        ),
        "Carry": grpc.stream_stream_rpc_method_handler(
            lambda parts, context: _each_or_name(service, parts, context),
            request_deserializer=PlanPart.FromString,
            response_serializer=UpdatePart.SerializeToString,
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    healthy = health.HealthServicer()
    healthy.set(_SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    # The socket is its owner's from its first moment: a later chmod would leave a gap.
    mask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{socket}")
    finally:
        os.umask(mask)
    if group is not None:
        os.chown(socket, -1, group)
        socket.chmod(0o660)
    server.start()
    return server


def _or_name(answer: Callable[[], Description], context: Any) -> Description:
    try:
        return answer()
    except Exception as error:  # gRPC would log its text, and send it: it may hold a patient's
        context.abort(grpc.StatusCode.INTERNAL, _name_of(error))
        raise


def _each_or_name(
    service: TrainerService, parts: Iterable[PlanPart], context: Any
) -> Iterator[UpdatePart]:
    try:
        yield from service.carry(parts)
    except Exception as error:  # as above
        context.abort(grpc.StatusCode.INTERNAL, _name_of(error))


def _name_of(error: Exception) -> str:
    return type(error).__name__


class TrainerClient:
    """Calls a trainer on its Unix socket. Raises `grpc.RpcError` when it is gone."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self._describe = self._channel.unary_unary(
            f"/{_SERVICE}/Describe",
            request_serializer=DescribeRequest.SerializeToString,
            response_deserializer=Description.FromString,
        )
        self._carry = self._channel.stream_stream(
            f"/{_SERVICE}/Carry",
            request_serializer=PlanPart.SerializeToString,
            response_deserializer=UpdatePart.FromString,
        )

    def describe(self, *, timeout: float) -> Description:
        """Ask which sites the trainer holds; waits until it is up, at most `timeout` seconds."""
        answer: Description = self._describe(
            DescribeRequest(), timeout=timeout, wait_for_ready=True
        )
        return answer

    def carry(self, parts: Iterable[PlanPart], *, timeout: float) -> Iterator[UpdatePart]:
        """Send a plan, stream the answer."""
        answer: Iterator[UpdatePart] = self._carry(iter(parts), timeout=timeout)
        return answer

    def serving(self, *, timeout: float) -> bool:
        """Ask the standard health service; False when nobody answers within `timeout` seconds."""
        check = health_pb2_grpc.HealthStub(self._channel).Check
        try:
            answer = check(health_pb2.HealthCheckRequest(service=_SERVICE), timeout=timeout)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()
