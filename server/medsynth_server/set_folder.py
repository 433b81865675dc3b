"""The folder of a set that `synthesize` makes: begun once, gone on with, described at the end.

synthesize.json   what was asked for; another request does not go on here
volumes.jsonl     a line for every volume whose files are on disk: its style, label map, edits
dataset.json      the same as tools read it, with what the values mean; written last
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from medsynth_common.durable import append_line, is_part, replacing, sweep, write_json
from medsynth_common.errors import BadConfig, Problem
from medsynth_common.plan import problems_of
from medsynth_common.privacy.mechanism import Value
from medsynth_common.set_layout import Layout
from medsynth_common.synthetic_set import DATASET_FILE
from medsynth_server.run_folder import locked

_REQUEST: Final = "synthesize.json"
VOLUMES: Final = "volumes.jsonl"


class Request(Value):
    """All that decides the bytes of a set.

    Attributes:
        version: of medsynth.
        weights: SHA-256 of the run's generator and styles.
        seed: of label maps, edits and images.
        count: volumes.
        edits: kinds of edits, taking turns; none paints label maps as they are.
        style: a site's, or `mix` for all in turn.
        labels: `phantom`, or the name of the folder of the label maps.
        layout: names and label values.
        licence: of the set.
        device: where it is painted; other devices round differently.
        date: on which it was begun, ISO 8601.

    """

    version: str
    weights: str
    seed: int
    count: int
    edits: tuple[str, ...]
    style: str
    labels: str
    layout: Layout
    licence: str
    device: str
    date: str


class MadeVolume(Value):
    """One volume of the set.

    Attributes:
        name: of the volume.
        style: whose scanner it imitates.
        labels: the label map it was painted from.
        edits: what was done to that map, so that it can be done again.
        files: its files, below the set's folder.

    """

    name: str
    style: str
    labels: str
    edits: tuple[Mapping[str, Any], ...]
    files: tuple[str, ...]


class SetFolder:
    """A set being made; only one process works in it."""

    def __init__(self, path: Path, request: Request, done: int) -> None:
        self.path, self.request, self.done = path, request, done

    def add(self, volume: MadeVolume) -> None:
        """Remember a volume whose files are on disk."""
        append_line(self.path / VOLUMES, volume.model_dump_json())
        self.done += 1

    def volumes(self) -> Iterator[MadeVolume]:
        """Read what was remembered, one at a time."""
        with (self.path / VOLUMES).open(encoding="utf-8") as lines:
            for line in lines:
                yield MadeVolume.model_validate_json(line)

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Write `dataset.json`: the facts, then every volume; a long set takes no more memory."""
        frame = json.dumps({**facts, "numTraining": self.done, "training": [None]}, indent=2)
        head, tail = frame.split("null\n")
        with replacing(self.path / DATASET_FILE) as part, part.open("w", encoding="utf-8") as out:
            out.write(head)
            for number, volume in enumerate(self.volumes()):
                out.write((",\n    " if number else "") + json.dumps(self._entry(volume)))
            out.write("\n" + tail + "\n")

    def _entry(self, volume: MadeVolume) -> dict[str, Any]:
        entry = volume.model_dump(mode="json")
        if self.request.layout is Layout.MSD:  # as nnU-Net and MONAI read it
            image, label, anatomy = (f"./{path}" for path in volume.files)
            entry |= {"image": image, "label": label, "anatomy": anatomy}
        return entry


@contextmanager
def open_set(path: Path, wanted: Request, *, new_seed: bool) -> Iterator[SetFolder]:
    """Begin a set in the folder `path`, or go on with the one that is there.

    Args:
        path: a new or empty folder, or one that this request was begun in.
        wanted: the request; a set that is gone on with keeps its own date.
        new_seed: the seed was drawn, not given: one that was drawn before is taken instead.

    Raises:
        BadConfig: the folder holds something else, or another request's set.
        BadInput: another process is working in it.

    """
    _check_free(path)
    with locked(path):
        sweep(path)
        request = _begun(path)
        if request is None:
            _check_free(path)
            request = wanted
            write_json(path / _REQUEST, request.model_dump(mode="json"))
        own = {"date": request.date, **({"seed": request.seed} if new_seed else {})}
        _check_same(path, request, wanted.model_copy(update=own))
        yield SetFolder(path, request, _whole_volumes(path))


def _check_free(path: Path) -> None:
    if not path.exists() or (path.is_dir() and (path / _REQUEST).exists()):
        return
    strangers = (
        sorted(
            entry.name for entry in path.iterdir() if entry.name != ".lock" and not is_part(entry)
        )
        if path.is_dir()
        else [path.name]
    )
    if strangers:
        raise BadConfig(
            Problem(
                name=str(path),
                value=f"a folder that holds {strangers[0]!r}" if path.is_dir() else "a file",
                wanted="an empty or new folder, or a set to go on with",
                mend="give another --out",
            )
        )


def _begun(path: Path) -> Request | None:
    if not (path / _REQUEST).exists():
        return None
    try:
        return Request.model_validate_json((path / _REQUEST).read_bytes())
    except ValidationError as error:
        raise BadConfig(problems_of(error, name=str(path / _REQUEST))) from error


def _check_same(path: Path, old: Request, new: Request) -> None:
    before, after = old.model_dump(), new.model_dump()
    different = [name for name in before if before[name] != after[name]]
    if different:
        raise BadConfig(
            Problem(
                name=str(path),
                value=f"a set that was begun with another {', '.join(different)}",
                wanted="the same request, to go on with it",
                mend="give another --out",
            )
        )


def _whole_volumes(path: Path) -> int:
    """Count the first volumes that are remembered and on disk; forget those after them."""
    record = path / VOLUMES
    record.touch()
    whole, done = 0, 0
    with record.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n") or not _there(path, line):
                break
            whole, done = whole + len(line), done + 1
    with record.open("r+b") as stream:
        stream.truncate(whole)
    return done


def _there(path: Path, line: bytes) -> bool:
    files: Sequence[str] = MadeVolume.model_validate_json(line).files
    return all((path / file).exists() for file in files)
