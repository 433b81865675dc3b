"""The one door out of the hospital.

Whatever leaves, leaves as the bytes this door gives back: allowed by the site's policy, charged
in the ledger, exactly the tensors the plan asks for, finite, of sane size, and written into the
audit log first. A refusal is written there too, and nothing leaves.
"""

import hashlib
import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from medsynth_client.audit import AuditEvent, AuditLog
from medsynth_client.ledger import Ledger, Receipt
from medsynth_client.policy import SYNTHESIZE, SitePolicy
from medsynth_common.errors import (
    MedsynthError,
    NotCharged,
    PolicyRefusal,
    Problem,
    UnsafeRelease,
)
from medsynth_common.tensors import all_finite, packs_to

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What someone wants to let out, and on what grounds."""

    content: bytes
    tensors: Mapping[str, Tensor]
    meant: Mapping[str, Tensor]
    expected: Mapping[str, Tensor]
    receipts: Sequence[Receipt]
    plan_digest: str
    stage: str
    round: int
    project: str

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Release:
    """What was let out.

    Attributes:
        content: the bytes.
        sha256: theirs, as the audit log has it.

    """

    content: bytes
    sha256: str


class Gate:
    """One site's door; `ledger` is where receipts are looked up, `audit` where each line goes."""

    def __init__(self, policy: SitePolicy, audit: AuditLog, ledger: Ledger) -> None:
        self._policy = policy
        self._audit = audit
        self._ledger = ledger
        self._one_at_a_time = threading.Lock()  # else two could use one receipt

    def release(
        self,
        update_bytes: bytes,
        tensors: Mapping[str, Tensor],
        *,
        expected: Mapping[str, Tensor],
        receipts: Sequence[Receipt],
        plan_digest: str,
        stage: str,
        round: int,
        project: str,
        meant: Mapping[str, Tensor] | None = None,
    ) -> Release:
        """Give `update_bytes` back, with their SHA-256, once they may leave.

        Args:
            update_bytes: the safetensors encoding of `tensors`, and nothing besides.
            tensors: what is in it.
            expected: names, shapes and types the plan asks for; tensors on "meta" do.
            receipts: one per mechanism of the plan; each opens the door once.
            plan_digest: SHA-256 of the plan that is answered.
            stage: the plan's stage.
            round: the plan's round.
            project: the plan's run.
            meant: the weights that rounded tensors stand for; they are measured in their place.

        Raises:
            PolicyRefusal: stage, size or norm is not allowed here.
            NotCharged: a receipt is missing, another plan's, unknown to the ledger, or used.
            UnsafeRelease: other tensors or bytes than asked for, or not finite.

        And what `AuditLog.append` and `Ledger.holds` raise. After any of them nothing may leave.

        """
        asked = _Asked(
            content=update_bytes,
            tensors=tensors,
            meant=tensors if meant is None else meant,
            expected=expected,
            receipts=receipts,
            plan_digest=plan_digest,
            stage=str(stage),
            round=round,
            project=project,
        )
        with self._one_at_a_time:
            try:
                self._check(asked)
            except MedsynthError as error:
                self._audit.append(_event(asked, error=type(error).__name__))
                raise
            self._audit.append(_event(asked))
        return Release(content=update_bytes, sha256=asked.sha256)

    @contextmanager
    def refusals(self, *, plan_digest: str, stage: str, round: int, project: str) -> Iterator[None]:
        """Write down whatever ends a plan before it has anything to release, and let it go on.

        Where even that cannot be written, the first error is the one to tell.
        """
        try:
            yield
        except Exception as error:
            self._write_down(error, plan_digest, stage, round, project)
            raise

    def _write_down(
        self, error: Exception, plan_digest: str, stage: str, round: int, project: str
    ) -> None:
        try:
            self.refuse(error, plan_digest=plan_digest, stage=stage, round=round, project=project)
        except MedsynthError as another:
            names = type(error).__name__, type(another).__name__
            log.error("not in the audit log: %s, for %s", *names)

    def refuse(
        self, error: Exception, *, plan_digest: str, stage: str, round: int, project: str
    ) -> None:
        """Write down, by its name alone, what ended a plan: its text may hold a patient's."""
        self._audit.append(
            AuditEvent(
                project=project[:200],
                stage=str(stage)[:200],
                round=round,
                outcome="refused",
                error=type(error).__name__[:200],
                bytes=0,
                sha256="",
                plan_digest=plan_digest[:200],
            )
        )

    def _check(self, asked: _Asked) -> None:
        self._check_policy(asked)
        self._check_charged(asked)
        _check_form(asked)
        _check_encoding(asked)
        self._check_norm(asked)

    def _check_policy(self, asked: _Asked) -> None:
        policy = self._policy
        if asked.stage not in policy.stages:
            allowed = ", ".join(policy.stages)
            raise _refusal("stages", asked.stage[:64], f"one of: {allowed}")
        if asked.stage == SYNTHESIZE and not policy.synthetic_may_leave:
            raise _refusal("synthetic_may_leave", "synthetic images", "none to leave")
        if len(asked.content) > policy.maximum_bytes:
            wanted = f"at most {policy.maximum_bytes}"
            raise _refusal("maximum_bytes", f"{len(asked.content)} bytes", wanted)

    def _check_charged(self, asked: _Asked) -> None:
        free = asked.stage == SYNTHESIZE or self._policy.allow_unprotected
        if not asked.receipts and not free:
            raise NotCharged("no receipt: nothing leaves that was not charged")
        entries = [receipt.entry for receipt in asked.receipts]
        if len(set(entries)) != len(entries):
            raise NotCharged("one receipt stands twice: each pays for one mechanism")
        for receipt in asked.receipts:
            self._check_receipt(receipt, asked)

    def _check_receipt(self, receipt: Receipt, asked: _Asked) -> None:
        charged = receipt.plan_digest, receipt.stage, receipt.round, receipt.project
        if charged != (asked.plan_digest, asked.stage, asked.round, asked.project):
            raise NotCharged(f"the receipt for {receipt.mechanism} is another plan's")
        if not self._ledger.holds(receipt):
            raise NotCharged(f"the ledger holds no row for the receipt of {receipt.mechanism}")
        if self._audit.has_released(receipt.entry_digest):
            raise NotCharged(f"the receipt for {receipt.mechanism} has let a release out before")

    def _check_norm(self, asked: _Asked) -> None:
        flat = (tensor.detach().cpu().double().flatten() for tensor in asked.meant.values())
        norm = math.sqrt(sum(float(numbers.dot(numbers)) for numbers in flat))
        if not norm <= self._policy.maximum_norm:
            wanted = f"at most {self._policy.maximum_norm:g}"
            raise _refusal("maximum_norm", f"norm {norm:.4g}", wanted)


def _check_form(asked: _Asked) -> None:
    """Raise UnsafeRelease unless names, shapes and types are as asked, and all is finite."""
    problems = [
        Problem(
            name=name[:80], value=_found(asked.tensors, name), wanted=_found(asked.expected, name)
        )
        for name in sorted(asked.tensors.keys() | asked.expected.keys())
        if _found(asked.tensors, name) != _found(asked.expected, name)
    ]
    problems += [
        Problem(name=name[:80], value="numbers that are not finite", wanted="finite ones")
        for name, tensor in asked.tensors.items()
        if not all_finite(tensor)
    ]
    if problems:
        raise UnsafeRelease("\n".join(map(str, problems)))


def _check_encoding(asked: _Asked) -> None:
    """Raise UnsafeRelease unless the bytes are the checked tensors, with nothing hidden."""
    if not packs_to(asked.tensors, asked.content):
        raise UnsafeRelease("the bytes are not the plain safetensors encoding of the tensors")


def _found(tensors: Mapping[str, Tensor], name: str) -> str:
    if name not in tensors:
        return "no tensor"
    return f"{tensors[name].dtype} {tuple(tensors[name].shape)}"


def _refusal(key: str, value: str, wanted: str) -> PolicyRefusal:
    return PolicyRefusal(str(Problem(name=key, value=value, wanted=wanted)))


def _event(asked: _Asked, *, error: str = "") -> AuditEvent:
    spent = [receipt.epsilon for receipt in asked.receipts]
    bounded = [epsilon for epsilon in spent if epsilon is not None]
    return AuditEvent(
        project=asked.project[:200],
        stage=asked.stage[:200],
        round=asked.round,
        outcome="refused" if error else "released",
        error=error,
        bytes=len(asked.content),
        sha256=asked.sha256,
        plan_digest=asked.plan_digest[:200],
        epsilon=max(bounded) if spent and len(bounded) == len(spent) else None,
        receipts=tuple(receipt.entry_digest for receipt in asked.receipts),
    )
