"""What this process holds and has held, as Linux tells it.

Not `resource.getrusage`: there a process that was just started begins with its parent's peak.
"""

import ctypes
from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")
_RESET: Final = Path("/proc/self/clear_refs")
TOLD: Final = _STATUS.exists()
#: Whether a peak can be counted anew.
RESETS: Final = TOLD and _RESET.exists()


def held() -> int:
    """Bytes in memory now."""
    return _field("VmRSS")


def peak() -> int:
    """Bytes in memory at most, since the start or since a 5 went to `/proc/self/clear_refs`."""
    return _field("VmHWM")


def count_anew() -> int:
    """Let `peak` count from here, whatever was held before; gives the bytes in memory now."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not at hand for what comes
    _RESET.write_text("5")
    return held()


def _field(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
