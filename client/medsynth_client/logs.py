"""A site's logs: files that rotate, in text or JSON lines; they hold no patient's name.

What goes to standard error goes to the file as well. Errors from inside a plan are logged by
name and place alone (`trainer.py`), since their text may hold a patient's.
"""

import json
import logging
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final, Literal

from medsynth_common.errors import BadConfig, Problem

LOGS: Final = "logs"
LogFormat = Literal["text", "json"]

_BYTES: Final = 5_000_000
_KEPT: Final = 5
#: What `extra` may add to a line of JSON.
_FIELDS: Final = ("run", "stage", "round", "error")
_TEXT: Final = "%(asctime)s %(levelname)s %(process_name)s: %(message)s"


class JsonLines(logging.Formatter):
    """One JSON object a line: time (UTC), level, process, message and what is known of a plan."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "process": getattr(record, "process_name", ""),
            "message": record.getMessage(),
        }
        values |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info and record.exc_info[0] is not None:
            values["error"] = record.exc_info[0].__name__  # a name: never the text
        return json.dumps(values)


def start_logging(folder: Path, process: str, *, format: LogFormat) -> None:
    """Send this process's log to `DIR/logs/PROCESS.log` and to standard error.

    Raises:
        BadConfig: the folder is no site's; a mistyped one is told, not made.

    """
    if not (folder / "site.toml").exists():
        name = str(folder / "site.toml")
        raise BadConfig(Problem(name=name, value="no such file", wanted="a site's own file"))
    logs = folder / LOGS
    logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = RotatingFileHandler(logs / f"{process}.log", maxBytes=_BYTES, backupCount=_KEPT)
    formatter = JsonLines() if format == "json" else logging.Formatter(_TEXT)

    def name_process(record: logging.LogRecord) -> bool:
        record.process_name = process
        return True

    root = logging.getLogger("medsynth_client")
    root.setLevel(logging.INFO)
    root.propagate = False
    for handler in (file, logging.StreamHandler()):
        handler.setFormatter(formatter)
        handler.addFilter(name_process)
        root.addHandler(handler)
