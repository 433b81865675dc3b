"""The link: the part of Flower's SuperLink that sites talk to, without the rest.

A stock SuperLink serves its Control and Runtime APIs, which start code, on the same port and
without authentication. Here they are not mounted at all: the application is Flower's fleet router
alone, over Flower's own state in one SQLite file, and questions go in and answers come out by
direct calls on that state.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any, Final

from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from fastapi import FastAPI
from flwr.app import Array, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    HEARTBEAT_PATIENCE,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    ErrorCode,
    Status,
)
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore import sql_mixin
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_children_ids_from_object_content,
    get_object_tree,
    get_object_type_from_object_content,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import NoObjectInStoreError, ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.routers import health
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router as fleet_router
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from medsynth_common.errors import BadMessage, MedsynthError, Problem
from medsynth_server.flower.messages import give_message_id, start_identity
from medsynth_server.shelf import Shelf

#: The HTTP header in which a node shows its public key (PEM, in base64).
KEY_HEADER: Final = FLEET_HTTP_PUBLIC_KEY_HEADER.encode()
#: What a gone node's question is answered with by Flower, in place of the node.
_GONE: Final = {ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE}
_UNFINISHED: Final = (Status.PENDING, Status.STARTING, Status.RUNNING)
#: Objects of an answer beside one for each chunk of a tensor: records, arrays, headers.
_ROOM: Final = 1 << 20
#: So much of an answer waits in memory for the rest; a longer one, on disk.
_IN_MEMORY: Final = 32 << 20
_CHUNK: Final = "ArrayChunk"

# Flower gives each connection to its database, one a thread, a cache of 64 MB and a map of 256 MB
# of the file: with a few sites' answers passing, more than all the weights. And a connection gives
# up when another writes for five seconds, as one that takes half a gigabyte of answers away does.
_OURS: Final = {"cache_size": "-4000", "mmap_size": "0", "busy_timeout": "120000"}
sql_mixin.SQLITE_PRAGMAS = (
    *(one for one in sql_mixin.SQLITE_PRAGMAS if one[0] not in _OURS),
    *_OURS.items(),
)


class Gone(MedsynthError):
    """The node that was asked went away before it answered."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A site's node, as the link last heard of it.

    Attributes:
        online: whether it is in touch: it said so within Flower's patience, a minute.
        activated: when it last joined; changes when it was restarted. Empty before it ever came.
        seen: when it was last heard of, seconds since 1970; None before it ever came.

    """

    online: bool
    activated: str
    seen: float | None


@dataclass(kw_only=True)
class Arriving:
    """An answer whose parts are still on their way: they are uploaded one by one.

    Attributes:
        root: the answer's own object.
        wanted: the objects that it consists of.
        here: where in `store` those lie that have come: kind, first byte, length.
        store: them, in memory while they are few, else in a file without a name.
        size: bytes that have come.

    """

    root: str
    wanted: list[str]
    store: IO[bytes]
    here: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    size: int = 0

    def add(self, name: str, content: bytes) -> None:
        """Keep an object that has come."""
        try:
            kind = get_object_type_from_object_content(content)
        except ValueError as error:
            raise _unusable(type(error).__name__) from error
        self.store.seek(self.size)
        self.store.write(content)
        self.here[name] = (kind, self.size, len(content))
        self.size += len(content)

    def content(self, name: str) -> bytes:
        """Give an object that has come."""
        _, start, length = self.here[name]
        self.store.seek(start)
        return self.store.read(length)


class _LaterArray(Array):  # type: ignore[misc] # flwr ships no types that mypy follows
    """An array of an answer that has come, put together when it is looked at, and not kept."""

    def __init__(self, arriving: Arriving, name: str) -> None:
        super().__init__(dtype="", shape=(), stype="", data=b"")
        self.__dict__.update(_arriving=arriving, _name=name)

    def numpy(self) -> Any:
        """Put it together."""
        arriving: Arriving = self.__dict__["_arriving"]
        name: str = self.__dict__["_name"]
        content = arriving.content(name)
        parts = get_object_children_ids_from_object_content(content)
        # What was not on the list of the answer's objects is none of its parts.
        contents = {part: arriving.content(part) for part in parts}
        array = inflate_object_from_contents(name, {name: content, **contents})
        return array.numpy()


class Link:
    """One run's questions to nodes, and their answers. Nodes are remembered from run to run."""

    def __init__(self, database: Path) -> None:
        self._folder = database.parent
        objects = ObjectStoreFactory(str(database))
        factory = LinkStateFactory(str(database), NoOpFederationManager(), objects)
        self._state: Any = factory.state()
        self._clear_old_runs()
        self._run, self._task = self._start_run()
        start_identity(self._run)
        self.app = _application(factory)

    def register(self, node_key: str) -> int:
        """Let a node with this OpenSSH public key in; gives its number, the same every time."""
        key = pem_of(node_key)
        known: int | None = self._state.get_node_id_by_public_key(key)
        if known is not None:
            return known
        made: int = self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0)
        return made

    def nodes(self) -> Mapping[int, Node]:
        """Every node that was ever registered."""
        return {info.node_id: _node(info) for info in self._state.get_node_info()}

    def ask(self, question: Message) -> str | None:
        """Lay a message out for its node to fetch; gives its name, or None if the node never came.

        Its objects are there before it is: a node that finds it finds the whole of it.
        """
        state, run = self._state, self._run
        with no_object_id_recompute():
            give_message_id(question, question.object_id)
            tree, objects = get_object_tree(question), get_all_nested_objects(question)
            session = state.start_session(run)
            for name in state.preregister_object_tree(tree, session):
                if not state.store_object(run, session, name, objects[name].deflate()):
                    raise MedsynthError(f"the link's database did not take object {name}")
        stored: str | None = state.store_message_ins(remove_content_from_message(question))
        return stored

    def answer(self, question: str) -> Message | None:
        """Look for an answer, without its content; None when there is none yet.

        Raises:
            Gone: the node went away, and an answer with it.

        """
        found = self._state.get_message_res({question}, self._run)
        if not found:
            return None
        answer: Message = found[0]
        if answer.has_error() and answer.error.code in _GONE:
            raise Gone(str(answer.error.reason))
        return answer

    def arriving(self, answer: Message, *, most: int) -> Arriving:
        """Begin to collect an answer's objects. Raises `BadMessage` when there are over `most`."""
        root = answer.metadata.message_id
        try:
            tree = self._state.object_store.get_object_tree(root)
            wanted = list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))
        except (NoObjectInStoreError, RecursionError) as error:
            raise _unusable(type(error).__name__) from error
        if len(wanted) > most:
            raise _unusable(f"{len(wanted)} objects")
        # Closed by whoever is done with the answer.
        store = SpooledTemporaryFile(max_size=_IN_MEMORY, dir=str(self._folder))  # noqa: SIM115
        return Arriving(root=root, wanted=wanted, store=store)

    def collect(self, arriving: Arriving, *, most: int) -> RecordDict | None:
        """Take what has come; gives the content when it is whole, else None.

        The content's arrays are put together when they are looked at, each anew.

        Args:
            arriving: what is on its way.
            most: bytes that the answer's tensors have.

        Raises:
            BadMessage: too much came, or it is no content.

        """
        for name in arriving.wanted:
            content = None if name in arriving.here else self._state.object_store.get(name)
            if content:
                arriving.add(name, content)
        if arriving.size > most + _ROOM:
            raise _unusable(f"{arriving.size} bytes")
        if len(arriving.here) < len(arriving.wanted):
            return None
        return _content(arriving)

    def shelve(self, pieces: Iterator[bytes]) -> Shelf:
        """Put an answer's tensors on the disk that the database is on."""
        return Shelf(pieces, folder=self._folder)

    def forget(self, question: str, answer: str | None = None) -> None:
        """Drop a question and its answer; what still comes to it finds nothing to answer."""
        self._state.delete_messages({question})
        for root in (question, answer):
            if root is not None:
                self._state.object_store.delete(root)

    def beat(self) -> None:
        """Say that this run is alive: unless it is said within a minute, nodes are turned away."""
        if not self._state.acknowledge_task_heartbeat(self._task):
            raise MedsynthError("the link's run has ended: this process was stopped too long")

    def close(self) -> None:
        """End the run."""
        self._state.stop_run(self._run)

    def _clear_old_runs(self) -> None:
        """End what a process that died had begun; nodes that still answer it are told so."""
        for run in self._state.get_run_info(statuses=_UNFINISHED):
            self._state.stop_run(run.run_id)

    def _start_run(self) -> tuple[int, int]:
        state = self._state
        run: int = state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        (info,) = state.get_run_info(run_ids=[run])
        task: int = info.primary_task_id
        if state.claim_task(task) is None or not state.activate_task(task):
            raise MedsynthError("the link's database did not take a new run")
        return run, task


def pem_of(node_key: str) -> bytes:
    """Turn an OpenSSH public key into what nodes show of it."""
    pem: bytes = public_key_to_bytes(load_ssh_public_key(node_key.encode()))
    return pem


def _application(factory: Any) -> FastAPI:
    """Flower's fleet API and nothing else: no Control, no Runtime, no documentation pages."""
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
        ],
    )
    app.state.linkstate_factory = factory
    app.state.enable_supernode_auth = True
    app.include_router(health.router)
    app.include_router(fleet_router)
    return app


def _node(info: Any) -> Node:
    if not info.last_activated_at:
        return Node(online=False, activated="", seen=None)
    online = info.status == "online"
    if online:
        seen = info.online_until - HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL
    else:
        seen = datetime.fromisoformat(info.last_deactivated_at).timestamp()
    return Node(online=online, activated=info.last_activated_at, seen=seen)


def _content(arriving: Arriving) -> RecordDict:
    arrays = [name for name, (kind, *_) in arriving.here.items() if kind == Array.__qualname__]
    chunks = [name for name, (kind, *_) in arriving.here.items() if kind == _CHUNK]
    records = [name for name in arriving.here if name not in {*arrays, *chunks}]
    try:
        message = inflate_object_from_contents(
            arriving.root,
            {name: arriving.content(name) for name in records},
            # Stand-ins, each with its object's name; records copy what they are given.
            objects={name: Array("", (), name, b"") for name in arrays},
        )
    except Exception as error:
        # An edge: a peer made these bytes up, and Flower's readers raise what they raise.
        raise _unusable(type(error).__name__) from error
    if not isinstance(message, Message) or not message.has_content():
        raise _unusable("no content")
    for record in message.content.array_records.values():
        for name, stand_in in record.items():
            record[name] = _LaterArray(arriving, stand_in.stype)
    return message.content


def _unusable(value: str) -> BadMessage:
    return BadMessage(Problem(name="answer", value=value, wanted="an update's records"))
