"""Counting on stderr: a bar in a terminal, a plain line every tenth elsewhere."""

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


def counted(
    things: Iterable[T], what: str, *, done: int, total: int, stream: TextIO | None = None
) -> Iterator[T]:
    """Hand things on and show how many of `total` are through; `done` were so before."""
    stream = sys.stderr if stream is None else stream
    bare = os.environ.get("TERM") == "dumb" or os.environ.get("NO_COLOR") or os.environ.get("CI")
    if stream.isatty() and not bare:
        yield from _bar(things, what, done=done, total=total, stream=stream)
    else:
        yield from _lines(things, what, done=done, total=total, stream=stream)


def _bar(things: Iterable[T], what: str, *, done: int, total: int, stream: TextIO) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream)) as progress:
        task = progress.add_task(what, completed=done, total=total)
        for thing in things:
            yield thing
            progress.advance(task)


def _lines(things: Iterable[T], what: str, *, done: int, total: int, stream: TextIO) -> Iterator[T]:
    if done:
        print(f"{what}: {done} of {total} were there", file=stream, flush=True)
    for number, thing in enumerate(things, start=done + 1):
        yield thing
        if number * 10 // total > (number - 1) * 10 // total:
            print(f"{what}: {number} of {total}", file=stream, flush=True)
