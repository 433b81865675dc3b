"""What this process holds and has held, as Linux tells it.

Not `resource.getrusage`: there a process that was just started begins with its parent's peak.
"""

from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")
TOLD: Final = _STATUS.exists()


def held() -> int:
    """Bytes in memory now."""
    return _field("VmRSS")


def peak() -> int:
    """Bytes in memory at most, since the start or since a 5 went to `/proc/self/clear_refs`."""
    return _field("VmHWM")


def _field(name: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
