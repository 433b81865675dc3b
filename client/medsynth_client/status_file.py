"""`status.json`: what a running site says about itself. One section for each of its processes.

It holds no patient, no loss and no count; it is for the hospital's own eyes.
"""

import json
import os
import time
from pathlib import Path
from typing import Any, Final

from medsynth_client.hash_chain import exclusive
from medsynth_common.durable import write_json

STATUS: Final = "status.json"
_LOCK_SECONDS: Final = 10.0


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


def read_status(folder: Path) -> dict[str, Any]:
    """Read all sections; empty for a site that never ran, or whose file is damaged."""
    try:
        values = json.loads((folder / STATUS).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
