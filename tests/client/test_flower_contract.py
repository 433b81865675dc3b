"""Which inner names of Flower the hospital's `flower.py` needs: mend that file."""

import ast
import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, TIMESTAMP_TOLERANCE
from flwr.supercore.error import ApiErrorCode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from medsynth_client.connection import AHEAD, BEHIND
from medsynth_common.command_line import QUIET

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = ROOT / "client" / "medsynth_client" / "flower.py"
PRIVATE = {
    "flwr.common.constant": {"HEARTBEAT_DEFAULT_INTERVAL", "ErrorCode"},
    "flwr.common.serde": {"message_from_proto", "message_to_proto"},
    "flwr.proto.fleet_pb2": {
        "ActivateNodeRequest",
        "DeactivateNodeRequest",
        "PullMessagesRequest",
        "PushMessagesRequest",
    },
    "flwr.proto.heartbeat_pb2": {"SendNodeHeartbeatRequest"},
    "flwr.proto.message_pb2": {
        "ConfirmMessageReceivedRequest",
        "ObjectTree",
        "PullObjectRequest",
        "PushObjectRequest",
    },
    "flwr.proto.node_pb2": {"Node"},
    "flwr.proto.run_pb2": {"GetRunRequest"},
    "flwr.supercore.error": {"ApiErrorCode"},
    "flwr.supercore.inflatable.inflatable_object": {
        "get_all_nested_objects",
        "get_object_tree",
        "iterate_object_tree",
        "no_object_id_recompute",
    },
    "flwr.supercore.inflatable.inflatable_utils": {
        "ObjectUnavailableError",
        "inflate_object_from_contents",
        "pull_objects",
    },
    "flwr.supercore.primitives.asymmetric": {"public_key_to_bytes"},
    "flwr.supernode.fleet_http_client": {"FleetHttpClient"},
    "flwr.supernode.node_auth_http_interceptor": {"NodeAuthHttpInterceptor"},
}
CALLS = [
    "ActivateNode",
    "DeactivateNode",
    "SendNodeHeartbeat",
    "PullMessages",
    "GetRun",
    "PullObject",
    "ConfirmMessageReceived",
    "PushMessages",
    "PushObject",
]


def test_the_adapter_uses_these_private_names_and_no_others() -> None:
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(ADAPTER.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flwr."):
            if str(node.module).startswith("flwr.app"):
                continue
            found[str(node.module)] = {alias.name for alias in node.names}
    assert found == PRIVATE


@pytest.mark.parametrize("name", CALLS)
def test_the_fleet_s_calls_are_there_and_take_one_request(name: str) -> None:
    assert list(inspect.signature(getattr(FleetHttpClient, name)).parameters) == ["self", "request"]
    assert f"self._client.{name}" in ADAPTER.read_text()


def test_what_would_fetch_code_is_not_called() -> None:
    text = ADAPTER.read_text()
    assert "GetFab" not in text
    assert hasattr(FleetHttpClient, "GetFab")  # else the line above says nothing


def test_the_client_is_made_of_a_context_and_a_timeout() -> None:
    made = inspect.signature(FleetHttpClient).parameters
    assert {"base_url", "interceptors", "verify", "timeout"} <= set(made)
    assert list(inspect.signature(NodeAuthHttpInterceptor).parameters) == [
        "private_key",
        "public_key",
    ]


def test_numbers_that_our_messages_repeat() -> None:
    assert BEHIND == TIMESTAMP_TOLERANCE
    assert AHEAD == 5.0
    assert HEARTBEAT_DEFAULT_INTERVAL == 30
    assert ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED == 2004
    assert ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED == 2007


def test_arrays_and_configs_travel_whole() -> None:
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    content = RecordDict({"c": ConfigRecord({"k": b"v"}), "a": ArrayRecord()})
    objects = get_all_nested_objects(content)
    contents = {name: one.deflate() for name, one in objects.items()}
    back = inflate_object_from_contents(content.object_id, contents)
    assert isinstance(back, RecordDict)
    assert not isinstance(back, Message)
    assert back["c"]["k"] == b"v"


def test_nothing_calls_home_while_a_node_looks_for_its_coordinator(tmp_path: Path) -> None:
    """The one name that a node's process looks up is its coordinator's."""
    script = textwrap.dedent(
        """
        import os, socket, sys
        from pathlib import Path

        looked = []
        def refuse(host, *given, **more):
            looked.append(host)
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        socket.getaddrinfo = refuse
        from medsynth_common.command_line import QUIET
        os.environ.update(QUIET)
        import ssl
        from cryptography.hazmat.primitives.asymmetric import ec
        from medsynth_client.flower import Fleet
        from medsynth_common.errors import Unreachable
        key = ec.generate_private_key(ec.SECP384R1())
        with Fleet("coordinator.test:1", key=key, context=ssl.create_default_context()) as fleet:
            try:
                fleet.activate()
            except Unreachable as error:
                assert "no such name in DNS" in str(error), error
        assert set(looked) == {"coordinator.test"}, looked
        """
    )
    environment = {k: v for k, v in os.environ.items() if k not in QUIET}
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        environment.pop(name, None)
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
