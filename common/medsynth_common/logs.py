"""Log files that rotate, in text or JSON lines, the same at a hospital and at the coordinator.

What goes to a file is chosen where it is logged; nothing is masked here, and so nothing of a
patient's may be logged anywhere.
"""

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final, Literal

#: Where they stand, in a site's or a federation's folder.
LOGS: Final = "logs"
LogFormat = Literal["text", "json"]

_BYTES: Final = 5_000_000
_KEPT: Final = 5
#: What `extra` may add to a line of JSON.
FIELDS: Final = ("run", "stage", "round", "site", "seconds", "bytes", "epsilon", "cap", "error")
_TEXT: Final = "%(asctime)s %(levelname)s %(process_name)s: %(message)s"


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, process, message and what is known beside."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "process": getattr(record, "process_name", ""),
            "message": record.getMessage(),
        }
        values |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info and record.exc_info[0] is not None:
            values["error"] = record.exc_info[0].__name__  # a name: never the text
        return json.dumps(values)


def log_to(
    folder: Path, process: str, *, package: str, format: LogFormat, echo: bool
) -> Callable[[], None]:
    """Send what `package` logs to `FOLDER/logs/PROCESS.log` and, with `echo`, to standard error.

    A file of 5 MB is put aside as PROCESS.log.1 and so on; five are kept. The folder is the
    owner's alone. Gives what ends it. Raises OSError where the file cannot be written.
    """
    logs = folder / LOGS
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [
        RotatingFileHandler(logs / f"{process}.log", maxBytes=_BYTES, backupCount=_KEPT)
    ]
    if echo:
        handlers.append(logging.StreamHandler())
    formatter = JsonLines() if format == "json" else logging.Formatter(_TEXT)

    def name_process(record: logging.LogRecord) -> bool:
        record.process_name = process
        return True

    root = logging.getLogger(package)
    root.setLevel(logging.INFO)
    root.propagate = False
    for handler in handlers:
        handler.setFormatter(formatter)
        handler.addFilter(name_process)
        root.addHandler(handler)

    def stop() -> None:
        root.propagate = True
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()

    return stop
