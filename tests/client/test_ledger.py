import math
import os
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from medsynth_client import hash_chain
from medsynth_client.ledger import Ledger, Receipt
from medsynth_client.ledger_record import Reservation, make_row
from medsynth_client.spending import Spent
from medsynth_common.errors import (
    BadConfig,
    BadData,
    BadMessage,
    BadRecord,
    BudgetExhausted,
    ClockWentBack,
    NotCharged,
    StorageFailed,
    TimedOut,
)

SHA = "c" * 64


class Gaussian(NamedTuple):
    name: str = "critic"
    clip: float = 1.0
    noise_multiplier: float = 2.0
    sampling_rate: float = 0.1
    steps: int = 10


def per_step(spent: Sequence[Spent], delta: float) -> float:
    """Stand in for the accountant: a hundredth of epsilon a step."""
    return sum(one.steps for one in spent) / 100


def opened(path: Path, **changes: object) -> Ledger:
    settings: dict[str, object] = {"cap": 8.0, "delta": 1e-5, "epsilon": per_step}
    return Ledger(path, **(settings | changes))  # type: ignore[arg-type]  # made up above


CRITIC = Gaussian()


def reserve(ledger: Ledger, mechanism: Gaussian = CRITIC, round: int = 1) -> Receipt:
    return ledger.reserve(
        project="run-1", stage="segment", round=round, plan_digest=SHA, mechanism=mechanism
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site" / "ledger.db"


@pytest.fixture(scope="module")
def three_releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledger")
    ledger = opened(folder / "ledger.db")
    ledger.register_dataset(["anna", "bert"])
    for round in range(3):
        ledger.confirm(reserve(ledger, round=round), release_sha256=SHA)
    return folder


@pytest.fixture
def filled(three_releases: Path, path: Path) -> Path:
    shutil.copytree(three_releases, path.parent)
    return path


def raw(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def test_what_is_reserved_is_spent_for_life(path: Path) -> None:
    ledger = opened(path)
    ledger.register_dataset(["anna", "bert"])
    assert ledger.spent() == 0
    receipt = reserve(ledger, Gaussian(steps=30))
    assert receipt.epsilon == pytest.approx(0.3)
    assert ledger.spent() == pytest.approx(0.3)  # though never confirmed
    reserve(ledger, Gaussian(name="segmenter", noise_multiplier=3.0))
    reserve(ledger, Gaussian(steps=30))

    again = opened(path)
    assert again.spent() == pytest.approx(0.7)
    assert [(line.name, line.steps, line.releases) for line in again.statement()] == [
        ("critic", 60, 2),
        ("segmenter", 10, 1),
    ]
    assert again.verify() == []


def test_past_the_cap_nothing_is_written(path: Path) -> None:
    ledger = opened(path, cap=0.25)
    ledger.register_dataset(["anna"])
    reserve(ledger)
    reserve(ledger)
    before = hash_chain.read_head(path)
    with pytest.raises(BudgetExhausted) as caught:
        reserve(ledger)
    for part in ("critic", "0.200 is spent", "0.100 more", "cap is 0.25", "delta 1e-05"):
        assert part in str(caught.value)
    assert hash_chain.read_head(path) == before
    reserve(ledger, Gaussian(steps=5))  # what still fits is still allowed


def test_at_the_cap_nothing_is_charged_any_more_not_even_what_costs_nothing(path: Path) -> None:
    ledger = opened(path, cap=0.1, epsilon=lambda spent, _: 0.1 if spent else 0.0)
    reserve(ledger)  # to the cap, and not past it
    with pytest.raises(BudgetExhausted, match=r"0\.100 is spent, this would cost 0\.000 more"):
        reserve(ledger, round=2)
    with pytest.raises(BudgetExhausted):
        ledger.require_room([CRITIC])
    assert ledger.spent() == 0.1


def test_an_accountant_that_is_unsure_refuses(path: Path) -> None:
    ledger = opened(path, epsilon=lambda spent, delta: math.nan)
    with pytest.raises(BudgetExhausted):
        reserve(ledger)


def test_unprotected_spends_without_bound(path: Path) -> None:
    free = Gaussian(noise_multiplier=0.0, clip=math.inf)
    with pytest.raises(BudgetExhausted):
        reserve(opened(path), free)
    ledger = opened(path, cap=math.inf)
    assert reserve(ledger, free).epsilon is None
    assert ledger.spent() == math.inf
    assert ledger.verify() == []
    with pytest.raises(BudgetExhausted):  # and a protected run afterwards finds it spent
        reserve(opened(path))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": -1},
        {"steps": 0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"clip": math.nan},
        {"clip": -1.0},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.1},
        {"name": ""},
        {"name": "x" * 101},
    ],
)
def test_what_is_no_mechanism_is_refused(path: Path, change: dict[str, float]) -> None:
    ledger = opened(path)
    with pytest.raises(BadMessage, match="mechanism: "):
        reserve(ledger, Gaussian()._replace(**change))  # type: ignore[arg-type]  # on purpose
    assert ledger.statement() == []


def test_what_is_no_plan_or_budget_is_refused(path: Path) -> None:
    with pytest.raises(BadMessage, match="round"):
        reserve(opened(path), round=-1)
    for changes in ({"cap": 0.0}, {"cap": math.nan}, {"delta": 0.0}, {"delta": 1.0}):
        with pytest.raises(BadConfig):
            opened(path, **changes)


# Several mechanisms of one plan


PAIR = (Gaussian(), Gaussian(name="paired", steps=20))


def reserve_pair(ledger: Ledger) -> list[Receipt]:
    return ledger.reserve_all(
        project="run-1", stage="adversarial", round=1, plan_digest=SHA, mechanisms=PAIR
    )


def test_all_mechanisms_of_a_plan_are_charged_together(path: Path) -> None:
    ledger = opened(path)
    ledger.register_dataset(["anna"])
    first, second = reserve_pair(ledger)
    assert (first.mechanism, second.mechanism) == ("critic", "paired")
    assert [first.epsilon, second.epsilon] == [pytest.approx(0.1), pytest.approx(0.3)]
    assert second.entry == first.entry + 1
    for receipt in (second, first):
        ledger.confirm(receipt, release_sha256=SHA)
    assert opened(path).spent() == pytest.approx(0.3)
    assert ledger.verify() == []


def test_when_the_second_is_refused_the_first_is_not_charged(path: Path) -> None:
    ledger = opened(path, cap=0.25)  # room for the first alone
    before = hash_chain.read_head(path)
    with pytest.raises(BudgetExhausted, match=r"critic, paired: epsilon 0\.000 is spent"):
        reserve_pair(ledger)
    with pytest.raises(BadMessage):
        ledger.reserve_all(
            project="run-1",
            stage="segment",
            round=1,
            plan_digest=SHA,
            mechanisms=(CRITIC, Gaussian(steps=0)),
        )
    assert (ledger.spent(), ledger.statement()) == (0, [])
    assert hash_chain.read_head(path) == before


def test_a_crash_before_the_head_of_two_rows_is_no_tampering(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened(path)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(hash_chain, "write_head", crash)
        with pytest.raises(KeyboardInterrupt):
            reserve_pair(ledger)
    assert hash_chain.read_head(path).count == 1  # two rows behind
    assert ledger.verify() == []
    again = opened(path)
    assert again.spent() == pytest.approx(0.3)
    assert hash_chain.read_head(path).count == 3


def test_a_head_two_rows_behind_two_transactions_is_tampering(filled: Path) -> None:
    head = hash_chain.head_path(filled)
    old = head.read_bytes()
    ledger = opened(filled)
    reserve(ledger)
    reserve(ledger)
    head.write_bytes(old)
    with pytest.raises(BadRecord):
        opened(filled)


def test_a_row_that_only_says_it_was_one_of_several_is_found(path: Path) -> None:
    reserve(opened(path))
    with closing(raw(path)) as connection:
        body = connection.execute("SELECT body FROM entries WHERE number = 2").fetchone()[0]
        lonely = Reservation.model_validate_json(body).model_copy(
            update={"preceding": 1, "round": 2}
        )
        row = make_row(hash_chain.read_head(path), lonely, hash_chain.utc_now())
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)
    with pytest.raises(BadRecord, match="ledger row 3: got a reservation by itself"):
        opened(path)


# Patients


def test_each_patient_has_a_sum_of_their_own(path: Path) -> None:
    ledger = opened(path, cap=0.25)
    ledger.register_dataset(["anna", "bert"])
    reserve(ledger)
    reserve(ledger)
    ledger.register_dataset(["bert", "carl"])  # bert was in both
    assert ledger.spent() == pytest.approx(0.2)
    with pytest.raises(BudgetExhausted):
        reserve(ledger)
    ledger.register_dataset(["carl", "dora"])  # both are new
    assert ledger.spent() == 0
    reserve(ledger)
    ledger.register_dataset(["anna", "carl"])
    assert ledger.spent() == pytest.approx(0.2)  # anna's .2, not carl's .1, nor their sum
    ledger.register_dataset(["carl", "dora"])
    reserve(ledger)
    ledger.register_dataset(["emil"])
    assert ledger.spent() == 0
    assert opened(path).spent() == pytest.approx(0.2)  # of all patients ever
    assert ledger.verify() == []


def test_random_memberships_agree_with_a_sum_per_patient(path: Path) -> None:
    rng = np.random.default_rng(5)
    patients = [f"patient-{number}" for number in range(8)]
    ledger, sums = opened(path, cap=math.inf), dict.fromkeys(patients, 0)
    for _ in range(12):
        members = [patient for patient in patients if rng.random() < 0.4] or patients[:1]
        ledger.register_dataset(members)
        assert ledger.spent() == pytest.approx(max(sums[one] for one in members) / 100)
        steps = int(rng.integers(1, 9))
        reserve(ledger, Gaussian(steps=steps))
        for one in members:
            sums[one] += steps
    assert opened(path).spent() == pytest.approx(max(sums.values()) / 100)


def test_without_a_data_set_everyone_is_charged(path: Path) -> None:
    reserve(opened(path))
    ledger = opened(path)
    ledger.register_dataset(["anna"])
    assert ledger.spent() == pytest.approx(0.1)  # though she came later


def test_the_same_patients_are_the_same_data_set(path: Path) -> None:
    ledger = opened(path)
    first = ledger.register_dataset(["anna", "bert"])
    count = hash_chain.read_head(path).count
    assert ledger.register_dataset(["bert", "anna"]) == first
    assert opened(path).register_dataset(["anna", "bert"]) == first
    assert hash_chain.read_head(path).count == count
    assert ledger.register_dataset(["anna"]) != first


def test_no_patient_twice_and_not_none(path: Path) -> None:
    ledger = opened(path)
    with pytest.raises(BadData, match="1 patients twice"):
        ledger.register_dataset(["anna", "bert", "anna"])
    with pytest.raises(BadData, match="no patients"):
        ledger.register_dataset([])


def test_no_patient_name_is_on_disk_and_the_key_is_the_owners(filled: Path) -> None:
    for file in filled.parent.iterdir():
        assert b"anna" not in file.read_bytes()
    key = filled.with_name("ledger.db.key")
    assert key.stat().st_mode & 0o777 == 0o600
    ledger = opened(filled)
    key.chmod(0o644)
    assert "chmod 600" in str(ledger.verify()[0])


def test_another_key_is_noticed_for_all_patients_would_be_new(filled: Path) -> None:
    key = filled.with_name("ledger.db.key")
    key.write_bytes(bytes(32))
    with pytest.raises(BadRecord, match="another key"):
        opened(filled)
    key.unlink()
    with pytest.raises(BadRecord, match="no file"):
        opened(filled)
    assert not key.exists()


# Confirming


def test_a_receipt_is_confirmed_once_and_only_its_own(filled: Path, tmp_path: Path) -> None:
    ledger = opened(filled)
    receipt = reserve(ledger)
    assert ledger.holds(receipt)
    ledger.confirm(receipt, release_sha256=SHA)
    with pytest.raises(NotCharged, match="before"):
        ledger.confirm(receipt, release_sha256=SHA)
    other = opened(tmp_path / "other.db")
    assert not other.holds(receipt)
    with pytest.raises(NotCharged):
        other.confirm(receipt, release_sha256=SHA)
    assert ledger.verify() == []


# Tampering and damage


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = '{}' WHERE number = 3",
        "DELETE FROM entries WHERE number = 3",
        "DELETE FROM entries",
        "INSERT OR REPLACE INTO entries SELECT * FROM entries WHERE number = 3",
        "INSERT INTO entries SELECT 99, kind, at, body, digest FROM entries WHERE number = 3",
    ],
)
def test_rows_can_only_be_added_in_order(filled: Path, statement: str) -> None:
    connection = raw(filled)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()
    assert opened(filled).verify() == []


TAMPERINGS = {
    "cheaper": "UPDATE entries SET body = replace(body, '\"steps\":10', '\"steps\":1')",
    "older": "UPDATE entries SET at = '2020-01-01T00:00:00+00:00' WHERE number = 4",
    "removed": "DELETE FROM entries WHERE number = 4",
    "renumbered": "DELETE FROM entries WHERE number = 4;"
    "UPDATE entries SET number = number - 1 WHERE number > 4",
    "swapped": "UPDATE entries SET number = -number WHERE number IN (3, 5);"
    "UPDATE entries SET number = 8 + number WHERE number < 0",
    "cut": "DELETE FROM entries WHERE number > 6",
    "cut to the first": "DELETE FROM entries WHERE number > 1",
    "emptied": "DELETE FROM entries",
    "added": "INSERT INTO entries SELECT 9, kind, at, body, digest FROM entries WHERE number = 7",
    "no text": "UPDATE entries SET body = x'ff00' WHERE number = 5",
    "dropped": "DROP TABLE entries",
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_without_the_triggers_is_found(filled: Path, tampering: str) -> None:
    ledger = opened(filled)
    connection = raw(filled)
    for trigger in ("no_update", "no_delete", "in_order"):
        connection.execute(f"DROP TRIGGER {trigger}")
    connection.executescript(TAMPERINGS[tampering])
    connection.close()
    assert ledger.verify()
    with pytest.raises(BadRecord):
        opened(filled)


def test_missing_triggers_are_found(filled: Path) -> None:
    connection = raw(filled)
    connection.execute("DROP TRIGGER no_delete")
    connection.close()
    problems = opened(filled).verify()
    assert [problem.name for problem in problems] == ["ledger: no_delete"]


def test_an_epsilon_that_the_record_does_not_add_up_to_is_found(filled: Path) -> None:
    problems = opened(filled, epsilon=lambda spent, delta: 2 * per_step(spent, delta)).verify()
    assert [str(problem.value) for problem in problems] == ["epsilon 0.300"]


def test_a_removed_or_broken_head_is_found(filled: Path) -> None:
    head = hash_chain.head_path(filled)
    head.unlink()
    with pytest.raises(BadRecord):
        opened(filled)
    head.write_text("nonsense")
    with pytest.raises(BadRecord):
        opened(filled)


@pytest.mark.parametrize("size", [0, 10, 100, 2000, 5000])
def test_a_truncated_file_is_told(filled: Path, size: int) -> None:
    os.truncate(filled, size)
    with pytest.raises(BadRecord):
        opened(filled)


def test_a_file_of_garbage_or_a_removed_one_is_told(filled: Path) -> None:
    ledger = opened(filled)
    filled.write_bytes(b"garbage" * 2000)
    with pytest.raises(BadRecord):
        opened(filled)
    assert ledger.verify()
    filled.unlink()
    with pytest.raises(BadRecord):
        opened(filled)
    with pytest.raises(BadRecord):
        reserve(ledger)


def test_a_clock_that_went_back_is_refused(path: Path) -> None:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    reserve(opened(path, clock=lambda: now))
    ledger = opened(path, clock=lambda: now - timedelta(days=1))
    with pytest.raises(ClockWentBack):
        reserve(ledger)
    assert ledger.spent() == pytest.approx(0.1)
    reserve(opened(path, clock=lambda: now - timedelta(seconds=30)))
    assert ledger.verify() == []


def test_a_ledger_held_by_another_is_told(path: Path) -> None:
    ledger = opened(path, busy_timeout=0.05)
    holder = raw(path)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(TimedOut):
        reserve(ledger)
    holder.close()
    reserve(ledger)


def test_a_head_that_cannot_be_written_is_told_and_over_counts(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened(filled)

    def refuse(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(hash_chain, "write_sector", refuse)
        with pytest.raises(StorageFailed, match="No space left"):
            reserve(ledger)
    assert ledger.spent() == pytest.approx(0.4)  # charged, though it said no: over-counted
    assert ledger.verify() == []
