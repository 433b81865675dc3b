import os

import click
import pytest
import typer

from medsynth_common import errors
from medsynth_common.command_line import QUIET, run
from medsynth_common.errors import BadConfig, BadInput, MedsynthError, Problem


def app_that(raises: BaseException | None) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    def go(number: int = 0) -> None:
        if raises is not None:
            raise raises

    return app


def end_of(monkeypatch: pytest.MonkeyPatch, app: typer.Typer, *arguments: str) -> object:
    """The exit code that a program of this app ends with."""
    monkeypatch.setattr("sys.argv", ["program", *arguments])
    with pytest.raises(SystemExit) as caught:
        run(app)
    return caught.value.code


def test_what_went_well_ends_with_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not end_of(monkeypatch, app_that(None), "--number", "3")


@pytest.mark.parametrize("arguments", [["--number", "x"], ["--nonsense"], ["extra"]])
def test_wrong_usage_is_bad_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert end_of(monkeypatch, app_that(None), *arguments) == 4
    assert "Error" in capsys.readouterr().err


CODES = {
    "MedsynthError": 1,
    "TrainerDied": 1,
    "ConnectionFailed": 2,
    "Unreachable": 2,
    "Untrusted": 2,
    "NotAdmitted": 2,
    "TimedOut": 3,
    "BadInput": 4,
    "BadConfig": 4,
    "BadData": 4,
    "BadMessage": 4,
    "BadRecord": 4,
    "StorageFailed": 4,
    "Refused": 5,
    "PolicyRefusal": 5,
    "UnknownWork": 5,
    "CodeRefused": 5,
    "BudgetExhausted": 5,
    "AlreadyAnswered": 5,
    "NotCharged": 5,
    "UnsafeRelease": 5,
    "BadSignature": 5,
    "WrongAddress": 5,
    "Expired": 5,
    "Replayed": 5,
    "ClockWentBack": 5,
}


def test_every_error_has_its_code_here() -> None:
    kinds = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, MedsynthError)
    }
    assert kinds == CODES.keys()


@pytest.mark.parametrize("name", CODES)
def test_each_error_ends_with_its_code_and_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    error: MedsynthError = getattr(errors, name)("clip: got 0, wanted more")
    assert end_of(monkeypatch, app_that(error)) == CODES[name]
    told = capsys.readouterr()
    assert told.err == "error: clip: got 0, wanted more\n"
    assert told.out == ""


def test_a_disk_that_takes_nothing_is_told_with_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(28, "No space left on device", "runs/demo/weights")
    assert end_of(monkeypatch, app_that(full)) == 4
    assert capsys.readouterr().err == (
        "error: runs/demo/weights: got No space left on device, "
        "wanted a file that can be read or written, on a disk with room\n"
    )
    assert end_of(monkeypatch, app_that(OSError())) == 4
    assert "error: a file: got OSError" in capsys.readouterr().err


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), click.Abort()])
def test_ctrl_c_ends_as_shells_count_it(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    interruption: BaseException,
) -> None:
    assert end_of(monkeypatch, app_that(interruption)) == 130
    assert "goes on where this one stopped" in capsys.readouterr().err


def test_an_app_s_own_exit_code_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert end_of(monkeypatch, app_that(typer.Exit(1))) == 1


def test_an_error_nobody_planned_for_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["program"])
    with pytest.raises(ZeroDivisionError):
        run(app_that(ZeroDivisionError()))


def test_several_problems_are_a_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = [
        Problem(name="clip", value="0", wanted="more than 0"),
        Problem(name="sies", value="3", wanted="a known key", mend="did you mean sites?"),
    ]
    end_of(monkeypatch, app_that(BadConfig(problems)))
    assert capsys.readouterr().err == (
        "error: 2 problems\n"
        "  - clip: got 0, wanted more than 0\n"
        "  - sies: got 3, wanted a known key (did you mean sites?)\n"
    )
    end_of(monkeypatch, app_that(BadInput(problems[0])))
    assert capsys.readouterr().err == "error: clip: got 0, wanted more than 0\n"


def test_nothing_calls_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUIET:
        monkeypatch.setenv(name, "1")
    end_of(monkeypatch, app_that(None))
    assert {name: os.environ[name] for name in QUIET} == QUIET
    assert "FLWR_TELEMETRY_ENABLED" in QUIET
