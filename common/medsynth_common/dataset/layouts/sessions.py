"""Sessions (visits) of one patient: which names belong together, and which session is used."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from medsynth_common.dataset.files import PatientFiles

_SESSION: Final = (
    r"ses(?:sion)?[-_]?\w+|visit[-_]?\w+|(?:tp|timepoint|time)[-_]?\d+|baseline|follow[-_]?up\d*"
    r"|(?:19|20)\d\d-?[01]\d-?[0-3]\d|pre(?:[-_]?op)?|post(?:[-_]?op)?"
)
_WHOLE: Final = re.compile(_SESSION, re.IGNORECASE)
#: BraTS since 2023 counts a patient's time points in the name: BraTS-GLI-00001-000, -001.
_ENDINGS: Final = (
    re.compile(r"(?P<patient>BraTS-[A-Za-z]+-\d+)-(?P<session>\d{3})"),
    re.compile(rf"(?P<patient>.+?)[-_](?P<session>{_SESSION})", re.IGNORECASE),
)


def is_session(name: str) -> bool:
    """Say whether a folder's name is that of a session: `ses-01`, `visit2`, `2019-04-30`."""
    return _WHOLE.fullmatch(name) is not None


def split_session(name: str) -> tuple[str, str]:
    """Split `p1_ses-2` into patient and session; a name without a session has an empty one."""
    for ending in _ENDINGS:
        if match := ending.fullmatch(name):
            return match["patient"], match["session"]
    return name, ""


def joined(patients: Iterable[PatientFiles]) -> list[PatientFiles]:
    """Make one patient of those whose names say that they are sessions of one, in one site.

    A name that only looks like a session's, without another beside it, stays as it is.
    """
    groups: dict[tuple[str, str], list[PatientFiles]] = defaultdict(list)
    for files in patients:
        groups[files.site, split_session(files.name)[0]].append(files)
    result = []
    for (_, patient), members in groups.items():
        names = {split_session(files.name)[1] for files in members}
        if len(members) == 1 or len(names) < len(members):
            result += members
        else:
            named = [
                replace(one, name=patient, session=split_session(one.name)[1] or one.name)
                for one in members
            ]
            result.append(of_sessions(named))
    return result


def of_sessions(sessions: Sequence[PatientFiles]) -> PatientFiles:
    """Make one patient of its sessions: the first that is whole, else the one with most files."""
    used = max(sessions, key=lambda files: sum(len(found) == 1 for found in files.matches.values()))
    if len(sessions) == 1:
        return used
    return replace(used, sessions=tuple(files.session for files in sessions))
