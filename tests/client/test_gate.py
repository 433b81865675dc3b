import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import Tensor

from medsynth_client import audit
from medsynth_client.audit import AuditEvent, AuditLog
from medsynth_client.gate import Gate
from medsynth_client.ledger import Ledger, Receipt
from medsynth_client.policy import SitePolicy
from medsynth_client.spending import Spent
from medsynth_common.errors import (
    BadMessage,
    BadRecord,
    NotCharged,
    PolicyRefusal,
    StorageFailed,
    UnsafeRelease,
)

PLAN = "c" * 64
EXPECTED = {
    "head.weight": torch.empty((2, 3), device="meta"),
    "head.steps": torch.empty((), dtype=torch.int64, device="meta"),
}
WEIGHTS = {
    "head.weight": torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -0.0]]),
    "head.steps": torch.tensor(7),
}


def per_step(spent: Sequence[Spent], delta: float) -> float:
    return sum(one.steps for one in spent) / 100


def with_weight(weight: Tensor) -> dict[str, Tensor]:
    return WEIGHTS | {"head.weight": weight}


class Site:
    """A door with a ledger, an audit log and a good release to let out."""

    def __init__(self, folder: Path, **changes: object) -> None:
        fields: dict[str, object] = {
            "epsilon_cap": 8.0,
            "delta": 1e-5,
            "stages": ("segment", "synthesize"),
            "minimum_patients": 1,
            "maximum_bytes": 1000,
            "maximum_norm": 100.0,
        }
        policy = SitePolicy.model_validate(fields | changes)
        self.path = folder / "audit.jsonl"
        self.audit = AuditLog(self.path)
        self.ledger = Ledger(folder / "ledger.db", cap=8.0, delta=1e-5, epsilon=per_step)
        self.gate = Gate(policy, self.audit, self.ledger)

    def reserve(self, round: int = 1, project: str = "run-1", plan: str = PLAN) -> Receipt:
        mechanism = SimpleNamespace(
            name="head", clip=1.0, noise_multiplier=2.0, sampling_rate=0.1, steps=10
        )
        return self.ledger.reserve(
            project=project, stage="segment", round=round, plan_digest=plan, mechanism=mechanism
        )

    def release(
        self,
        tensors: dict[str, Tensor] = WEIGHTS,
        *,
        content: bytes | None = None,
        receipts: Sequence[Receipt] | None = None,
        stage: str = "segment",
    ) -> bytes:
        return self.gate.release(
            safetensors.torch.save(tensors) if content is None else content,
            tensors,
            expected=EXPECTED,
            receipts=[self.reserve()] if receipts is None else receipts,
            plan_digest=PLAN,
            stage=stage,
            round=1,
            project="run-1",
        ).content

    def last_event(self) -> AuditEvent:
        return self.audit.read()[-1]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_good_release_passes_and_leaves_one_line(site: Site) -> None:
    receipts = [site.reserve(), site.reserve()]
    released = site.release(receipts=receipts)
    assert released == safetensors.torch.save(WEIGHTS)
    [event] = site.audit.read()
    assert event.outcome == "released"
    assert event.bytes == len(released)
    assert event.sha256 == hashlib.sha256(released).hexdigest()
    assert (event.project, event.stage, event.round) == ("run-1", "segment", 1)
    assert event.plan_digest == PLAN
    assert event.epsilon == pytest.approx(0.2)  # after the second
    assert event.receipts == tuple(receipt.entry_digest for receipt in receipts)
    assert audit.verify(site.path) == []


MISSHAPEN = {
    "a name is missing": {"head.weight": WEIGHTS["head.weight"]},
    "a name too many": WEIGHTS | {"patient": torch.zeros(3)},
    "nothing": {},
    "another shape": with_weight(torch.zeros(3, 2)),
    "another rank": with_weight(torch.zeros(6)),
    "another type": with_weight(torch.zeros((2, 3), dtype=torch.float64)),
    "NaN": with_weight(torch.full((2, 3), math.nan)),
    "infinite": with_weight(torch.tensor([[0.0, 0.0, 0.0], [0.0, -math.inf, 0.0]])),
}


@pytest.mark.parametrize("what", MISSHAPEN)
def test_other_tensors_than_asked_for_stay(site: Site, what: str) -> None:
    with pytest.raises(UnsafeRelease):
        site.release(MISSHAPEN[what])
    assert site.last_event().outcome == "refused"
    assert site.last_event().error == "UnsafeRelease"


def test_bytes_that_hide_more_than_the_tensors_stay(site: Site) -> None:
    plain = safetensors.torch.save(WEIGHTS)
    hidden = safetensors.torch.save(WEIGHTS, metadata={"patient": "anna"})
    other = safetensors.torch.save(with_weight(torch.ones(2, 3)))
    for content in (hidden, other, plain + b"anna", b"", b"anna"):
        with pytest.raises(UnsafeRelease, match="encoding"):
            site.release(content=content)
    assert {event.outcome for event in site.audit.read()} == {"refused"}
    assert b"anna" not in site.path.read_bytes()


def test_tensors_that_share_memory_or_are_views_pass(site: Site) -> None:
    transposed = torch.arange(6.0).reshape(3, 2).T
    content = safetensors.torch.save(with_weight(transposed.contiguous()))
    assert site.release(with_weight(transposed), content=content) == content


def test_the_site_s_limits_hold_at_the_door_too(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with pytest.raises(PolicyRefusal, match="maximum_norm: got norm 245, wanted at most 100"):
        site.release(with_weight(torch.full((2, 3), 100.0)))
    with pytest.raises(PolicyRefusal, match="stages: got adversarial"):
        site.release(stage="adversarial")
    with pytest.raises(PolicyRefusal, match="maximum_bytes: got 1001 bytes"):
        site.release(content=bytes(1001))
    with pytest.raises(PolicyRefusal, match="synthetic_may_leave"):
        site.release(stage="synthesize", receipts=[])
    assert [event.error for event in site.audit.read()] == ["PolicyRefusal"] * 4


def test_nothing_leaves_that_was_not_charged(site: Site, tmp_path: Path) -> None:
    good = site.reserve()
    elsewhere = Site(tmp_path / "elsewhere").reserve()
    forged = good.model_copy(update={"entry": good.entry + 1})
    for receipts in (
        [],
        [site.reserve(plan="e" * 64)],
        [site.reserve(round=2)],
        [site.reserve(project="run-2")],
        [elsewhere],
        [forged],
        [good, forged],
    ):
        with pytest.raises(NotCharged):
            site.release(receipts=receipts)
    assert {event.error for event in site.audit.read()} == {"NotCharged"}
    site.release(receipts=[good])


def test_a_receipt_opens_the_door_once_across_restarts(tmp_path: Path) -> None:
    receipt = Site(tmp_path).reserve()
    Site(tmp_path).release(receipts=[receipt])
    with pytest.raises(NotCharged, match="before"):
        Site(tmp_path).release(receipts=[receipt])
    again = Site(tmp_path).reserve()
    with pytest.raises(NotCharged, match="twice"):
        Site(tmp_path).release(receipts=[again, again])


def test_free_releases_pass_only_where_the_policy_says_so(tmp_path: Path) -> None:
    synthetic = Site(tmp_path / "a", synthetic_may_leave=True)
    assert synthetic.release(stage="synthesize", receipts=[])
    simulated = Site(tmp_path / "b", allow_unprotected=True)
    assert simulated.release(receipts=[])
    assert simulated.last_event().epsilon is None


def test_without_an_audit_line_nothing_leaves(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, line: str) -> None:
        raise OSError(28, "No space left on device")

    receipt = site.reserve()
    with monkeypatch.context() as patched:
        patched.setattr(audit, "append_line", full)
        with pytest.raises(StorageFailed):
            site.release(receipts=[receipt])
    assert site.audit.read() == []

    site.release(receipts=[receipt])
    site.path.write_bytes(b"")
    with pytest.raises(BadRecord):
        site.release()


def test_a_plan_refused_early_is_written_down_by_name_alone(site: Site) -> None:
    site.gate.refuse(
        BadMessage("patient anna"), plan_digest=PLAN, stage="x" * 1000, round=-3, project="run-1"
    )
    event = site.last_event()
    assert (event.outcome, event.error, event.bytes) == ("refused", "BadMessage", 0)
    assert event.stage == "x" * 200
    assert b"anna" not in site.path.read_bytes()
