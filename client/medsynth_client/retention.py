"""What a site need not keep for ever: prepared patients and training state, by its own policy.

The ledger and the audit log are never touched: what patients have spent is for life.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: Where prepared patients are cached, one folder for each way of preparing.
PREPARED: Final = "prepared"
#: The site's last answers and its training state, one file for each run.
STATE: Final = "state"
#: The lock that a running trainer holds stands beside this name.
TRAINER: Final = "trainer"
_DAY: Final = 24 * 60 * 60


def tidy(folder: Path, *, retention_days: int, now: float | None = None) -> list[Path]:
    """Remove caches and state of a site that were last used more than `retention_days` ago.

    Args:
        folder: the site's, which no trainer may be using.
        retention_days: the site's policy.
        now: seconds since 1970; the clock's when left out.

    Gives what was removed. What seems to be of the future stays: a wrong clock removes nothing
    that a right one would keep. Raises OSError for what cannot be removed.

    """
    oldest = (time.time() if now is None else now) - retention_days * _DAY
    removed = [path for path in _kept(folder) if _last_used(path) < oldest]
    for path in removed:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return removed


def _kept(folder: Path) -> Iterator[Path]:
    """All that may be removed; never through a link, which may lead out of the folder."""
    for held in (folder / PREPARED, folder / STATE):
        if held.is_dir() and not held.is_symlink():
            yield from sorted(path for path in held.iterdir() if not path.is_symlink())


def _last_used(path: Path) -> float:
    inside = path.rglob("*") if path.is_dir() else ()
    used: float = max(one.lstat().st_mtime for one in (path, *inside))
    return used
