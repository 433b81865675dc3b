"""What a release check found: `release-check.json`. It names no patient."""

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, Field, ValidationError

from medsynth_common.errors import BadData
from medsynth_common.plan import problems_of
from medsynth_common.privacy.mechanism import Value

#: Characters of a person's reason to release a set against its check: an audit line's.
LONGEST_REASON: Final = 200

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Distance = Annotated[float, Field(ge=0)]
Compared = Literal["images", "anatomy maps", "tumour maps"]


class Verdict(StrEnum):
    """How a check ended; `not decidable` means that there were too few patients to compare with."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_DECIDABLE = "not decidable"


class Interval(Value):
    """A 95 % confidence interval, ends included."""

    low: float
    high: float


class Finding(Value):
    """One part of the check.

    Attributes:
        verdict: of this part.
        reason: the verdict in plain words.

    """

    verdict: Verdict
    reason: str


class NearnessFinding(Finding):
    """Whether synthetic volumes lie closer to training patients than other people do.

    A volume's *score* is its distance to the nearest training patient over its median distance to
    all of them; a person's is the same over all others. A copy scores near 0.

    Attributes:
        of: what was compared.
        compared: synthetic volumes that could be compared; a map without tumour cannot.
        copies: names of the volumes whose score is below `threshold`.
        share: of copies among those compared.
        share_interval: its confidence interval (Clopper & Pearson 1934).
        threshold: scores below it are copies; None where nobody is there to compare with.
        controls: real people that the threshold was set by, each compared with all others.
        unusual: share of volumes below the 5 % point of the controls; by chance, 0.05.
        near_held_out: volumes that are as near to a held-out patient: what the rule finds where
            nothing can have been memorised.
        to_training, held_out_to_training, to_held_out: nearest distances, one a volume, that could
            be compared: synthetic to training, held-out to training, synthetic to held-out.

    """

    of: Compared
    compared: Count
    copies: tuple[str, ...]
    share: Share
    share_interval: Interval
    threshold: Distance | None
    controls: Count
    unusual: Share
    near_held_out: Count
    to_training: tuple[Distance, ...]
    held_out_to_training: tuple[Distance, ...]
    to_held_out: tuple[Distance, ...]


class DuplicateFinding(Finding):
    """Whether synthetic volumes are copies of one another.

    Attributes:
        compared: volumes in the set.
        pairs: names of every pair that is closer than `threshold`.
        threshold: root mean square difference of two signatures.

    """

    compared: Count
    pairs: tuple[tuple[str, str], ...]
    threshold: Distance


class AttackFinding(Finding):
    """How well one membership inference attack tells training from held-out patients.

    Attributes:
        attack: which, by the name in its paper.
        auc: probability that a training patient scores higher than a held-out one; None where
            there are none of either.
        auc_interval: over patients drawn anew (bootstrap).
        control: what the same attack reaches in 99 % of splits of the *training* patients into
            pretended members and others: the AUC one gets from nothing.
        false_positive_rate: the smallest at least 1 % that this many held-out patients resolve.
        true_positive_rate: of training patients found at that rate.
        true_positive_interval: its confidence interval (Clopper & Pearson 1934).

    """

    attack: Literal["GAN-Leaks", "DOMIAS"]
    auc: Share | None
    auc_interval: Interval | None
    control: Share | None
    false_positive_rate: Share | None
    true_positive_rate: Share | None
    true_positive_interval: Interval | None


class Override(Value):
    """That a person released a set against the check.

    Attributes:
        who: the account it was done from.
        when: the moment, with its zone.
        reason: in the person's words.

    """

    who: str = Field(min_length=1, max_length=100)
    when: AwareDatetime
    reason: str = Field(min_length=1, max_length=LONGEST_REASON)


class ReleaseCheck(Value):
    """All that was found about one synthetic set.

    Attributes:
        verdict: failed when a part failed, else not decidable when a part is, else passed.
        seed: of the check's own draws; the same seed and volumes give the same result.
        training, held_out, synthetic, reference: how many of each were compared.
        nearness: for images and label maps.
        duplicates: inside the set.
        attacks: membership inference.
        override: None unless a person released the set against the verdict.

    """

    verdict: Verdict
    seed: Count
    training: Count
    held_out: Count
    synthetic: Count
    reference: Count
    nearness: tuple[NearnessFinding, ...]
    duplicates: DuplicateFinding
    attacks: tuple[AttackFinding, ...]
    override: Override | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the verdict is what it is: what speaks against the set, or else everything found."""
        if self.verdict is Verdict.PASSED:
            return tuple(part.reason for part in self.findings)
        return tuple(part.reason for part in self.findings if part.verdict is not Verdict.PASSED)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Every part."""
        return (*self.nearness, self.duplicates, *self.attacks)

    @property
    def released(self) -> bool:
        """Whether the set may be handed on: it did not fail, or a person decided so."""
        return self.verdict is not Verdict.FAILED or self.override is not None

    def encoded(self) -> bytes:
        """Write it as `release-check.json` holds it."""
        return (self.model_dump_json(indent=2) + "\n").encode()

    def overridden(self, *, who: str, reason: str, when: datetime) -> "ReleaseCheck":
        """Return the same findings, with the decision to release against them."""
        override = Override(who=who, reason=reason, when=when)
        return self.model_copy(update={"override": override})


def read_release_check(path: Path) -> ReleaseCheck | None:
    """Read a `release-check.json`; None where there is none.

    Raises:
        BadData: it is there and does not check.

    """
    if not path.exists():
        return None
    try:
        return ReleaseCheck.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadData(problems_of(error, name=path.name)) from error


def overall(findings: Iterable[Finding]) -> Verdict:
    """One verdict of many: a failure weighs most, then doubt."""
    found = {finding.verdict for finding in findings}
    worst_first = (Verdict.FAILED, Verdict.NOT_DECIDABLE, Verdict.PASSED)
    return next(verdict for verdict in worst_first if verdict in found)
