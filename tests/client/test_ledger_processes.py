"""Several processes on one ledger, and processes that die or run out of disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from medsynth_client.ledger import Ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def opened(path: Path, *, cap: float) -> Ledger:
    return Ledger(
        path, cap=cap, delta=1e-5, epsilon=lambda spent, _: sum(one.steps for one in spent) / 100
    )


CHILD = """
import resource, sys
from pathlib import Path
from types import SimpleNamespace
from medsynth_client.ledger import Ledger
from medsynth_common.errors import BudgetExhausted, StorageFailed

what, path, cap = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
mechanism = SimpleNamespace(
    name="critic", clip=1.0, noise_multiplier=2.0, sampling_rate=0.1, steps=10
)

def reserve():
    return ledger.reserve(
        project="run", stage="segment", round=1, plan_digest="c" * 64, mechanism=mechanism
    )

ledger = Ledger(
    path, cap=cap, delta=1e-5, epsilon=lambda spent, _: sum(one.steps for one in spent) / 100
)
ledger.register_dataset(["anna"])
if what == "full disk":
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, -1))
    try:
        reserve()
    except StorageFailed as error:
        print("told", error)
else:
    try:
        while True:
            receipt = reserve()
            print("released", flush=True)
            ledger.confirm(receipt, release_sha256="d" * 64)
    except BudgetExhausted:
        pass
"""


def child(what: str, path: Path, cap: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, what, str(path), str(cap)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_together_never_pass_the_cap(path: Path) -> None:
    children = [child("reserve", path, 2.05) for _ in range(2)]
    released = [len(one.communicate()[0].splitlines()) for one in children]
    assert [one.returncode for one in children] == [0, 0]
    assert sum(released) == 20  # of a tenth each
    ledger = opened(path, cap=2.05)
    assert ledger.spent() == pytest.approx(2.0)
    assert ledger.verify() == []


def test_a_killed_process_has_never_released_more_than_was_charged(path: Path) -> None:
    for kill_after in (1, 2, 5):
        before = round(opened(path, cap=1e6).spent() * 10)
        process = child("reserve", path, 1e6)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(kill_after)]
        process.kill()
        lines += process.stdout.readlines()
        process.stdout.close()
        process.wait()
        ledger = opened(path, cap=1e6)
        charged = round(ledger.spent() * 10) - before
        assert kill_after <= lines.count("released\n") <= charged
        assert ledger.verify() == []


def test_a_full_disk_at_reserve_is_told_and_nothing_is_lost(path: Path) -> None:
    process = child("full disk", path, 8.0)
    assert process.communicate()[0].startswith("told ledger.db")
    ledger = opened(path, cap=8.0)
    assert ledger.spent() == 0
    assert ledger.verify() == []
