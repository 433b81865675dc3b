"""How both command lines end: one clear message and the documented exit code."""

import os
import sys
from typing import Any, Final, NoReturn

import click

from medsynth_common.errors import BadInput, MedsynthError, Problem, StorageFailed

#: Ended by Ctrl-C, as shells count it (128 + SIGINT).
INTERRUPTED: Final = 130

#: Nothing of ours calls home. Set before Flower is imported anywhere.
QUIET: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


#: Threads that wait sleep rather than spin: beside any other load, spinning was measured to cost
#: ten times the work itself. Read once, when torch is first imported.
PATIENT_THREADS: Final = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def run(app: Any) -> None:
    """Run a typer app; turn our errors into their message on stderr and their exit code."""
    os.environ.update(QUIET)
    for name, value in PATIENT_THREADS.items():
        os.environ.setdefault(name, value)
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer made an exit code of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except click.ClickException as error:
        error.show()
        sys.exit(BadInput.exit_code)
    except MedsynthError as error:
        _end(error)
    except OSError as error:
        # What could be answered was caught further in; left is a disk that takes or gives nothing.
        _end(StorageFailed(str(_unusable(error))))
    except (KeyboardInterrupt, click.Abort):
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


def message(error: MedsynthError) -> str:
    """Say what went wrong: a line for each problem."""
    if isinstance(error, BadInput) and len(error.problems) > 1:
        lines = "\n".join(f"  - {problem}" for problem in error.problems)
        return f"error: {len(error.problems)} problems\n{lines}"
    return f"error: {error}"


def _end(error: MedsynthError) -> NoReturn:
    print(message(error), file=sys.stderr)
    sys.exit(error.exit_code)


def _unusable(error: OSError) -> Problem:
    """Say which file could not be used, and why."""
    return Problem(
        name=str(error.filename or "a file"),
        value=error.strerror or type(error).__name__,
        wanted="a file that can be read or written, on a disk with room",
    )
