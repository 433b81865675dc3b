"""What a check finds: errors, warnings and notes, each with what to do about it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from medsynth_common.dataset.files import PatientFiles
from medsynth_common.errors import BadData, Problem


class Level(StrEnum):
    """How much a finding weighs."""

    ERROR = "error"  # training on it would fail, or would mislead
    WARNING = "warning"  # it can be trained on; a person should look
    NOTE = "note"  # how it was read


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found in a data set.

    Attributes:
        level: how much it weighs.
        kind: a short name for findings of its sort, such as `missing-file`.
        problem: what was found, what was wanted and how to mend it.
        patient: the patient it is about, as `site/name`; empty for a site or the whole.
        role: the contrast or map it is about; empty for the whole patient.
        mendable: whether `mend` can put it right in a copy.

    """

    level: Level
    kind: str
    problem: Problem
    patient: str = ""
    role: str = ""
    mendable: bool = False


@dataclass(frozen=True, kw_only=True)
class Examination:
    """All that was found in a data set.

    Attributes:
        patients: every patient, by site.
        findings: in the order of the sites.

    """

    patients: dict[str, list[PatientFiles]]
    findings: Sequence[Finding]

    def of(self, level: Level) -> list[Finding]:
        """Return the findings of one level."""
        return [finding for finding in self.findings if finding.level is level]

    def raise_errors(self) -> None:
        """Raise BadData with every error, if there is one."""
        if errors := self.of(Level.ERROR):
            raise BadData(finding.problem for finding in errors)


@dataclass(frozen=True, kw_only=True)
class About:
    """Whom findings are about: makes them without naming the patient each time."""

    files: PatientFiles

    def error(
        self,
        kind: str,
        role: str,
        value: str,
        wanted: str,
        mend: str = "",
        *,
        mendable: bool = False,
    ) -> Finding:
        """Make an error."""
        return self._finding(Level.ERROR, kind, role, (value, wanted, mend), mendable)

    def warning(
        self,
        kind: str,
        role: str,
        value: str,
        wanted: str,
        mend: str = "",
        *,
        mendable: bool = False,
    ) -> Finding:
        """Make a warning."""
        return self._finding(Level.WARNING, kind, role, (value, wanted, mend), mendable)

    def note(self, kind: str, role: str, value: str, wanted: str) -> Finding:
        """Make a note: what was found, and what becomes of it."""
        return self._finding(Level.NOTE, kind, role, (value, wanted, ""), mendable=False)

    def _finding(
        self, level: Level, kind: str, role: str, said: tuple[str, str, str], mendable: bool
    ) -> Finding:
        value, wanted, mend = said
        name = f"{self.files}: {role}" if role else str(self.files)
        return Finding(
            level=level,
            kind=kind,
            problem=Problem(name=name, value=value, wanted=wanted, mend=mend),
            patient=str(self.files),
            role=role,
            mendable=mendable,
        )


def size(shape: Iterable[int]) -> str:
    """Write a grid's size for a person."""
    return "x".join(map(str, shape)) + " voxels"
