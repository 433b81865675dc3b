"""What a person sees while a run goes on: a live table in a terminal, plain lines elsewhere.

Progress goes to stderr; stdout is for facts. An epsilon is only whole with its delta, unit and
mechanism list: `accounting` says them in one line, and both kinds of progress show it.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Protocol, Self, TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from medsynth_common.wording import counted
from medsynth_server.record import epsilon_words

Clock = Callable[[], float]

_SITES_SHOWN: Final = 12
_NOTES_SHOWN: Final = 4
_BAR_WIDTH: Final = 34


class Progress(AbstractContextManager["Progress"], Protocol):
    """What a run tells about itself. Rounds are counted from 1 within their stage."""

    def stage(self, name: str, rounds: int) -> None:
        """Begin a stage of so many rounds; a resumed stage may start at a later round."""

    def round_started(self, n: int) -> None:
        """Round `n` of the stage has been sent to the sites."""

    def site_asked(self, site: str, *, size: int) -> None:
        """A plan of so many bytes is on its way to a site, or waits for it."""

    def site_done(
        self,
        site: str,
        *,
        seconds: float,
        epsilon: float | None,
        cap: float | None,
        error: str | None,
        size: int = 0,
    ) -> None:
        """Tell that a site answered with so many bytes, or failed with the error of that name.

        `epsilon` is what it has spent in all, rounded up when shown; None means that nothing
        bounds it, or, beside an error, that the site did not say.
        """

    def round_done(self, n: int, losses: Mapping[str, float]) -> None:
        """Round `n` is combined; `losses` are public ones."""

    def note(self, text: str) -> None:
        """Say something that should stay on the screen."""

    def finished(self) -> None:
        """The run has come to its end."""


def make_progress(stream: TextIO | None = None, *, accounting: str = "") -> Progress:
    """Choose the progress that suits `stream` (stderr when None).

    A live table needs a terminal that can move its cursor; TERM=dumb, NO_COLOR and CI each ask for
    plain lines. `accounting` is the delta, unit and mechanisms of the epsilons shown.
    """
    stream = sys.stderr if stream is None else stream
    plain = (
        not stream.isatty()
        or os.environ.get("TERM") == "dumb"
        or bool(os.environ.get("NO_COLOR"))
        or bool(os.environ.get("CI"))
    )
    if plain:
        return LineProgress(stream, accounting=accounting)
    return LiveProgress(Console(file=stream), accounting=accounting)


@dataclass(kw_only=True)
class _StageTime:
    """Where a stage stands, and how long the rest of it should take."""

    name: str
    rounds: int
    began: float
    current: int = 0
    done: int = 0
    ends: list[float] = field(default_factory=list)  # of rounds that this process has finished

    def finish_round(self, n: int, now: float) -> None:
        self.done = n
        self.ends.append(now)

    def left(self, now: float) -> str:
        """Say how long the rest of the stage should take; empty where nothing can be said.

        A stage's first round starts processes, prepares patients or trains at the coordinator, so
        the others tell the pace as soon as there are any, and the first alone a bound.
        """
        if not self.ends or self.done >= self.rounds:
            return ""
        first, last = self.ends[0], self.ends[-1]
        later = len(self.ends) - 1
        pace = (last - first) / later if later else first - self.began
        left = max(0.0, pace * (self.rounds - self.done) - (now - last))
        return f"{'about' if later else 'up to'} {_duration(left)} left in this stage"


class LineProgress:
    """One plain line a round, without any control code: for logs, pipes and screen readers."""

    def __init__(
        self, stream: TextIO, *, accounting: str = "", clock: Clock = time.monotonic
    ) -> None:
        self._stream = stream
        self._accounting = accounting
        self._clock = clock
        self._began = clock()
        self._stage = _StageTime(name="", rounds=0, began=self._began)
        self._round_began = self._began
        self._answers: list[_Answer] = []

    def __enter__(self) -> Self:
        if self._accounting:
            self._say(f"epsilon is for {self._accounting}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is KeyboardInterrupt:
            self._say(f"interrupted during {self._stage.name or 'start'}")

    def stage(self, name: str, rounds: int) -> None:
        """Begin a stage."""
        self._stage = _StageTime(name=name, rounds=rounds, began=self._clock())
        self._say(f"{name}: {counted(rounds, 'round')}")

    def round_started(self, n: int) -> None:
        """Start collecting the round's answers."""
        self._stage.current = n
        self._round_began = self._clock()
        self._answers = []

    def site_asked(self, site: str, *, size: int) -> None:
        """A line tells of answers alone."""

    def site_done(
        self,
        site: str,
        *,
        seconds: float,
        epsilon: float | None,
        cap: float | None,
        error: str | None,
        size: int = 0,
    ) -> None:
        """Keep a site's answer for the round's line."""
        self._answers.append(
            _Answer(site=site, seconds=seconds, epsilon=epsilon, cap=cap, error=error)
        )

    def round_done(self, n: int, losses: Mapping[str, float]) -> None:
        """Print the round's line."""
        now = self._clock()
        self._stage.finish_round(n, now)
        words = [
            f"{self._stage.name} {n}/{self._stage.rounds}",
            _duration(now - self._round_began),
            *_answer_words(self._answers),
            *(f"{name} {loss:.4g}" for name, loss in losses.items()),
        ]
        words += [left] if (left := self._stage.left(now)) else []
        self._say(" | ".join(words))

    def note(self, text: str) -> None:
        """Print a note."""
        self._say(f"note: {text}")

    def finished(self) -> None:
        """Print how long it took."""
        self._say(f"finished in {_duration(self._clock() - self._began)}")

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    site: str
    seconds: float
    epsilon: float | None
    cap: float | None
    error: str | None


def _answer_words(answers: list[_Answer]) -> list[str]:
    if not answers:
        return []
    failed = [f"{answer.site}: {answer.error}" for answer in answers if answer.error]
    words = [f"{len(answers) - len(failed)} of {counted(len(answers), 'site')} answered"]
    answered = [answer for answer in answers if not answer.error]
    if any(answer.epsilon is None for answer in answered):
        words.append("NO PRIVACY")
    elif answered:
        most = max(answered, key=lambda answer: answer.epsilon or 0.0)
        words.append(f"epsilon at most {_spent(most.epsilon, most.cap)} ({most.site})")
    return words + failed


@dataclass(kw_only=True)
class _SiteRow:
    state: str = "waiting"
    seconds: float | None = None
    epsilon: float | None = None
    cap: float | None = None
    unbounded: bool = False
    error: str = ""


@dataclass(kw_only=True)
class _Screen:
    """All that the live table shows."""

    began: float
    stages: list[_StageTime] = field(default_factory=list)
    sites: dict[str, _SiteRow] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    ended: str = ""


class LiveProgress:
    """A table that renews itself in place: stages, rounds, sites, epsilon, losses, time left."""

    def __init__(
        self, console: Console, *, accounting: str = "", clock: Clock = time.monotonic
    ) -> None:
        self._accounting = accounting
        self._clock = clock
        self._screen = _Screen(began=clock())
        # Rich draws from a thread of its own while the run changes what is drawn.
        self._lock = threading.Lock()
        self._live = Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=4,
            redirect_stdout=False,  # stdout is for facts, and may be a file
            vertical_overflow="ellipsis",
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            with self._lock:
                self._screen.ended = "interrupted" if kind is KeyboardInterrupt else "stopped"
        self._live.stop()  # draws once more, then gives the cursor back

    def stage(self, name: str, rounds: int) -> None:
        """Begin a stage; what sites have spent stays in view."""
        with self._lock:
            self._screen.stages.append(_StageTime(name=name, rounds=rounds, began=self._clock()))
            self._screen.losses.clear()
            for row in self._screen.sites.values():
                row.state, row.error = "waiting", ""

    def round_started(self, n: int) -> None:
        """Show every known site at work."""
        with self._lock:
            if self._screen.stages:
                self._screen.stages[-1].current = n
            for row in self._screen.sites.values():
                row.state = "training"

    def site_asked(self, site: str, *, size: int) -> None:
        """Show the site at work."""
        with self._lock:
            self._screen.sites.setdefault(site, _SiteRow()).state = "training"

    def site_done(
        self,
        site: str,
        *,
        seconds: float,
        epsilon: float | None,
        cap: float | None,
        error: str | None,
        size: int = 0,
    ) -> None:
        """Renew the site's row; a failed site keeps the epsilon it last told."""
        with self._lock:
            row = self._screen.sites.setdefault(site, _SiteRow())
            row.state, row.seconds = ("failed" if error else "answered"), seconds
            row.error = error or row.error
            if epsilon is not None or not error:
                row.epsilon, row.cap, row.unbounded = epsilon, cap, epsilon is None

    def round_done(self, n: int, losses: Mapping[str, float]) -> None:
        """Advance the bar."""
        with self._lock:
            self._screen.losses = dict(losses)
            if self._screen.stages:
                self._screen.stages[-1].finish_round(n, self._clock())

    def note(self, text: str) -> None:
        """Show a note under the table."""
        with self._lock:
            self._screen.notes.append(text)

    def finished(self) -> None:
        """Say so in the last picture."""
        with self._lock:
            self._screen.ended = "finished"

    def _draw(self) -> RenderableType:
        with self._lock:
            now, screen = self._clock(), self._screen
            parts: list[RenderableType] = [_headline(screen, now), _stage_bars(screen)]
            if screen.sites:
                parts += [Text(), _site_table(screen.sites)]
                if self._accounting:
                    parts.append(Text(f"ε is for {self._accounting}", style="dim"))
            if screen.losses:
                parts += [Text(), _loss_line(screen.losses)]
            if screen.notes:
                parts += [Text(), *(Text(f"• {note}") for note in screen.notes[-_NOTES_SHOWN:])]
            return Padding(Group(*parts), (1, 1))


def _headline(screen: _Screen, now: float) -> Text:
    line = Text("medsynth  ", style="bold")
    line.append(_duration(now - screen.began), style="default not bold")
    if screen.ended:
        style = "bold green" if screen.ended == "finished" else "bold yellow"
        line.append(f"  {screen.ended}", style=style)
    elif screen.stages and (left := screen.stages[-1].left(now)):
        line.append(f"  {left}", style="not bold dim")
    return line


def _stage_bars(screen: _Screen) -> Table:
    bars = Table.grid(padding=(0, 2))
    bars.add_column(no_wrap=True)
    bars.add_column(width=_BAR_WIDTH)
    bars.add_column(justify="right", no_wrap=True)
    for stage in screen.stages:
        current = stage is screen.stages[-1] and not screen.ended
        bars.add_row(
            Text(stage.name, style="bold" if current else "dim"),
            ProgressBar(total=max(stage.rounds, 1), completed=stage.done, finished_style="green"),
            Text(f"{stage.done}/{stage.rounds}", style="default" if current else "dim"),
        )
    return bars


_STATES: Final = {
    "waiting": Text("· waiting", style="dim"),
    "training": Text("… training", style="cyan"),
    "answered": Text("✓ answered", style="green"),
    "failed": Text("✗ failed", style="bold red"),
}


def _site_table(sites: Mapping[str, _SiteRow]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("site", no_wrap=True, max_width=24, overflow="ellipsis")
    table.add_column("state", no_wrap=True)
    table.add_column("last round", justify="right", no_wrap=True)
    table.add_column("ε spent / cap", justify="right", no_wrap=True)
    table.add_column("", width=14)
    table.add_column("last error", style="red", overflow="ellipsis", no_wrap=True)
    # Sites in trouble first: with hundreds of sites only the top of the list is in view.
    shown = sorted(sites.items(), key=lambda named: (not named[1].error, named[0]))
    for name, row in shown[:_SITES_SHOWN]:
        table.add_row(
            name,
            _STATES[row.state],
            "" if row.seconds is None else _duration(row.seconds),
            *_budget_cells(row),
            row.error,
        )
    if len(shown) > _SITES_SHOWN:
        table.add_row(Text(f"and {len(shown) - _SITES_SHOWN} more", style="dim"))
    return table


def _budget_cells(row: _SiteRow) -> tuple[RenderableType, RenderableType]:
    if row.unbounded:
        return Text("no privacy", style="bold red"), ""
    if row.epsilon is None:
        return "", ""
    words = _spent(row.epsilon, row.cap)
    if not row.cap:
        return words, ""
    style = "yellow" if row.epsilon > 0.9 * row.cap else "cyan"
    bar = ProgressBar(
        total=row.cap,
        completed=min(row.epsilon, row.cap),
        complete_style=style,
        finished_style="red",
    )
    return words, bar


def _loss_line(losses: Mapping[str, float]) -> Text:
    line = Text("loss ", style="dim")
    for name, loss in losses.items():
        line.append(f" {name} ", style="default not dim")
        line.append(f"{loss:.4g} ", style="bold not dim")
    return line


def _spent(epsilon: float | None, cap: float | None) -> str:
    words = epsilon_words(epsilon)
    return words if cap is None else f"{words} / {cap:g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
