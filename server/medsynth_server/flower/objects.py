"""Where the link keeps what messages consist of: small objects in memory, large ones in files.

Flower's own store puts every object into the database of its state: sixteen megabytes of weights
are written to its log, copied into its pages and written again when they are deleted. Nothing of
it must outlive the process, since a run that is begun again asks anew; so files will do.
"""

import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    get_object_id,
    get_object_type_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

#: An object of more bytes is kept in a file.
_IN_MEMORY: Final = 64 << 10


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is known of an object without reading it.

    Attributes:
        kind: the name of Flower's class of it.
        size: its bytes.

    """

    kind: str
    size: int


class ObjectFiles(InMemoryObjectStore):  # type: ignore[misc] # flwr ships no types that mypy follows
    """Flower's store of objects; which belong to which is kept in memory by Flower's own class.

    Args:
        folder: for the files; what a process before left there is removed.

    Attributes:
        whole: set whenever the last missing object of a message has come.

    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        self._folder = folder
        self._kept: dict[str, Kept] = {}
        self._prepared = threading.local()
        self._staged: dict[str, tuple[Kept, Path]] = {}
        self._missing: dict[str, set[str]] = {}
        self.whole = threading.Event()

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        """Note a message's objects; gives the names of those that have not come yet.

        Raises:
            ValueError: a name is none, or the object is known with other children.

        """
        with self.lock_store:  # as one: no other message's end may take a child away in between
            told: dict[str, list[str]] = {}
            for node in iterate_object_tree(object_tree):
                children = [child.object_id for child in node.children]
                known = self.store.get(node.object_id)
                before = told.setdefault(
                    node.object_id, children if known is None else known.child_object_ids
                )
                if before != children:  # else what it leaves out would belong to nothing, and stay
                    raise ValueError(f"{node.object_id} is known with other children")
            missing: list[str] = super().preregister(run_id, object_tree)
            if missing:
                self._missing[object_tree.object_id] = set(missing)
            return missing

    @contextmanager
    def prepared(self, object_id: str, object_content: bytes) -> Iterator[None]:
        """Look at an object and write it before this thread `put`s it.

        That takes long, and within a transaction on Flower's database all nodes would wait for it.

        Raises:
            ValueError: it is not the one of this name.
            UnexpectedObjectContentError: it is no object of Flower's.

        """
        if get_object_id(object_content) != object_id:
            raise ValueError(f"{object_id} is not the name of this content")
        validate_object_content(content=object_content)
        kind = get_object_type_from_object_content(object_content)
        kept = Kept(kind=kind, size=len(object_content))
        part = self._write(object_content) if kept.size > _IN_MEMORY else None
        self._prepared.object = object_id, kept, part
        try:
            yield
        finally:
            self._prepared.object = None
            if part is not None:
                part.unlink()  # a link to it stays, if it was wanted

    def put(self, object_id: str, object_content: bytes) -> None:
        """Keep an object, which may be `prepared`.

        Raises:
            ValueError, UnexpectedObjectContentError: as `prepared` does.
            NoObjectInStoreError: no message that has it is known.

        """
        prepared = getattr(self._prepared, "object", None)
        if prepared is None or prepared[0] != object_id:
            with self.prepared(object_id, object_content):
                self.put(object_id, object_content)
                return
        _, kept, part = prepared
        if part is None:
            self._take(object_id, kept, content=object_content)
        else:
            self._take(object_id, kept, content=b"", file=part)

    def _take(
        self, object_id: str, kept: Kept, *, content: bytes, file: Path | None = None
    ) -> None:
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None:
                raise NoObjectInStoreError(f"{object_id} belongs to no message")
            if entry.is_available:
                return
            if file is not None:
                os.link(file, self._folder / object_id)
            entry.content, entry.is_available = content, True
            self._kept[object_id] = kept
            for root in [root for root, names in self._missing.items() if object_id in names]:
                self._missing[root].remove(object_id)
                if not self._missing[root]:
                    del self._missing[root]
                    self.whole.set()

    @contextmanager
    def staging(self) -> Iterator[None]:
        """Within it, objects may be `stage`d: put there before the message that they belong to."""
        try:
            yield
        finally:
            for _, part in self._staged.values():
                part.unlink()
            self._staged.clear()

    def stage(self, object_id: str, object_content: bytes) -> bool:
        """Keep an object of ours, whose name is believed; False when it is too small for that."""
        if len(object_content) <= _IN_MEMORY:
            return False
        if object_id not in self._staged:
            kind = get_object_type_from_object_content(object_content)
            kept = Kept(kind=kind, size=len(object_content))
            self._staged[object_id] = kept, self._write(object_content)
        return True

    def put_staged(self, object_id: str) -> None:
        """Give a message what was staged for it. It stays staged: the next one may share it."""
        kept, part = self._staged[object_id]
        self._take(object_id, kept, content=b"", file=part)

    def staged(self, object_id: str) -> bool:
        """Whether an object is."""
        return object_id in self._staged

    def get(self, object_id: str) -> bytes | None:
        """Give an object: nothing (`b""`) when it has not come, None when it is not known."""
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None:
                return None
            if entry.content or not entry.is_available:
                return bytes(entry.content)
            file = (self._folder / object_id).open("rb", buffering=0)
        with file:  # read without the lock: once open, it may be deleted meanwhile
            return file.readall()

    def body(self, object_id: str) -> memoryview | None:
        """Give an object without its head, a large one as a view of its file; None if not here."""
        with self.lock_store:
            kept = self._kept.get(object_id)
            if kept is None or kept.size <= _IN_MEMORY:
                content: Any = self.store[object_id].content if kept is not None else None
            else:
                with (self._folder / object_id).open("rb") as file:  # the map outlives both
                    content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if content is None:
            return None
        return memoryview(content)[content.find(HEAD_BODY_DIVIDER) + len(HEAD_BODY_DIVIDER) :]

    def kept(self, object_id: str) -> Kept | None:
        """What is known of an object that has come; None for others."""
        with self.lock_store:
            return self._kept.get(object_id)

    def delete(self, object_id: str) -> None:
        """Drop an object that is part of nothing, and whatever of its parts is then part of none.

        Flower's own method, which comes by here for every one of them.
        """
        with self.lock_store:
            super().delete(object_id)
            if object_id in self.store:
                return
            self._missing.pop(object_id, None)
            kept = self._kept.pop(object_id, None)
            if kept is not None and kept.size > _IN_MEMORY:
                (self._folder / object_id).unlink()

    def clear(self) -> None:
        """Drop everything."""
        with self.lock_store:
            for path in self._folder.iterdir():
                path.unlink()
            super().clear()
            self._kept.clear()
            self._missing.clear()

    def _write(self, content: bytes) -> Path:
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=".part-")
        try:
            with os.fdopen(handle, "wb") as file:  # buffered: the whole of it, or an error
                file.write(content)
        except OSError:
            Path(name).unlink()
            raise
        return Path(name)
