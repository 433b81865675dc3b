"""The link's store of objects beside Flower's own, and what a node's requests need not wait for."""

import io
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    UnexpectedObjectContentError,
    add_header_to_object_body,
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
)
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth_common.errors import BadMessage
from medsynth_server.flower import train_message
from medsynth_server.flower.link import Link, _later
from medsynth_server.flower.objects import Kept, ObjectFiles
from medsynth_server.flower.state import State

LARGE = 70_000


def an_object(fill: int, size: int = 10) -> tuple[str, bytes]:
    content = ArrayChunk(memoryview(bytes([fill]) * size)).deflate()
    return get_object_id(content), content


def tree(root: str, *children: str) -> ObjectTree:
    return ObjectTree(object_id=root, children=[ObjectTree(object_id=name) for name in children])


@pytest.mark.parametrize("size", [10, LARGE])
def test_an_object_is_given_as_it_came_and_is_gone_with_its_message(
    tmp_path: Path, size: int
) -> None:
    store = ObjectFiles(tmp_path / "objects")
    name, content = an_object(1, size)
    assert store.get(name) is None
    assert store.preregister(1, tree(name)) == [name]
    assert store.get(name) == b""
    assert store.kept(name) is None
    store.put(name, content)
    assert store.get(name) == content
    assert store.kept(name) == Kept(kind="ArrayChunk", size=len(content))
    files = [path.name for path in (tmp_path / "objects").iterdir()]
    assert files == ([name] if size == LARGE else [])
    store.put(name, content)  # a second time, as after a lost answer
    store.delete(name)
    assert store.get(name) is None
    assert store.kept(name) is None
    assert list((tmp_path / "objects").iterdir()) == []


def test_what_does_not_belong_there_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    store = ObjectFiles(tmp_path / "objects")
    name, content = an_object(1, LARGE)
    with pytest.raises(NoObjectInStoreError):
        store.put(name, content)
    store.preregister(1, tree(name))
    with pytest.raises(ValueError, match="not the name"):
        store.put(name, content + b"x")
    with pytest.raises(UnexpectedObjectContentError):
        store.put(get_object_id(b"no object"), b"no object")
    child, _ = an_object(2)
    with pytest.raises(ValueError, match="other children"):
        store.preregister(1, tree(name, child))
    twice = ObjectTree(
        object_id=an_object(3)[0], children=[tree(an_object(4)[0], child), tree(an_object(4)[0])]
    )
    with pytest.raises(ValueError, match="other children"):
        store.preregister(1, twice)
    assert len(store) == 1
    assert list((tmp_path / "objects").iterdir()) == []


def test_a_part_of_two_messages_stays_until_both_are_gone(tmp_path: Path) -> None:
    store = ObjectFiles(tmp_path / "objects")
    shared, content = an_object(1, LARGE)
    first, second = an_object(2)[0], an_object(3)[0]
    store.preregister(1, tree(first, shared))
    store.put(shared, content)
    assert store.preregister(1, tree(second, shared)) == [second]
    store.delete(first)
    assert store.get(shared) == content
    store.delete(shared)  # not while it is a part of something
    assert store.get(shared) == content
    store.delete(second)
    assert store.get(shared) is None
    assert list((tmp_path / "objects").iterdir()) == []


def test_who_waits_is_woken_by_a_messages_last_object_alone(tmp_path: Path) -> None:
    store = ObjectFiles(tmp_path / "objects")
    (root, head), (child, body) = an_object(1), an_object(2, LARGE)
    store.preregister(1, tree(root, child))
    store.put(child, body)
    assert not store.whole.is_set()
    store.put(root, head)
    assert store.whole.is_set()


def test_what_a_process_before_left_is_removed(tmp_path: Path) -> None:
    store = ObjectFiles(tmp_path / "objects")
    name, content = an_object(1, LARGE)
    store.preregister(1, tree(name))
    store.put(name, content)
    again = ObjectFiles(tmp_path / "objects")
    assert again.get(name) is None
    assert list((tmp_path / "objects").iterdir()) == []
    assert (tmp_path / "objects").stat().st_mode & 0o777 == 0o700


OBJECTS = [an_object(fill, size) for fill, size in ((1, 10), (2, LARGE), (3, 10), (4, LARGE))]
NAMES = [name for name, _ in OBJECTS]
# Which are whose parts is settled by their contents in a real message; so it is here.
CHILDREN = {NAMES[0]: [], NAMES[1]: [], NAMES[2]: [0, 1], NAMES[3]: [1]}
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["preregister", "put", "delete", "delete_objects_in_run", "clear"]),
        st.integers(0, 3),
        st.integers(1, 2),
    ),
    max_size=25,
)


def done(store: InMemoryObjectStore, step: tuple[str, int, int]) -> object:
    """Do one step; gives what came of it, or the kind of its error."""
    name, which, run = step
    try:
        match name:
            case "preregister":
                children = [NAMES[child] for child in CHILDREN[NAMES[which]]]
                return sorted(store.preregister(run, tree(NAMES[which], *children)))
            case "put":
                return store.put(*OBJECTS[which])
            case "delete":
                return store.delete(NAMES[which])
            case "delete_objects_in_run":
                return store.delete_objects_in_run(run)
            case _:
                return store.clear()
    except (NoObjectInStoreError, KeyError) as error:
        return type(error).__name__


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_whatever_happens_it_holds_what_flowers_own_store_holds(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("store") / "objects"
    ours, theirs = ObjectFiles(folder), InMemoryObjectStore()
    for step in steps:
        assert done(ours, step) == done(theirs, step)
        assert len(ours) == len(theirs)
        for name in NAMES:
            assert (name in ours) == (name in theirs)
            assert ours.get(name) == theirs.get(name)
        held = {name for name in NAMES if len(ours.get(name) or b"") >= LARGE}
        assert {path.name for path in folder.iterdir()} == held


def test_a_messages_end_waits_while_another_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it might take away what they share after that was seen and before it was counted."""
    store = ObjectFiles(tmp_path / "objects")
    shared, first, second = (an_object(number)[0] for number in range(3))
    store.preregister(1, tree(first, shared))
    ending = threading.Thread(target=store.delete, args=(first,))
    flowers = InMemoryObjectStore.preregister
    waited: list[bool] = []

    def slow(self: InMemoryObjectStore, run: int, asked: ObjectTree) -> list[str]:
        ending.start()
        ending.join(0.2)
        waited.append(ending.is_alive())
        names: list[str] = flowers(self, run, asked)
        return names

    monkeypatch.setattr(InMemoryObjectStore, "preregister", slow)
    store.preregister(1, tree(second, shared))
    ending.join()
    assert waited == [True]
    assert first not in store
    assert shared in store


def test_messages_that_come_and_go_at_once_keep_what_they_share(tmp_path: Path) -> None:
    store = ObjectFiles(tmp_path / "objects")
    shared, content = an_object(0)
    failed: list[BaseException] = []

    def come_and_go(number: int) -> None:
        root, head = an_object(number)
        try:
            for _ in range(1000):
                for name in store.preregister(1, tree(root, shared)):
                    store.put(name, content if name == shared else head)
                # Ours holds it, whoever else has let it go.
                assert store.get(shared) == content
                store.delete(root)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(1, 5)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns within a function's lines
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failed == []
    assert list((tmp_path / "objects").iterdir()) == []


def test_what_is_staged_is_shared_by_messages_and_gone_with_the_block(tmp_path: Path) -> None:
    store = ObjectFiles(tmp_path / "objects")
    shared, content = an_object(1, LARGE)
    unwanted, other = an_object(2, LARGE)
    small, few = an_object(3)
    first, second = an_object(4)[0], an_object(5)[0]
    with store.staging():
        assert store.stage(shared, content)
        assert store.stage(shared, content)
        assert store.stage(unwanted, other)
        assert not store.stage(small, few)
        assert not store.staged(small)
        with pytest.raises(NoObjectInStoreError):
            store.put_staged(shared)
        store.preregister(1, tree(first, shared))
        store.put_staged(shared)
        # The first message is confirmed and gone before the second is there.
        store.delete(first)
        assert store.get(shared) is None
        assert store.preregister(1, tree(second, shared)) == [shared, second]
        store.put_staged(shared)
    assert not store.staged(shared)
    assert store.get(shared) == content
    assert [path.name for path in (tmp_path / "objects").iterdir()] == [shared]
    store.delete(second)
    assert list((tmp_path / "objects").iterdir()) == []


@pytest.mark.parametrize("size", [100, LARGE, 11 << 20])
def test_a_question_that_is_laid_out_without_its_bytes_is_the_one_with_them(
    tmp_path: Path, size: int
) -> None:
    """Name, parts and contents are what Flower itself would store."""
    link = Link(tmp_path / "link.db")
    content = np.random.default_rng(1).bytes(size)
    plain = Array(dtype="uint8", shape=(size,), stype="safetensors", data=content)
    with link.laying_out() as array:
        ours = array(content, "safetensors")
        assert ours.object_id == plain.object_id
        assert ours.deflate() == plain.deflate()
        assert get_object_tree(ours) == get_object_tree(plain)
        assert len(ours.data) == 0
        question = train_message(RecordDict({"w": ArrayRecord({})}), node_id=7)
        question.content["w"]["a"] = ours
        link.ask(question)
    for name, one in get_all_nested_objects(plain).items():
        assert link._objects.get(name) == one.deflate()
    link.close()


def an_array(store: ObjectFiles, chunk_ids: list[int], data: bytes = b"abc") -> tuple[str, str]:
    """Put an array there whose head names its parts so; gives its name and its part's."""
    array = Array(dtype="uint8", shape=(3,), stype="safetensors", data=data)
    ((part, chunk),) = array.slice_array()
    said = {"dtype": "uint8", "shape": [3], "stype": "safetensors", "arraychunk_ids": chunk_ids}
    head = add_header_to_object_body(object_body=json.dumps(said).encode(), obj=array)
    name = get_object_id(head)
    store.preregister(1, tree(name, part))
    store.put(name, head)
    store.put(part, chunk.deflate())
    return name, part


@pytest.mark.parametrize("data", [b"abc", b"a" * LARGE])
def test_an_array_is_read_when_it_is_looked_at(tmp_path: Path, data: bytes) -> None:
    store = ObjectFiles(tmp_path / "objects")
    name, part = an_array(store, [0], data)
    array = _later(name, {part}, store)
    assert (array.stype, b"".join(array.parts())) == ("safetensors", data)
    body = store.body(part)
    store.delete(name)
    assert body is not None
    assert bytes(body) == data  # who looks at it still sees it
    with pytest.raises(BadMessage, match="taken away"):
        list(array.parts())


def test_parts_that_are_named_twice_or_are_none_are_refused(tmp_path: Path) -> None:
    """A million names of one part would be as many times its bytes."""
    store = ObjectFiles(tmp_path / "objects")
    for strange in ([0, 0], [], [1], [-1]):
        name, part = an_array(store, strange)
        with pytest.raises(BadMessage, match="disorder"):
            _later(name, {part}, store)
    name, _ = an_array(store, [0])
    with pytest.raises(BadMessage, match="disorder"):  # another's object, not of this answer
        _later(name, set(), store)


def test_a_nodes_number_is_looked_up_once_and_an_unknown_key_each_time(tmp_path: Path) -> None:
    state = State(tmp_path / "link.db", ObjectFiles(tmp_path / "objects"))
    assert state.get_node_id_by_public_key(b"key") is None
    node = state.create_node("owner", "name", b"key", 0)
    assert state.get_node_id_by_public_key(b"key") == node
    with state.session() as session:
        session.connection().exec_driver_sql("DROP TABLE node")
    assert state.get_node_id_by_public_key(b"key") == node


def test_what_does_not_fit_on_the_disk_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectFiles(tmp_path / "objects")
    name, content = an_object(1, LARGE)
    store.preregister(1, tree(name))

    def full(handle: int, mode: str) -> io.BufferedWriter:
        os.close(handle)
        return io.open("/dev/full", mode)  # type: ignore[return-value] # noqa: UP020

    with monkeypatch.context() as patch:
        patch.setattr("medsynth_server.flower.objects.os.fdopen", full)
        with pytest.raises(OSError, match="No space left"):
            store.put(name, content)
    assert list((tmp_path / "objects").iterdir()) == []
    store.put(name, content)
    assert store.get(name) == content
