"""A trainer without a network: a namespace of its own, in which there is none.

On Linux a process may move into a new, empty network namespace: not even a loopback is up there.
Unix sockets are files and go on working. Root may do so as it is; anyone else needs a user
namespace as well, which some systems forbid.
"""

import ctypes
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from medsynth_client.status_file import StatusFile

log = logging.getLogger(__name__)

# linux/sched.h
_NEW_USER: Final = 0x10000000
_NEW_NETWORK: Final = 0x40000000
_PROBE: Final = "from medsynth_client.isolation import leave_network; leave_network()"
_PROBE_SECONDS: Final = 20.0


def leave_network() -> None:
    """Move this process, which must have one thread only, away from every network.

    Raises:
        OSError: the system does not allow it.

    """
    try:
        _unshare(_NEW_NETWORK)
    except PermissionError:
        user, group = os.getuid(), os.getgid()
        _unshare(_NEW_USER | _NEW_NETWORK)
        # The same names inside as outside, or its own files would be a stranger's.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def isolate_trainer(folder: Path) -> None:
    """Leave the network where that is possible; tell plainly, and go on, where it is not."""
    try:
        leave_network()
    except (OSError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no Linux"
        log.warning(
            "the trainer keeps this machine's network: %s; give the service CAP_SYS_ADMIN or allow "
            "user namespaces, or cut its network otherwise (see docs/hospital.md)",
            reason,
        )
        StatusFile(folder, "trainer").begin(isolated=False, reason=str(reason))
    else:
        log.info("the trainer has no network")
        StatusFile(folder, "trainer").begin(isolated=True, reason="")


def cannot_isolate() -> str:
    """Try it in another process; empty when it works, else why not."""
    tried = subprocess.run(
        [sys.executable, "-c", _PROBE],
        capture_output=True,
        text=True,
        check=False,
        timeout=_PROBE_SECONDS,
    )
    return "" if tried.returncode == 0 else tried.stderr.strip().splitlines()[-1]


def _unshare(flags: int) -> None:
    # os.unshare came with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
