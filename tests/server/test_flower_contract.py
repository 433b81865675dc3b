"""Which inner names of Flower the package `flower` needs, and what they must do: mend that."""

import ast
import importlib.metadata
import logging
import os
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import flwr.common.constant
import flwr.supercore.run
import flwr.supercore.task_identity
import flwr.supercore.telemetry
import pytest
from flwr.app import ConfigRecord, MessageType, RecordDict
from flwr.serverapp.strategy import FedAdam

from medsynth_common.command_line import QUIET
from medsynth_common.errors import MedsynthError
from medsynth_server.flower import (
    error_reply,
    give_message_id,
    reply,
    start_identity,
    train_message,
)
from medsynth_server.flower.link import Link

ROOT = Path(__file__).resolve().parents[2]
#: Every import of `flower/` that is not of Flower's public modules.
PRIVATE = {
    "flwr.app.message": {"remove_content_from_message"},
    "flwr.app.message.arraychunk": {"ArrayChunk"},
    "flwr.common.constant": {
        *("SUPERLINK_NODE_ID", "ErrorCode", "Status", "NOOP_ACCOUNT_NAME", "NOOP_FLWR_AID"),
        *("HEARTBEAT_DEFAULT_INTERVAL", "HEARTBEAT_PATIENCE"),
    },
    "flwr.simulation": {"run_simulation"},
    "flwr.proto.message_pb2": {"ObjectTree"},
    "flwr.server.superlink.linkstate.sql_linkstate": {"SqlLinkState"},
    "flwr.supercore": {"sql_mixin"},
    "flwr.supercore.constant": {
        *("FLEET_HTTP_PUBLIC_KEY_HEADER", "NOOP_FEDERATION_ID", "TaskType", "HEAD_BODY_DIVIDER"),
    },
    "flwr.supercore.error": {"http_error_translator"},
    "flwr.supercore.inflatable.inflatable_object": {
        *("get_all_nested_objects", "get_object_tree", "iterate_object_tree", "get_object_id"),
        *("get_object_body", "UnexpectedObjectContentError", "InflatableObject"),
        *("no_object_id_recompute", "get_object_children_ids_from_object_content"),
        "get_object_type_from_object_content",
    },
    "flwr.supercore.inflatable.inflatable_utils": {
        *("inflate_object_from_contents", "validate_object_content"),
    },
    "flwr.supercore.object_store": {"NoObjectInStoreError"},
    "flwr.supercore.object_store.in_memory_object_store": {"InMemoryObjectStore"},
    "flwr.supercore.primitives.asymmetric": {"public_key_to_bytes"},
    "flwr.supercore.protobuf.constants": {"PROTOBUF_MEDIA_TYPE"},
    "flwr.supercore.protobuf.translation": {
        *("PROTOBUF_REQUEST_TYPES", "ProtobufTranslationMiddleware"),
    },
    "flwr.supercore.run": {"Run", "RunStatus"},
    "flwr.supercore.task_identity": {"TaskIdentity"},
    "flwr.superlink.federation": {"NoOpFederationManager"},
    "flwr.superlink.routers.fleet.node_auth": {"authenticate_node"},
    "flwr.superlink.servicer.fleet": {"fleet_handlers"},
}


def _content() -> RecordDict:
    return RecordDict({"c": ConfigRecord({"k": b"v"})})


def test_the_installed_flower_is_the_one_that_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = next(d for d in project["dependencies"] if d.startswith("flwr"))
    assert pinned == f"flwr=={importlib.metadata.version('flwr')}"


def test_only_one_package_of_the_server_imports_these_private_names() -> None:
    found: dict[str, set[str]] = {}
    for path in (ROOT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("flwr."):
                continue
            module = str(node.module)
            public = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy")
            if module in public:
                continue
            assert path.parent.name == "flower", path
            found.setdefault(module, set()).update(alias.name for alias in node.names)
    assert found == PRIVATE


def test_the_private_names_exist() -> None:
    assert flwr.common.constant.SUPERLINK_NODE_ID == 1
    assert flwr.common.constant.ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert flwr.supercore.run.Run.create_empty(run_id=5).run_id == 5


def test_an_identity_is_what_lets_a_message_be_made() -> None:
    run = start_identity(run_id=7)
    identity = flwr.supercore.task_identity.TaskIdentity
    assert (run.run_id, identity.run_id, identity.task_id) == (7, 7, 1)
    message = train_message(_content(), node_id=42)
    assert message.metadata.dst_node_id == 42
    assert message.metadata.run_id == 7
    assert message.metadata.src_node_id == flwr.common.constant.SUPERLINK_NODE_ID
    assert message.metadata.message_type == MessageType.TRAIN
    assert message.content["c"]["k"] == b"v"


def test_a_reply_comes_from_whom_was_asked() -> None:
    start_identity(run_id=7)
    question = train_message(_content(), node_id=42)
    give_message_id(question, "message-9")
    assert question.metadata.message_id == "message-9"
    answer = reply(_content(), question)
    assert not answer.has_error()
    assert answer.metadata.src_node_id == 42
    assert answer.metadata.reply_to_message_id == "message-9"


def test_an_error_reply_carries_the_name_and_nothing_else() -> None:
    start_identity(run_id=7)
    question = train_message(_content(), node_id=42)
    answer = error_reply("BudgetExhausted", question)
    assert answer.has_error()
    assert answer.error.reason == "BudgetExhausted"
    assert answer.metadata.src_node_id == 42
    assert not answer.has_content()


@pytest.mark.parametrize("slot", ["current_arrays", "m_t", "v_t"])
def test_fedadam_keeps_its_memory_under_the_names_that_a_checkpoint_holds(slot: str) -> None:
    assert getattr(FedAdam(), slot) is None


def test_a_link_keeps_nodes_and_clears_what_a_dead_process_left(tmp_path: Path) -> None:
    """What `flower.link` needs of Flower's state, beside what whole rounds show."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from medsynth_server.flower.link import Link

    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    key = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    first = Link(tmp_path / "link.db")
    node = first.register(key)
    assert first.register(key) == node
    assert not first.nodes()[node].online
    question = train_message(_content(), node)
    assert first.ask(question) is None  # it never joined, and so is asked nothing
    assert first._state.activate_node(node, 30)
    name = first.ask(train_message(_content(), node))
    assert name is not None
    assert first.answers([name]) == {}
    assert first.nodes()[node].online
    # The process dies here; another takes the database over.
    second = Link(tmp_path / "link.db")
    assert second.register(key) == node
    assert second._state.get_message_ins(node, limit=1) == []
    assert second._run != first._run
    with pytest.raises(MedsynthError, match="has ended"):
        first.beat()
    second.beat()


def test_flowers_own_log_stays_quiet() -> None:
    assert logging.getLogger("flwr").level >= logging.ERROR


def test_nothing_calls_home_when_the_command_line_brings_flower_in() -> None:
    """Every name look-up and connection of a process that runs our command ends it."""
    script = textwrap.dedent(
        """
        import os, socket, sys

        def refuse(*given, **more):
            print("LOOKED UP", given, file=sys.stderr)
            os._exit(9)

        socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
        assert "flwr" not in sys.modules
        import medsynth_server.cli
        assert "flwr" not in sys.modules, "the command line imports Flower before it is quiet"
        sys.argv = ["medsynth-server", "simulate", "--data", "/nowhere", "--out", "/nowhere/out"]
        try:
            medsynth_server.cli.main()
        except SystemExit as end:
            assert end.code == 4, end.code
        assert "flwr.serverapp" in sys.modules
        import flwr.supercore.telemetry as telemetry
        assert telemetry.FLWR_TELEMETRY_ENABLED == "0"
        """
    )
    roots = os.pathsep.join(str(ROOT / root) for root in ("common", "client", "server"))
    environment = {k: v for k, v in os.environ.items() if k not in QUIET} | {"PYTHONPATH": roots}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "no such folder" in ended.stderr


def test_a_connection_to_the_links_database_keeps_little_in_memory(tmp_path: Path) -> None:
    link = Link(tmp_path / "link.db")
    with link._state.session() as session:
        told = {
            name: session.connection().exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("cache_size", "mmap_size", "synchronous")
        }
    link.close()
    assert told == {"cache_size": -4000, "mmap_size": 0, "synchronous": 1}
