"""What names alone tell: who is at which site, which files are there, sessions, patients twice."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from medsynth_common.dataset.files import PatientFiles
from medsynth_common.dataset.finding import About, Finding, Level
from medsynth_common.dataset.layouts.sessions import split_session
from medsynth_common.errors import Problem

Sites = Mapping[str, Sequence[PatientFiles]]


def membership(sites: Sites) -> Iterator[Finding]:
    """Compare the sites: a patient belongs to one of them, once."""
    homes: dict[tuple[Path, str], list[str]] = defaultdict(list)
    for site, patients in sites.items():
        if not patients:
            yield _error(f"site {site}", "no patient", "at least one")
        for files in patients:
            homes[files.folder, files.name].append(site)
    for (_, name), named in homes.items():
        if len(set(named)) > 1:
            value = f"sites {', '.join(sorted(set(named)))}"
            mend = "a patient at two sites would be counted twice in the privacy statement"
            yield _error(f"patient {name}", value, "one site", mend)
        for site in sorted(site for site in set(named) if named.count(site) > 1):
            value = f"{named.count(site)} rows"
            yield _error(f"{site}/{name}", value, "one row in the CSV")
    yield from _divided(sites)


def files_of(files: PatientFiles) -> Iterator[Finding]:
    """Check that a patient has one file for each role, and each file one role."""
    about = About(files=files)
    if not files.matches:
        value, mend = "no such folder", "correct the CSV"
        yield about.error("no-such-patient", "", value, "a folder of that name", mend)
        return
    if files.sessions:
        value = f"{len(files.sessions)} sessions ({', '.join(files.sessions)})"
        yield about.note("sessions", "", value, f"one patient: {files.session} is used")
    roles_of: dict[tuple[Path, int | None], list[str]] = defaultdict(list)
    for role, found in files.matches.items():
        wanted = files.wanted.get(role, "one file")
        if not found:
            yield about.error("missing-file", role, "no file", wanted, files.otherwise)
        elif len(found) > 1:
            value = ", ".join(path.name for path in found)
            yield about.error("several-files", role, value, wanted, "narrow the pattern")
        else:
            roles_of[found[0], files.channels.get(role)].append(role)
    for (path, _), roles in roles_of.items():
        if len(roles) > 1:
            name, mend = " and ".join(roles), "narrow the patterns"
            yield about.error("shared-file", name, path.name, "a file for each", mend)


def _divided(sites: Sites) -> Iterator[Finding]:
    """Find patients of one folder whose sessions were dealt to several sites."""
    homes: dict[tuple[Path, str], set[str]] = defaultdict(set)
    for site, patients in sites.items():
        for files in patients:
            patient, session = split_session(files.name)
            if session or files.sessions:
                homes[files.folder.parent, patient].add(site)
    for (_, patient), named in homes.items():
        if len(named) > 1:
            value = f"sessions at sites {', '.join(sorted(named))}"
            mend = "a patient at two sites would be counted twice in the privacy statement"
            yield _error(f"patient {patient}", value, "one site", mend)


def _error(name: str, value: str, wanted: str, mend: str = "") -> Finding:
    problem = Problem(name=name, value=value, wanted=wanted, mend=mend)
    return Finding(level=Level.ERROR, kind="membership", problem=problem)
