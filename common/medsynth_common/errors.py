"""Every error medsynth raises on purpose, each with the exit code a command ends with.

    MedsynthError                 1  something failed
    ├── TrainerDied               1  a trainer process ended while it was working
    ├── ConnectionFailed          2  the other side cannot be reached, or is not who it should be
    │   ├── Unreachable              no answer from it, yet
    │   ├── Untrusted                what answers does not prove to be the coordinator
    │   └── NotAdmitted              it answers, and does not let this node in
    ├── TimedOut                  3  the other side did not answer in time
    ├── BadInput                  4  data, configuration or a message is not what it must be
    │   ├── BadConfig                a configuration file or flag
    │   ├── BadData                  volumes, labels, folders, a CSV
    │   ├── BadMessage               a plan or an update that does not decode or check
    │   └── BadRecord                a ledger or an audit log that was edited, cut or damaged
    ├── StorageFailed             4  the disk is full, read-only or broken; nothing was released
    └── Refused                   5  understood, and not done
        ├── PolicyRefusal            the site's own policy forbids it
        ├── BudgetExhausted          it would pass the site's privacy cap
        ├── AlreadyAnswered          a plan of a round that was answered before
        ├── NotCharged               a release that the ledger was not charged for
        ├── UnsafeRelease            a release that is not what the plan asked for
        ├── BadSignature             not sealed by the key it should be
        ├── WrongAddress             sealed for another plan, site, stage or round
        ├── Expired                  sealed too long ago, or in the future
        ├── Replayed                 a message that was taken before
        ├── UnknownWork              a kind of message that a site does not serve
        ├── CodeRefused              a run that brings code; a site runs what it installed
        └── ClockWentBack            the clock stands before the record's last entry

A site sends only an error's *name* to the coordinator: its text may hold a patient's.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with an input, told so that a person can mend it.

    Attributes:
        name: what it is about, such as `site-a/patient-3: t2`.
        value: what was found there.
        wanted: what should have been there.
        mend: what to do about it; empty when `wanted` says it all.

    """

    name: str
    value: str
    wanted: str
    mend: str = ""

    def __str__(self) -> str:
        line = f"{self.name}: got {self.value}, wanted {self.wanted}"
        return _on_one_line(f"{line} ({self.mend})" if self.mend else line)


def _on_one_line(text: str) -> str:
    """Escape what would move a terminal's cursor or begin a line: names may be a peer's."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class MedsynthError(Exception):
    """Something medsynth was asked to do failed."""

    exit_code = 1


class TrainerDied(MedsynthError):
    """A trainer process ended while it was working; its log tells why."""


class ConnectionFailed(MedsynthError):
    """The other side cannot be reached or did not prove who it is."""

    exit_code = 2


class Unreachable(ConnectionFailed):
    """No connection, or no answer over it; worth another try."""


class Untrusted(ConnectionFailed):
    """What answers does not prove to be the coordinator: certificate, name, no TLS at all."""


class NotAdmitted(ConnectionFailed):
    """The coordinator answers, and does not let this node in: its key, or its clock."""


class TimedOut(MedsynthError):
    """The other side did not answer within the time allowed."""

    exit_code = 3


class BadInput(MedsynthError):
    """Input that is not what it must be; holds every problem found, not only the first."""

    exit_code = 4

    def __init__(self, problems: Problem | Iterable[Problem] | str) -> None:
        if isinstance(problems, str):
            self.problems: tuple[Problem, ...] = ()
            super().__init__(problems)
            return
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class BadConfig(BadInput):
    """A configuration file or a command-line flag that cannot be used."""


class BadData(BadInput):
    """A data set that cannot be used."""


class BadMessage(BadInput):
    """A plan or update that does not decode, or whose parts contradict each other."""


class BadRecord(BadInput):
    """A ledger or an audit log that was edited, cut, reordered or damaged."""


class StorageFailed(MedsynthError):
    """A record or a result could not be written durably: disk full, read-only, broken."""

    exit_code = 4


class Refused(MedsynthError):
    """Understood, and not done."""

    exit_code = 5


class PolicyRefusal(Refused):
    """The site's own policy forbids it."""


class BudgetExhausted(Refused):
    """It would take a site past its lifetime privacy cap."""


class AlreadyAnswered(Refused):
    """A plan of a round that this site has answered, or has left behind."""


class NotCharged(Refused):
    """No receipt, another plan's receipt, or one that already let a release out."""


class UnsafeRelease(Refused):
    """Other tensors or bytes than the plan asks for, or numbers that are not finite."""


class BadSignature(Refused):
    """A plan or update without a seal, or with one that another key made."""


class WrongAddress(Refused):
    """A seal that was made for another plan, site, stage or round."""


class Expired(Refused):
    """A seal past its time, or from a future that clocks do not explain."""


class Replayed(Refused):
    """A message that was taken before."""


class UnknownWork(Refused):
    """A kind of message that a site does not serve: it carries out plans, and no more."""


class CodeRefused(Refused):
    """A run that brings code. A site runs only what it has installed."""


class ClockWentBack(Refused):
    """The clock stands before the last entry of a record that is in order of time."""
