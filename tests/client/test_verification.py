"""A site's records against each other, and epsilon by two accountants."""

import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from benchmarks.verify import DELTA, Kind, write_site

from medsynth_client import verification
from medsynth_client.audit import AuditEvent, AuditLog
from medsynth_client.ledger import Ledger
from medsynth_client.site_record import read_site
from medsynth_client.spending import EVERYONE, Spending, epsilon_of
from medsynth_client.verification import patient_histories, second_opinion, verify_site
from medsynth_common.errors import BadConfig
from medsynth_common.privacy.accountant import Release, epsilon
from medsynth_common.privacy.pld import TOLERANCE, pld_epsilon

PATIENTS = 3
SHA = "a" * 64
PLAN = {"project": "run-9", "stage": "segment", "round": 1, "plan_digest": "b" * 64}

#: Varied on purpose: one release and many, everyone and few sampled, little noise and much, mixed.
HISTORIES: tuple[dict[tuple[float, float], int], ...] = (
    {(1.0, 1.0): 1},
    {(4.0, 1.0): 1},
    {(50.0, 1.0): 1000},
    {(5.0, 1.0): 3, (8.0, 1.0): 10},
    {(200.0, 1.0): 10_000},
    {(1000.0, 1.0): 1000},
    {(1.0, 0.01): 1000},
    {(0.8, 0.02): 200},
    {(1.2, 0.05): 500},
    {(2.0, 0.1): 300},
    {(4.0, 0.25): 400},
    {(10.0, 0.5): 600},
    {(20.0, 0.9): 300},
    {(1.0, 0.5): 3},
    {(50.0, 0.2): 20_000},
    {(100.0, 0.05): 100_000},
    {(500.0, 0.5): 1000},
    {(1.0, 0.001): 10_000},
    {(3.0, 1e-4): 100_000},
    {(30.0, 0.3): 5000},
    {(5.0, 1.0): 1, (2.0, 0.1): 300},
    {(5.0, 1.0): 2, (1.0, 0.01): 500, (3.0, 0.2): 200},
    {(5.0, 1.0): 2, (6.0, 1.0): 2, (1.5, 0.03): 700, (2.5, 0.15): 100, (8.0, 0.4): 50},
    {(3.0 + 0.3 * k, 0.05 + 0.01 * k): 40 for k in range(12)},
)


@pytest.mark.parametrize("number", range(len(HISTORIES)))
def test_the_two_accountants_agree(number: int) -> None:
    history = HISTORIES[number]
    releases = [
        Release(noise_multiplier=noise, sampling_rate=rate, steps=steps)
        for (noise, rate), steps in history.items()
    ]
    assert abs(epsilon(releases, DELTA) - pld_epsilon(history, DELTA)) <= TOLERANCE


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verification") / "site-a"
    kinds = (
        Kind(noise_multiplier=4.0, sampling_rate=1.0, steps=1),
        Kind(noise_multiplier=2.0, sampling_rate=0.1, steps=20),
    )
    write_site(folder, kinds, releases=4, patients=PATIENTS)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "site-a")


class Cheap:
    """A mechanism that costs little."""

    name, clip, noise_multiplier, sampling_rate, steps = "critic", 1.0, 50.0, 1.0, 7


def opened(folder: Path) -> Ledger:
    return Ledger(folder / "ledger.db", cap=8.0, delta=DELTA, epsilon=epsilon_of)


def released(folder: Path, *receipts: str, sha256: str = SHA, **changes: Any) -> None:
    event = AuditEvent(
        **{**PLAN, **changes}, outcome="released", bytes=1, sha256=sha256, receipts=receipts
    )
    AuditLog(folder / "audit.jsonl").append(event)


def reserved(folder: Path) -> str:
    ledger = opened(folder)
    ledger.register_dataset(read_site(folder).file.source.names())
    return ledger.reserve(**PLAN, mechanism=Cheap()).entry_digest  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def found(folder: Path) -> list[str]:
    return [str(problem) for problem in verify_site(folder).problems]


def test_a_sound_record_is_sound_and_is_left_as_it_was(folder: Path) -> None:
    before = contents(folder)
    checked = verify_site(folder)
    assert checked.sound
    assert (checked.rows, checked.lines, list(checked.notes)) == (10, 4, [])
    assert checked.opinion is not None
    assert checked.opinion.agree
    facts = checked.facts()["epsilon"]
    assert facts["prv"] - facts["pld"] == facts["difference"]
    assert contents(folder) == before


def test_a_release_that_the_ledger_never_charged_is_found(folder: Path) -> None:
    released(folder, "d" * 64)
    [problem] = found(folder)
    assert problem.startswith("audit.jsonl line 5: got receipt dddddddddddd, wanted a reservation")


def test_a_release_without_a_receipt_is_found(folder: Path) -> None:
    released(folder)
    assert "a release without a receipt" in found(folder)[0]


def test_a_receipt_of_another_plan_or_used_twice_is_found(folder: Path) -> None:
    receipt = reserved(folder)
    released(folder, receipt)
    assert found(folder) == []
    released(folder, receipt)
    assert "once more, wanted each to pay for one release" in found(folder)[0]
    released(folder, reserved(folder), round=2)
    assert len(found(folder)) == 2


def test_a_confirmation_of_what_the_audit_log_does_not_know_is_found(folder: Path) -> None:
    ledger = opened(folder)
    receipt = ledger.reserve(**PLAN, mechanism=Cheap())  # type: ignore[arg-type]
    ledger.confirm(receipt, release_sha256=SHA)
    [problem] = found(folder)
    assert problem.startswith(f"ledger row {receipt.entry}: got confirmed with SHA-256 aaaa")
    released(folder, receipt.entry_digest, sha256="e" * 64)  # other bytes
    assert found(folder) == [problem]


def test_what_is_counted_and_never_left_is_told(folder: Path) -> None:
    reserved(folder)
    released(folder, reserved(folder))
    with (folder / "audit.jsonl").open("a") as stream:
        stream.write('{"digest":"1')
    checked = verify_site(folder)
    assert checked.sound
    never, unconfirmed, torn = checked.notes
    assert never.startswith("1 reservations (7 steps) are counted though nothing left")
    assert unconfirmed.startswith("1 reservations were released and, after a crash, not confirmed")
    assert "half written" in torn


def remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no audit log": (
        lambda folder: remove(folder, "audit.jsonl*"),
        "ledger row 3: got confirmed",
    ),
    "no ledger": (lambda folder: (folder / "ledger.db").unlink(), "ledger.db: got no file"),
    "neither ledger nor head": (
        lambda folder: remove(folder, "ledger.db*"),
        "audit.jsonl line 1: got receipt",
    ),
    "no head": (lambda folder: (folder / "ledger.db.head").unlink(), "ledger.db: got 10 entries"),
    "no key": (lambda folder: (folder / "ledger.db.key").unlink(), "ledger.db.key: got no file"),
    "cut ledger": (
        lambda folder: (folder / "ledger.db").write_bytes(b"SQLite format 3\0"),
        "ledger.db: got ",
    ),
    "no SQLite": (lambda folder: (folder / "ledger.db").write_bytes(b"x" * 9999), "ledger.db: got"),
    "cut audit log": (
        lambda folder: (folder / "audit.jsonl").write_bytes(b""),
        "audit.jsonl: got ",
    ),
    "readable key": (lambda folder: (folder / "ledger.db.key").chmod(0o644), "ledger.db.key: got"),
    "no trigger": (
        lambda folder: execute(folder, "DROP TRIGGER no_delete"),
        "ledger: no_delete: got None",
    ),
}


def execute(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "ledger.db")) as connection, connection:
        connection.execute(statement)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_by_name(folder: Path, damage: str) -> None:
    harm, told = DAMAGES[damage]
    harm(folder)
    problems = found(folder)
    assert problems[0].startswith(told)


def test_where_there_is_no_site_nothing_is_verified(tmp_path: Path) -> None:
    with pytest.raises(BadConfig):
        verify_site(tmp_path)


def test_without_the_second_accountant_the_first_is_told_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "available", lambda: False)
    checked = verify_site(folder)
    assert checked.sound
    assert checked.facts()["epsilon"]["pld"] is None
    assert "medsynth-federated[verify]" in checked.summary()
    assert checked.opinion is not None
    assert not checked.opinion.agree


# The second opinion goes past the code that runs.


def two_cohorts(folder: Path) -> Path:
    """A second data set joins; and once everyone is charged, whoever they are."""
    ledger = opened(folder)
    ledger.register_dataset(["phantom-0", "newcomer"])
    for number in range(2):
        ledger.reserve(**{**PLAN, "round": number}, mechanism=Expensive())  # type: ignore[arg-type]
    opened(folder).reserve(**PLAN, mechanism=Expensive())  # type: ignore[arg-type]
    return folder


class Expensive(Cheap):
    """A mechanism that a forgotten one is noticed by."""

    noise_multiplier, steps = 6.0, 1


PLANTED: dict[str, Callable[[Spending, str, Any], None]] = {
    "everyone is forgotten": lambda self, dataset, charge: (
        self._steps[dataset].update({charge.kind: charge.steps}) if dataset != EVERYONE else None
    ),
    "steps are not added": lambda self, dataset, charge: self._steps.__setitem__(
        dataset, Counter({charge.kind: charge.steps})
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_in_the_sums_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, bug: str
) -> None:
    two_cohorts(folder)
    assert second_opinion(read_site(folder)).agree
    monkeypatch.setattr(
        Spending, "charge", lambda self, dataset, _, charge: PLANTED[bug](self, dataset, charge)
    )
    assert any("ledger: epsilon: got" in problem for problem in found(folder))


def test_histories_are_each_patient_s_own_sum(folder: Path) -> None:
    rows = read_site(two_cohorts(folder)).rows
    old = Counter({(4.0, 1.0): 2, (2.0, 0.1): 40, (6.0, 1.0): 1})
    assert patient_histories(rows) == [old + Counter({(6.0, 1.0): 2})]  # phantom-0 was in both
    assert patient_histories([]) == [Counter()]
