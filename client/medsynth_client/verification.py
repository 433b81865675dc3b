"""`medsynth-client privacy verify`: do a site's records hold, each by itself and together?

Epsilon is worked out twice: by the project's accountant from the ledger's own sums, and by
Google's dp-accounting from the stored rows, patient by patient, past the code that runs.
"""

import gc
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medsynth_client.audit import AuditEvent
from medsynth_client.policy import SYNTHESIZE
from medsynth_client.site_record import SiteRecord, read_site
from medsynth_client.spending import EVERYONE, epsilon_of
from medsynth_common.errors import BadRecord, Problem
from medsynth_common.privacy.pld import TOLERANCE, available, pld_epsilon

#: (noise multiplier, sampling rate) -> steps: all that one patient took part in.
_History = Counter[tuple[float, float]]
_NOT_INSTALLED: Final = (
    "epsilon was worked out by one accountant only: "
    "pip install 'medsynth-federated[verify]' brings the second"
)


@dataclass(frozen=True, kw_only=True)
class SecondOpinion:
    """Epsilon of the patient charged most, by two accountants.

    Attributes:
        prv: by the project's own (Opacus' PRV); infinite when something had no noise.
        pld: by Google's dp-accounting; None where it is not installed.
        delta: the failure probability of both.

    """

    prv: float
    pld: float | None
    delta: float

    @property
    def difference(self) -> float | None:
        """Ours less theirs; None without theirs."""
        if self.pld is None:
            return None
        return 0.0 if self.prv == self.pld else self.prv - self.pld

    def __str__(self) -> str:
        said = f"epsilon {self.prv:.4f} by the site's accountant (PRV)"
        if self.pld is not None:
            verdict = "they agree" if self.agree else "they differ"
            said += f", {self.pld:.4f} by dp-accounting (PLD): {verdict}, {self.difference:+.4f}"
        return f"{said}; delta {self.delta:g}, per patient, for the patient charged most"

    @property
    def agree(self) -> bool:
        """Whether both are there and within `TOLERANCE` of each other."""
        return self.difference is not None and abs(self.difference) <= TOLERANCE


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was checked, and what was found.

    Attributes:
        rows: ledger rows whose chain, order and content hold.
        lines: audit lines of which the same is true.
        opinion: epsilon twice; None when the records do not even read.
        problems: what is wrong; the records are sound when there is none.
        notes: what is not wrong and yet should be known.

    """

    rows: int
    lines: int
    opinion: SecondOpinion | None
    problems: Sequence[Problem]
    notes: Sequence[str]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def summary(self) -> str:
        """Say in a few lines what was found sound."""
        lines = [
            f"the record is sound: {self.rows} ledger rows and {self.lines} audit lines, "
            "each by itself and against each other"
        ]
        if self.opinion is not None:
            lines.append(str(self.opinion))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def facts(self) -> dict[str, Any]:
        """The same as JSON; an epsilon without bound is null."""
        opinion = self.opinion
        return {
            "sound": self.sound,
            "ledger_rows": self.rows,
            "audit_lines": self.lines,
            "epsilon": None
            if opinion is None
            else {
                "unit": "patient",
                "delta": opinion.delta,
                "prv": _finite(opinion.prv),
                "pld": _finite(opinion.pld),
                "difference": opinion.difference,
                "agree": opinion.agree,
            },
            "problems": [str(problem) for problem in self.problems],
            "notes": list(self.notes),
        }


def verify_site(folder: Path) -> Verification:
    """Check a site's ledger and audit log. Raises BadConfig where there is no site."""
    try:
        with _collector_resting():
            return verify_record(read_site(folder))
    except BadRecord as error:
        return Verification(rows=0, lines=0, opinion=None, problems=error.problems, notes=())


@contextmanager
def _collector_resting() -> Iterator[None]:
    """Keep Python's collector from walking all that was imported while ten thousands of rows come.

    Each of its walks takes a quarter of a second, and finds nothing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def verify_record(record: SiteRecord) -> Verification:
    """Check records that were read: their chains hold, what they say is still to be compared."""
    opinion = second_opinion(record)
    return Verification(
        rows=record.ledger.last.count,
        lines=len(record.events),
        opinion=opinion,
        problems=[
            *record.problems,
            *record.ledger.arithmetic_problems(epsilon_of),
            *_unpaid(record),
            *_never_audited(record),
            *_too_little(opinion),
        ],
        notes=[*_notes(record), *_notes_on(opinion)],
    )


def second_opinion(record: SiteRecord) -> SecondOpinion:
    """Work out epsilon of the patient charged most of all, twice and at the same time."""
    delta = record.file.policy.delta
    with ThreadPoolExecutor(max_workers=1) as beside:
        theirs = beside.submit(_dp_accounting, record) if available() else None
        ours = record.ledger.spending.worst(epsilon_of, delta, EVERYONE)
        return SecondOpinion(prv=ours, pld=None if theirs is None else theirs.result(), delta=delta)


def _dp_accounting(record: SiteRecord) -> float:
    delta = record.file.policy.delta
    return max(_pld(history, delta) for history in patient_histories(record.rows))


def patient_histories(rows: Iterable[tuple[str, str]]) -> list[_History]:
    """Add up stored rows per patient; only histories that no other includes are given."""
    charged: defaultdict[str, _History] = defaultdict(Counter)
    belonged: defaultdict[str, set[str]] = defaultdict(set)
    for kind, text in rows:
        body = json.loads(text)
        if kind == "dataset":
            for patient in body["patients"]:
                belonged[patient].add(body["dataset"])
        elif kind == "reservation":
            charge = body["charge"]
            step = charge["noise_multiplier"], charge["sampling_rate"]
            charged[body["dataset"]][step] += charge["steps"]
    memberships = {frozenset(sets & charged.keys()) for sets in belonged.values()}
    totals = [
        sum((charged[one] for one in sets), start=charged[EVERYONE].copy())
        for sets in memberships | {frozenset[str]()}
    ]
    distinct = [one for number, one in enumerate(totals) if one not in totals[:number]]
    return [one for one in distinct if not any(one < other for other in distinct)]


def _pld(history: Mapping[tuple[float, float], int], delta: float) -> float:
    if any(noise_multiplier == 0 for noise_multiplier, _ in history):
        return math.inf
    return pld_epsilon(history, delta)


def _too_little(opinion: SecondOpinion) -> Iterator[Problem]:
    if opinion.difference is not None and opinion.difference < -TOLERANCE:
        yield Problem(
            name="ledger: epsilon",
            value=f"{opinion.prv:.3f} by PRV",
            wanted=f"at least {opinion.pld:.3f}, dp-accounting's",
        )


def _unpaid(record: SiteRecord) -> Iterator[Problem]:
    """What left without a reservation of its own."""
    reserved = {digest: body.plan for digest, body in record.ledger.reservations.values()}
    used: Counter[str] = Counter()
    for number, event in enumerate(record.events, start=1):
        if event.outcome != "released":
            continue
        name = f"audit.jsonl line {number}"
        free = event.stage == SYNTHESIZE or record.file.policy.allow_unprotected
        if not event.receipts and not free:
            yield Problem(name=name, value="a release without a receipt", wanted="a charge for it")
        for receipt in event.receipts:
            used[receipt] += 1
            if reserved.get(receipt) != _plan(event):
                value, wanted = f"receipt {receipt[:12]}", "a reservation in the ledger for it"
                yield Problem(name=name, value=value, wanted=wanted)
            if used[receipt] > 1:
                value = f"receipt {receipt[:12]} once more"
                yield Problem(name=name, value=value, wanted="each to pay for one release")


def _never_audited(record: SiteRecord) -> Iterator[Problem]:
    """What the ledger calls released, and the audit log does not."""
    audited = _released(record)
    for entry, release in record.ledger.confirmations.items():
        digest, _ = record.ledger.reservations[entry]
        if audited.get(digest) != release:
            yield Problem(
                name=f"ledger row {entry}",
                value=f"confirmed with SHA-256 {release[:12]}",
                wanted="a release of these bytes in the audit log",
            )


def _notes(record: SiteRecord) -> Iterator[str]:
    audited = _released(record)
    waiting = {
        digest: body.charge.steps
        for entry, (digest, body) in record.ledger.reservations.items()
        if entry not in record.ledger.confirmations
    }
    kept = [steps for digest, steps in waiting.items() if digest not in audited]
    if kept:
        yield (
            f"{len(kept)} reservations ({sum(kept)} steps) are counted though nothing left on "
            "them: a round that failed, was interrupted or still runs; spent is at most this much"
        )
    if left := len(waiting) - len(kept):
        yield f"{left} reservations were released and, after a crash, not confirmed; they count"
    if record.torn:
        yield "a crash left the audit log's last line half written; nothing left then"


def _notes_on(opinion: SecondOpinion) -> Iterator[str]:
    if opinion.difference is None:
        yield _NOT_INSTALLED
    elif opinion.difference > TOLERANCE:
        yield f"the site counts {opinion.difference:.3f} more than the tightest known bound"


def _released(record: SiteRecord) -> dict[str, str]:
    """SHA-256 of what left, by the receipt that paid for it."""
    return {
        receipt: event.sha256
        for event in record.events
        if event.outcome == "released"
        for receipt in event.receipts
    }


def _plan(event: AuditEvent) -> tuple[str, str, int, str]:
    return event.project, event.stage, event.round, event.plan_digest


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value
