"""The door, by a stranger who has nothing but the address and the certificate authority."""

import asyncio
import gc
import socket
import ssl
import time
import weakref
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import Request
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from federation.stand_in import StandIn
from federation.wire import Wire
from medsynth_server.coordinator.guard import LARGEST
from medsynth_server.flower import desk

PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wire]:
    with Wire(tmp_path_factory.mktemp("door")) as wire:
        yield wire


@pytest.fixture(scope="module")
def context(wire: Wire) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=wire.ca.decode())


@pytest.fixture(scope="module")
def client(wire: Wire, context: ssl.SSLContext) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=f"https://{wire.address}", verify=context, trust_env=False, timeout=20
    ) as client:
        yield client


def stranger_bytes() -> bytes:
    key: bytes = public_key_to_bytes(ec.generate_private_key(ec.SECP384R1()).public_key())
    return key


#: What was open to anyone in a stock SuperLink.
ATTACK = {
    "/v1/control/list-nodes": ListNodesRequest(),
    "/v1/control/register-node": RegisterNodeRequest(public_key=stranger_bytes()),
    "/v1/control/start-run": StartRunRequest(),
    "/v1/runtime/acquire-task": AcquireTaskRequest(supported_task_types=["flwr-serverapp"]),
    "/v1/fleet/register-node": RegisterNodeRequest(public_key=stranger_bytes()),
    "/v1/fleet/unregister-node": ListNodesRequest(),
    "/v1/fleet/get-fab": ListNodesRequest(),
}


@pytest.mark.parametrize("path", ATTACK)
def test_what_starts_code_or_lets_nodes_in_is_not_there(client: httpx.Client, path: str) -> None:
    body = ATTACK[path].SerializeToString()
    assert client.post(path, content=body, headers=PROTOBUF).status_code == 404


@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "/redoc", "/", "/v1/fleet/", "/healthz"]
)
def test_no_page_tells_what_there_is(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_health_is_told_to_anyone(client: httpx.Client) -> None:
    assert client.get("/health").status_code == 200
    assert client.head("/health").status_code == 200
    assert client.post("/health").status_code == 405


def request_by_hand(wire: Wire, context: ssl.SSLContext, lines: list[str]) -> int:
    """The status of an answer to a request of which no more was sent than this."""
    host, port = wire.address.split(":")
    with (
        socket.create_connection((host, int(port)), timeout=20) as raw,
        context.wrap_socket(raw, server_hostname=host) as connection,
    ):
        head = "\r\n".join([*lines, f"Host: {host}", "", ""])
        connection.sendall(head.encode())
        return int(connection.recv(64).split()[1])


@pytest.mark.parametrize("path", LARGEST)
def test_a_body_that_is_too_long_is_refused_before_it_comes(
    wire: Wire, context: ssl.SSLContext, path: str
) -> None:
    lines = [f"POST {path} HTTP/1.1", "Content-Length: 400000000"]
    assert request_by_hand(wire, context, lines) == 413
    lines[1] = f"Content-Length: {LARGEST[path] + 1}"
    assert request_by_hand(wire, context, lines) == 413


@pytest.mark.parametrize(
    "header", ["X-Nothing: 1", "Transfer-Encoding: chunked", "Content-Length: "]
)
def test_a_body_without_a_length_is_refused(
    wire: Wire, context: ssl.SSLContext, header: str
) -> None:
    lines = ["POST /v1/fleet/push-object HTTP/1.1", header]
    assert request_by_hand(wire, context, lines) in (411, 400)


def test_a_key_that_is_not_enrolled_is_refused_before_its_body_comes(
    wire: Wire, context: ssl.SSLContext
) -> None:
    lines = ["POST /v1/fleet/push-object HTTP/1.1", "Content-Length: 8000000"]
    assert request_by_hand(wire, context, lines) == 401
    lines.append("flwr-public-key: not base64!")
    assert request_by_hand(wire, context, lines) == 401


def test_a_stranger_s_own_key_does_not_open(wire: Wire) -> None:
    stranger = StandIn("stranger")
    stranger._address, stranger._ca = wire.address, wire.ca
    key = public_key_to_bytes(stranger.node_key.public_key())
    with stranger.client() as client, pytest.raises(httpx.HTTPStatusError, match="401") as refused:
        client.ActivateNode(ActivateNodeRequest(public_key=key, heartbeat_interval=30))
    assert refused.value.response.json()["code"] == 2004


def test_an_enrolled_key_must_be_held_and_not_only_shown(wire: Wire, client: httpx.Client) -> None:
    """Who saw a site's public key cannot speak for it."""
    member = StandIn("member")
    wire.sites["member"] = member
    wire.grid.enrol()
    thief = ec.generate_private_key(ec.SECP384R1())
    interceptor = NodeAuthHttpInterceptor(thief, member.node_key.public_key())
    node = wire.grid._node_of["member"]
    with (
        FleetHttpClient.from_server_address(
            wire.address, False, wire.ca, interceptors=[interceptor]
        ) as stolen,
        pytest.raises(httpx.HTTPStatusError, match="401"),
    ):
        stolen.PullMessages(PullMessagesRequest(node={"node_id": node}))
    wire.sites.pop("member")


def test_plain_http_is_not_answered(wire: Wire) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{wire.address}/health", trust_env=False, timeout=20)


def test_of_a_request_that_is_done_nothing_is_left(wire: Wire) -> None:
    """A body of megabytes in a circle of references would stay until Python's collector comes."""
    left: list[weakref.ref[Request]] = []

    class Seen(Request):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            left.append(weakref.ref(self))

    member = wire.join("leaver", lambda plan: "PolicyRefusal")
    wire.grid.enrol()
    node = wire.grid._node_of["leaver"]
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(desk, "Request", Seen)
            with member.client() as client:
                for _ in range(3):
                    client.PullMessages(PullMessagesRequest(node={"node_id": node}))
        member.stop()
        assert len(left) >= 3
        deadline = time.monotonic() + 20  # the last one's answer may be on its way out
        while (there := [one for one in left if one() is not None]) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert there == []
    finally:
        gc.enable()
    wire.sites.pop("leaver")


def test_the_desk_itself_answers_only_nodes_and_only_what_they_need(wire: Wire) -> None:
    """Behind the guard: were that gone, the dangerous paths would not be there either."""

    async def ask() -> list[int]:
        transport = httpx.ASGITransport(wire.link.app)
        flower = {"content-type": "application/protobuf"}
        pull = PullMessagesRequest(node={"node_id": 1}).SerializeToString()
        path = "/v1/fleet/pull-messages"
        async with httpx.AsyncClient(transport=transport, base_url="http://desk") as client:
            asked = [client.post(path, content=b"", headers=flower) for path in ATTACK]
            asked += [
                client.post(path, content=pull, headers=flower),
                client.post(path, content=pull, headers=PROTOBUF),
                client.post(path, content=b"\xff", headers=flower),
            ]
            return [(await one).status_code for one in asked]

    assert asyncio.run(ask()) == [404] * len(ATTACK) + [401, 415, 400]
