import io
import re

import pytest
from rich.console import Console

from medsynth_server.progress import LineProgress, LiveProgress, Progress, make_progress

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\x9b]")
ACCOUNTING = "one patient, delta 1e-05, mechanisms: moments, segmenter"


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def tell_a_small_run(progress: Progress, clock: Clock) -> None:
    progress.stage("segment", rounds=3)
    for n in (1, 2):
        progress.round_started(n)
        clock.now += 10.0
        progress.site_done("site-a", seconds=9.0, epsilon=1.501 * n, cap=8.0, error=None)
        progress.site_done("site-b", seconds=0.1, epsilon=None, cap=None, error="BudgetExhausted")
        progress.round_done(n, {"segmenter": 0.25})
    progress.note("site-b has spent its cap")


def lines_of_a_small_run() -> list[str]:
    stream, clock = io.StringIO(), Clock()
    with LineProgress(stream, accounting=ACCOUNTING, clock=clock) as progress:
        tell_a_small_run(progress, clock)
        progress.finished()
    return stream.getvalue().splitlines()


def test_plain_progress_is_one_line_a_round() -> None:
    assert lines_of_a_small_run() == [
        f"epsilon is for {ACCOUNTING}",
        "segment: 3 rounds",
        "segment 1/3 | 10.0 s | 1 of 2 sites answered | epsilon at most 1.51 / 8 (site-a)"
        " | site-b: BudgetExhausted | segmenter 0.25 | up to 20.0 s left in this stage",
        "segment 2/3 | 10.0 s | 1 of 2 sites answered | epsilon at most 3.01 / 8 (site-a)"
        " | site-b: BudgetExhausted | segmenter 0.25 | about 10.0 s left in this stage",
        "note: site-b has spent its cap",
        "finished in 20.0 s",
    ]


def test_plain_progress_has_no_control_codes() -> None:
    assert not CONTROL.search("\n".join(lines_of_a_small_run()))


def test_a_resumed_stage_is_timed_by_its_own_rounds() -> None:
    stream, clock = io.StringIO(), Clock()
    with LineProgress(stream, clock=clock) as progress:
        progress.stage("segment", rounds=10)
        progress.round_started(8)
        clock.now += 90.0
        progress.round_done(8, {})
    assert stream.getvalue().splitlines()[-1] == (
        "segment 8/10 | 1:30 min | up to 3:00 min left in this stage"
    )


def test_a_long_first_round_says_nothing_of_the_others() -> None:
    stream, clock = io.StringIO(), Clock()
    with LineProgress(stream, clock=clock) as progress:
        progress.stage("segment", rounds=7)
        for n, seconds in ((1, 240.0), (2, 5.0), (3, 7.0)):
            progress.round_started(n)
            clock.now += seconds
            progress.round_done(n, {})
    assert [line.split(" | ")[-1] for line in stream.getvalue().splitlines()[1:]] == [
        "up to 24:00 min left in this stage",
        "about 25.0 s left in this stage",
        "about 24.0 s left in this stage",
    ]


def test_plain_progress_cries_out_when_nothing_bounds_epsilon() -> None:
    stream = io.StringIO()
    with LineProgress(stream, clock=Clock()) as progress:
        progress.stage("segment", rounds=1)
        progress.round_started(1)
        progress.site_done("site-a", seconds=1.0, epsilon=None, cap=None, error=None)
        progress.round_done(1, {})
    assert "NO PRIVACY" in stream.getvalue()


def break_off(progress: Progress, error: type[BaseException]) -> None:
    with progress:
        progress.stage("moments", rounds=2)
        raise error


def test_plain_progress_says_where_it_was_interrupted() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        break_off(LineProgress(stream, clock=Clock()), KeyboardInterrupt)
    assert stream.getvalue().splitlines()[-1] == "interrupted during moments"


def console_on(stream: io.StringIO) -> Console:
    return Console(file=stream, force_terminal=True, width=110, height=40, color_system=None)


def last_picture(stream: io.StringIO) -> str:
    """Give what the table showed when drawn last, without the codes that move the cursor."""
    drawn = stream.getvalue().split("medsynth  ")[-1]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)


def test_the_live_table_shows_the_run() -> None:
    stream, clock = io.StringIO(), Clock()
    with LiveProgress(console_on(stream), accounting=ACCOUNTING, clock=clock) as progress:
        tell_a_small_run(progress, clock)
    picture = last_picture(stream)
    for words in (
        "about 10.0 s left in this stage",
        "segment",
        "2/3",
        "✓ answered",
        "3.01 / 8",
        "✗ failed",
        "BudgetExhausted",
        "segmenter",
        "0.25",
        f"ε is for {ACCOUNTING}",
        "site-b has spent its cap",
    ):
        assert words in picture


def test_the_live_table_keeps_what_a_failing_site_has_spent() -> None:
    stream = io.StringIO()
    with LiveProgress(console_on(stream), clock=Clock()) as progress:
        progress.stage("segment", rounds=2)
        progress.site_done("site-a", seconds=1.0, epsilon=2.0, cap=4.0, error=None)
        progress.site_done("site-a", seconds=1.0, epsilon=None, cap=None, error="TimedOut")
        progress.stage("adversarial", rounds=2)
    picture = last_picture(stream)
    assert "2.00 / 4" in picture
    assert "· waiting" in picture
    assert "no privacy" not in picture


def test_the_live_table_cries_out_when_nothing_bounds_epsilon() -> None:
    stream = io.StringIO()
    with LiveProgress(console_on(stream), clock=Clock()) as progress:
        progress.site_done("site-a", seconds=1.0, epsilon=None, cap=None, error=None)
        progress.finished()
    picture = last_picture(stream)
    assert "no privacy" in picture
    assert "finished" in picture


def test_of_many_sites_those_in_trouble_are_in_view() -> None:
    stream = io.StringIO()
    with LiveProgress(console_on(stream), clock=Clock()) as progress:
        for number in range(100):
            error = "TimedOut" if number == 87 else None
            progress.site_done(f"site-{number}", seconds=1.0, epsilon=1.0, cap=8.0, error=error)
    picture = last_picture(stream)
    assert "site-87" in picture
    assert "and 88 more" in picture


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_cursor_is_given_back_whatever_ends_the_run(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")  # a dumb terminal has no cursor to hide
    stream = io.StringIO()
    with pytest.raises(error):
        break_off(LiveProgress(console_on(stream), clock=Clock()), error)
    hidden, shown = stream.getvalue().rfind("\x1b[?25l"), stream.getvalue().rfind("\x1b[?25h")
    assert 0 <= hidden < shown
    ended = "interrupted" if error is KeyboardInterrupt else "stopped"
    assert ended in last_picture(stream)


def test_a_terminal_gets_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(make_progress(Terminal()), LiveProgress)
    assert isinstance(make_progress(io.StringIO()), LineProgress)


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("NO_COLOR", "1"), ("CI", "true")])
def test_a_terminal_that_asks_for_plain_lines_gets_them(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    for other in ("NO_COLOR", "CI"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    assert isinstance(make_progress(Terminal()), LineProgress)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with make_progress() as progress:
        progress.note("hello")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "note: hello\n")
