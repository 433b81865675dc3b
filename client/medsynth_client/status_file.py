"""`status.json`: what a running site says about itself. One section for each of its processes.

It holds no patient, no loss and no count; it is for the hospital's own eyes.
"""

import json
import logging
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from medsynth_client.hash_chain import exclusive
from medsynth_common.durable import write_json
from medsynth_common.errors import TimedOut

log = logging.getLogger(__name__)

STATUS: Final = "status.json"
_LOCK_SECONDS: Final = 10.0
_STEP: Final = "step"
_STEP_SECONDS: Final = 1.0


class StatusFile:
    """One process's section of the file; other sections stay as they are."""

    def __init__(self, folder: Path, section: str) -> None:
        self._path = folder / STATUS
        self._section = section

    def begin(self, **fields: Any) -> None:
        """Start the section anew."""
        self._write({"pid": os.getpid(), **fields})

    def set(self, **fields: Any) -> None:
        """Change some fields."""
        self._write(read_status(self._path.parent).get(self._section, {}) | fields)

    def _write(self, fields: dict[str, Any]) -> None:
        with exclusive(self._path, timeout=_LOCK_SECONDS):
            whole = read_status(self._path.parent)
            whole[self._section] = fields | {"updated": time.time()}
            write_json(self._path, whole)


class StepsTold(AbstractContextManager["StepsTold"]):
    """Which step a round is at, in the section `step`, for as long as the block.

    Told once a second at most: a short round leaves the disk alone.
    """

    def __init__(self, folder: Path) -> None:
        self._status = StatusFile(folder, _STEP)
        self._told = time.monotonic()
        self._any = False

    def __call__(self, of: str, step: int, steps: int) -> None:
        """Step `step` of `steps` is next."""
        if time.monotonic() > self._told + _STEP_SECONDS:
            self._told, self._any = time.monotonic(), True
            self._write(of=of, step=step, steps=steps)

    def __exit__(self, *_: object) -> None:
        if self._any:
            self._write()

    def _write(self, **fields: Any) -> None:
        try:
            self._status.begin(**fields)
        except (OSError, TimedOut) as error:  # a round that is paid for does not end for a display
            log.warning("the step could not be told: %s", type(error).__name__)


def forget_step(folder: Path) -> None:
    """Clear what a trainer that was killed in a round left."""
    if "step" in read_status(folder).get(_STEP, {}):
        StatusFile(folder, _STEP).begin()


def read_status(folder: Path) -> dict[str, Any]:
    """Read all sections; empty for a site that never ran, or whose file is damaged."""
    try:
        values = json.loads((folder / STATUS).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
