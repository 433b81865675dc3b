"""The page of measured figures says what the benchmarks wrote, and what was missed."""

from pathlib import Path

import pytest
from benchmarks.results import PAGE, Cell, Goal, record, render

ROWS: list[dict[str, Cell]] = [
    {"way": "ours", "ms": 1234.5, "patients": 4},
    {"way": "theirs", "ms": 0.12345, "patients": 4},
]


def goals(figure: float | None) -> list[Goal]:
    return [Goal(what="ours over theirs", figure=figure, bar=1.1)]


def write(folder: Path, figure: float | None) -> bool:
    return record(
        "speed", title="Speed", about="Two ways.", rows=ROWS, goals=goals(figure), folder=folder
    )


def test_a_result_is_told_whole(tmp_path: Path) -> None:
    assert write(tmp_path, 1.05)
    render(tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "## Speed" in page
    assert "| way | ms | patients |\n| --- | ---: | ---: |\n" in page
    assert "| ours | 1,234 | 4 |\n| theirs | 0.123 | 4 |\n" in page
    assert "- met: 1.05, wanted at most 1.1: ours over theirs" in page
    assert "`python -m benchmarks speed`" in page
    assert "torch " in page


def test_a_missed_goal_is_told_and_fails_the_bench(tmp_path: Path) -> None:
    assert not write(tmp_path, 1.2)
    render(tmp_path, tmp_path / "page.md")
    assert "- **missed**: 1.2, wanted at most 1.1" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(
    ("figure", "told"), [(1.102, "1.102"), (1.1000004, "1.1000004"), (1.1, "1.1"), (1.2, "1.2")]
)
def test_a_figure_does_not_look_like_a_bar_that_it_is_not(figure: float, told: str) -> None:
    (goal,) = goals(figure)
    assert f": {told}, wanted at most 1.1:" in goal.words
    large = Goal(what="bytes", figure=1000.4, bar=1000.0)
    assert large.words == "- **missed**: 1,000.4, wanted at most 1,000: bytes"


def test_what_could_not_be_measured_is_neither(tmp_path: Path) -> None:
    assert write(tmp_path, None)
    render(tmp_path, tmp_path / "page.md")
    assert "- not measured, wanted at most 1.1" in (tmp_path / "page.md").read_text()


def test_more_can_be_better() -> None:
    assert Goal(what="speed", figure=0.95, bar=0.9, least=True).met
    assert not Goal(what="speed", figure=0.85, bar=0.9, least=True).met


def test_the_page_was_made_of_the_results(tmp_path: Path) -> None:
    render(page=tmp_path / "page.md")
    assert PAGE.read_text() == (tmp_path / "page.md").read_text()
