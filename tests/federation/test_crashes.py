"""kill -9 at random moments. `python -m benchmarks.crash_matrix` does the same many more times."""

import random
import shutil
from pathlib import Path

import pytest
from benchmarks.crash_matrix import Moment, Undisturbed, broken_promises, disturb

from medsynth_common.errors import BadRecord


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(
    settings: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """A trainer first, then the coordinator soon after, and again soon after it went on."""
    draw = random.Random(3)
    trainer = undisturbed.draw("trainer", draw)
    soon = Moment(lines=trainer.lines + draw.randint(0, 2), seconds=draw.uniform(0, 2))
    again = Moment(lines=draw.randint(1, 3), seconds=draw.uniform(0, 3))
    outcome = disturb(
        settings,
        tmp_path / "run",
        [("trainer", trainer), ("coordinator", soon), ("coordinator", again)],
        like=undisturbed,
    )
    assert outcome.broken == [], (outcome.after, outcome.kills)


@pytest.mark.slow
def test_the_checks_see_what_they_are_there_to_see(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """A planted fault of each kind is found."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed.folder, run)
    assert broken_promises(run, undisturbed.folder) == []
    weights = run / "weights" / "styles.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[1:]))
    (run / "weights" / ".part-x.json").touch()
    (run / "synthetic").rename(run / "withheld")
    (run / "privacy.json").write_text(
        (run / "privacy.json").read_text().replace('"epsilon": 7.', '"epsilon": 1.')
    )
    audit = run / "sites" / "site-1" / "audit.jsonl"
    audit.write_text(audit.read_text().replace('"round":1', '"round":2', 1))
    with pytest.raises(BadRecord, match=r"audit\.jsonl line 1"):
        broken_promises(run, undisturbed.folder)
    shutil.copy(undisturbed.folder / "sites" / "site-1" / "audit.jsonl", audit)
    found = "\n".join(broken_promises(run, undisturbed.folder))
    for sign in (
        "styles.safetensors differs",
        "rounds recorded",
        "half-written",
        "withheld differs",
        "epsilon 1.",
    ):
        assert sign in found
