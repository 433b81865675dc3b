"""Spoilt messages; `python -m benchmarks.fuzz_messages` sends many times more."""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from benchmarks.fuzz_messages import fuzz

from medsynth_client import trainer as trainer_file
from medsynth_client.gate import Gate
from medsynth_client.site import Site
from medsynth_common.wire.site_pb2 import UpdatePart
from medsynth_server import federation as federation_file

MESSAGES = 1000


def test_a_thousand_spoilt_messages_break_no_promise() -> None:
    tally = fuzz(MESSAGES, seed=5)
    assert tally.broken == []
    outcomes = {outcome for _, _, outcome in tally.outcomes}
    assert {"released", "answered from memory", "used"} <= outcomes
    assert {"BadMessage", "AlreadyAnswered", "UnsafeRelease", "RuntimeError"} <= outcomes
    assert {"BudgetExhausted", "PolicyRefusal"} <= outcomes


def _leak(error: BaseException) -> UpdatePart:
    return UpdatePart(failure={"name": f"{type(error).__name__}: {error}"})


def _unwatched(*_args: Any, **_named: Any) -> AbstractContextManager[None]:
    @contextmanager
    def nothing() -> Any:
        yield

    return nothing()


FAULTS: dict[str, tuple[str, list[tuple[Any, str, Callable[..., Any]]]]] = {
    "the text of an error": ("an error's text", [(trainer_file, "failure_part", _leak)]),
    "no line in the log": ("0 lines tell of a", [(Gate, "refusals", _unwatched)]),
    "nothing is charged": (
        "without a ledger row",
        [(Site, "_charge", lambda *_: []), (Gate, "_check_charged", lambda *_: None)],
    ),
    "nobody looks": ("was used", [(federation_file, "check_tensors", lambda *_: None)]),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_planted_fault_is_found(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sign, changes = FAULTS[what]
    for owner, name, fault in changes:
        monkeypatch.setattr(owner, name, fault)
    assert any(sign in problem for problem in fuzz(300, seed=7).broken)
