"""The link: the part of Flower's SuperLink that sites talk to, without the rest.

A stock SuperLink serves its Control and Runtime APIs, which start code, on the same port and
without authentication. Here they are not there at all: nodes' own messages are answered
(`desk.py`), over Flower's state in one SQLite file (`state.py`) and its objects in others
(`objects.py`), and questions go in and answers come out by direct calls on that state.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.app import Array, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import (
    HEARTBEAT_DEFAULT_INTERVAL,
    HEARTBEAT_PATIENCE,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    ErrorCode,
    Status,
)
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_body,
    get_object_children_ids_from_object_content,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from medsynth_common.errors import BadMessage, MedsynthError, Problem
from medsynth_common.wire.records import ArrayInParts, Bytes
from medsynth_server.flower.desk import Desk
from medsynth_server.flower.messages import give_message_id, start_identity
from medsynth_server.flower.objects import Kept, ObjectFiles
from medsynth_server.flower.state import State
from medsynth_server.shelf import Shelf

#: The HTTP header in which a node shows its public key (PEM, in base64).
KEY_HEADER: Final = FLEET_HTTP_PUBLIC_KEY_HEADER.encode()
#: What a gone node's question is answered with by Flower, in place of the node.
_GONE: Final = {ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE}
_UNFINISHED: Final = (Status.PENDING, Status.STARTING, Status.RUNNING)
#: Bytes of an answer beside its tensors: records, arrays, headers.
ROOM: Final = 1 << 20


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


@dataclass(frozen=True, kw_only=True)
class Arriving:
    """An answer whose parts are still on their way: they are uploaded one by one.

    Attributes:
        root: the answer's own object.
        wanted: the objects that it consists of.

    """

    root: str
    wanted: list[str]


class _Part(InflatableObject):  # type: ignore[misc] # flwr ships no types that mypy follows
    """A part of an array that is laid out; its content, when that is in no file."""

    def __init__(self, name: str, content: bytes | None) -> None:
        self._name, self._content = name, content

    @property
    def object_id(self) -> str:
        return self._name

    def deflate(self) -> bytes:
        assert self._content is not None
        return self._content


class _LaidOut(Array):  # type: ignore[misc] # as above
    """An array whose bytes are in the link's files."""

    def __init__(self, name: str, head: bytes, parts: Mapping[str, _Part]) -> None:
        self.__dict__.update(dtype="uint8", shape=(), stype="", data=b"")
        self.__dict__.update(_name=name, _head=head, _parts=dict(parts))

    @property
    def object_id(self) -> str:
        return str(self.__dict__["_name"])

    @property
    def children(self) -> dict[str, _Part]:
        parts: dict[str, _Part] = self.__dict__["_parts"]
        return parts

    def deflate(self) -> bytes:
        return bytes(self.__dict__["_head"])


class Link:
    """One run's questions to nodes, and their answers. Nodes are remembered from run to run."""

    def __init__(self, database: Path) -> None:
        self._folder = database.parent
        self._objects = ObjectFiles(database.with_name("objects"))
        self._state: Any = State(database, self._objects)
        self._clear_old_runs()
        self._run, self._task = self._start_run()
        start_identity(self._run)
        self.app = Desk(self._state)

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

    @contextmanager
    def laying_out(self) -> Iterator[Callable[[bytes, str], Array]]:
        """To `ask` within.

        Gives what makes an array of bytes and the name of their kind. Its bytes are on disk at
        once: questions that have it are laid out without them, and share what is there.
        """

        def array(content: bytes, stype: str) -> Array:
            whole = Array(dtype="uint8", shape=(len(content),), stype=stype, data=content)
            name, head, parts = whole.object_id, whole.deflate(), dict(whole.slice_array())
            kept = {
                part: None if self._objects.stage(part, chunk := parts[part].deflate()) else chunk
                for part in parts
            }
            return _LaidOut(name, head, {part: _Part(part, kept[part]) for part in kept})

        with no_object_id_recompute(), self._objects.staging():
            yield array

    def ask(self, question: Message) -> str | None:
        """Lay a message out for its node to fetch; gives its name, or None if the node never came.

        Its objects are there before it is: a node that finds it finds the whole of it.
        """
        give_message_id(question, question.object_id)
        tree, objects = get_object_tree(question), get_all_nested_objects(question)
        for name in self._objects.preregister(self._run, tree):
            if self._objects.staged(name):
                self._objects.put_staged(name)
            else:
                self._objects.put(name, objects[name].deflate())
        stored: str | None = self._state.store_message_ins(remove_content_from_message(question))
        return stored

    def answers(self, questions: Collection[str]) -> dict[str, Message | Gone]:
        """Look for answers, without their content, to questions by name.

        Whose node went away, and an answer with it, has `Gone` in its place.
        """
        found: dict[str, Message | Gone] = {}
        for answer in self._state.get_message_res(set(questions), self._run):
            gone = answer.has_error() and answer.error.code in _GONE
            name: str = answer.metadata.reply_to_message_id
            found[name] = Gone(str(answer.error.reason)) if gone else answer
        return found

    def arriving(self, answer: Message, *, most: int) -> Arriving:
        """Begin to collect an answer's objects. Raises `BadMessage` when there are over `most`."""
        root = answer.metadata.message_id
        try:
            tree = self._objects.get_object_tree(root)
            wanted = list(dict.fromkeys(node.object_id for node in iterate_object_tree(tree)))
        except (NoObjectInStoreError, RecursionError) as error:
            raise _unusable(type(error).__name__) from error
        if len(wanted) > most:
            raise _unusable(f"{len(wanted)} objects")
        return Arriving(root=root, wanted=wanted)

    def wait(self, seconds: float) -> None:
        """Wait until the whole of a message has come, or for so long."""
        self._objects.whole.wait(seconds)
        self._objects.whole.clear()

    def collect(self, arriving: Arriving, *, most: int) -> RecordDict | None:
        """Give an answer's content when it is whole, else None.

        Its arrays are read when they are looked at, each anew, and until the answer is forgotten.

        Args:
            arriving: what is on its way.
            most: bytes that the answer's tensors have.

        Raises:
            BadMessage: too much came, or it is no content.

        """
        found = {name: self._objects.kept(name) for name in arriving.wanted}
        here = {name: kept for name, kept in found.items() if kept is not None}
        size = sum(kept.size for kept in here.values())
        if size > most + ROOM:
            raise _unusable(f"{size} bytes")
        return _content(arriving.root, here, self._objects) if len(here) == len(found) else None

    def shelve(self, pieces: Iterator[Bytes]) -> Shelf:
        """Put an answer's tensors on the disk that the database is on."""
        return Shelf.arriving(pieces, folder=self._folder)

    def forget(self, question: str, answer: str | None = None) -> None:
        """Drop a question and its answer; what still comes to it finds nothing to answer."""
        self._state.delete_messages({question})
        for root in (question, answer):
            if root is not None:
                self._objects.delete(root)

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


def _node(info: Any) -> Node:
    if not info.last_activated_at:
        return Node(online=False, activated="", seen=None)
    online = info.status == "online"
    if online:
        seen = info.online_until - HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL
    else:
        seen = datetime.fromisoformat(info.last_deactivated_at).timestamp()
    return Node(online=online, activated=info.last_activated_at, seen=seen)


def _content(root: str, here: Mapping[str, Kept], objects: ObjectFiles) -> RecordDict:
    arrays = [name for name, kept in here.items() if kept.kind == Array.__qualname__]
    chunks = [name for name, kept in here.items() if kept.kind == ArrayChunk.__qualname__]
    records = [name for name in here if name not in {*arrays, *chunks}]
    try:
        message = inflate_object_from_contents(
            root,
            {name: objects.get(name) for name in records},
            # Stand-ins, each with its object's name; records copy what they are given.
            objects={name: Array("", (), name, b"") for name in arrays},
        )
        if not isinstance(message, Message) or not message.has_content():
            raise _unusable("no content")
        for record in message.content.array_records.values():
            for name, stand_in in record.items():
                record[name] = _later(stand_in.stype, set(chunks), objects)
    except BadMessage:
        raise
    except Exception as error:
        # An edge: a peer made these bytes up, and Flower's readers raise what they raise.
        raise _unusable(type(error).__name__) from error
    return message.content


def _later(name: str, chunks: Collection[str], objects: ObjectFiles) -> ArrayInParts:
    """An array by its object's name, read when it is looked at.

    Raises whatever its head raises where it is none.
    """
    head = objects.get(name) or b""
    said = json.loads(get_object_body(head, Array))
    parts = get_object_children_ids_from_object_content(head)
    # In their order, each once: a part that is named a million times would be a million parts.
    if said["arraychunk_ids"] != list(range(len(parts))) or not set(parts) <= set(chunks):
        raise _unusable("an array's parts in disorder")

    def bodies() -> Iterator[memoryview]:
        for part in parts:
            body = objects.body(part)
            if body is None:
                raise _unusable("an array whose parts were taken away")
            yield body

    return ArrayInParts(str(said["stype"]), bodies)


def _unusable(value: str) -> BadMessage:
    return BadMessage(Problem(name="answer", value=value, wanted="an update's records"))
