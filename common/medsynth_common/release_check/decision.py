"""A person's decision to release a set against its check: who, when and why."""

import getpass
import os
from datetime import UTC, datetime

from medsynth_common.errors import BadConfig, Problem
from medsynth_common.release_check.result import LONGEST_REASON, ReleaseCheck


def checked_reason(reason: str, *, flag: str) -> str:
    """Return a reason without the blanks around it; empty means that none was given.

    Raises:
        BadConfig: it is blank, too long for an audit line, or not one line.

    """
    stripped = reason.strip()
    if reason and not (1 <= len(stripped) <= LONGEST_REASON and stripped.isprintable()):
        raise BadConfig(
            Problem(
                name=flag,
                value=f"a reason of {len(stripped)} characters",
                wanted=f"one line of 1 to {LONGEST_REASON}",
            )
        )
    return stripped


def override(check: ReleaseCheck, reason: str) -> ReleaseCheck:
    """Return the same findings with the decision of whoever runs this process."""
    return check.overridden(who=_account(), reason=reason, when=datetime.now(UTC))


def _account() -> str:
    try:
        return getpass.getuser()[:100]
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"
