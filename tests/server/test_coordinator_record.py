"""What a real federation's coordinator writes down: its status, and what sites told of privacy."""

import json
import logging
from io import StringIO
from pathlib import Path

import pytest

from medsynth_common import logs
from medsynth_common.errors import BadRecord
from medsynth_common.logs import LogFormat, log_to
from medsynth_common.plan import Stage
from medsynth_server.coordinator.folder import FederationFolder
from medsynth_server.coordinator.logged import LoggedProgress
from medsynth_server.coordinator.status import StatusBoard, read_status, status_text
from medsynth_server.coordinator.told_privacy import state_told_privacy
from medsynth_server.progress import LineProgress
from medsynth_server.record import (
    Arm,
    NoteEvent,
    RoundEvent,
    RunLog,
    Told,
    read_events,
    read_privacy,
)
from medsynth_server.run_folder import RunFolder
from tiny_run import public_model, tiny_config


def a_round(stage: Stage, number: int, told: dict[str, float | None], **more: object) -> RoundEvent:
    said = {s: Told(epsilon=e, cap=10.0, delta=1e-3, patients=3) for s, e in told.items()}
    return RoundEvent(
        arm=Arm.PRIVATE,
        stage=stage,
        round=number,
        seconds=1.0,
        sites=tuple(told),
        told=said,
        bytes_up=3,
        bytes_down=5,
        **more,  # type: ignore[arg-type] # a test's choice
    )


def test_the_statement_says_what_each_site_said_last_and_what_it_answered(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = RunLog(folder.metrics)
    log.append(a_round(Stage.MOMENTS, 1, {"a": 1.0, "b": 1.5, "silent": None}))
    log.append(a_round(Stage.MOMENTS, 2, {"a": 2.0}, refused={"b": "TimedOut"}))
    log.append(a_round(Stage.SEGMENT, 2, {"a": 3.0, "silent": None}))
    config = tiny_config()
    state_told_privacy(folder, config, public_model(), log=log)
    statement = read_privacy(folder.privacy)
    assert statement is not None
    assert not statement.seeded
    sites = statement.arms[Arm.PRIVATE].sites
    assert {name: site.epsilon for name, site in sites.items()} == {"a": 3.0, "b": 1.5}
    asked = {m.name: (m.releases, m.steps) for m in sites["a"].mechanisms}
    steps = config.segment.steps
    assert asked == {"level": (1, 1), "spread": (1, 1), "segmenter": (1, steps)}
    assert [m.name for m in sites["b"].mechanisms] == ["level"]
    notes = [e.text for e in read_events(folder.metrics) if isinstance(e, NoteEvent)]
    assert notes == ["No epsilon was told by silent: ask them for it."]


def test_a_site_whose_noise_is_a_rehearsal_s_is_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = RunLog(folder.metrics)
    log.append(a_round(Stage.MOMENTS, 1, {"a": 1.0}))
    seeded = Told(epsilon=1.0, cap=10.0, delta=1e-3, patients=3, rehearsal=True)
    log.append(a_round(Stage.MOMENTS, 2, {"a": 2.0}).model_copy(update={"told": {"b": seeded}}))
    state_told_privacy(folder, tiny_config(), public_model(), log=log)
    statement = read_privacy(folder.privacy)
    assert statement is not None
    assert statement.seeded


def test_without_privacy_the_statement_says_so(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = RunLog(folder.metrics)
    log.append(a_round(Stage.SEGMENT, 2, {"a": None}))
    state_told_privacy(folder, tiny_config({"privacy": "off"}), public_model(), log=log)
    statement = read_privacy(folder.privacy)
    assert statement is not None
    assert not statement.protects(Arm.PRIVATE)
    assert statement.arms[Arm.PRIVATE].sites["a"].epsilon is None


def test_the_board_keeps_what_the_progress_is_told_and_status_reads_it(tmp_path: Path) -> None:
    folder = FederationFolder(tmp_path)
    shown = StringIO()
    board = StatusBoard(folder.status, LineProgress(shown), federation="study", quorum=2)
    with board, folder.serving():
        board.stage("segment", 3)
        board.round_started(2)
        for site in ("a", "b", "c"):
            board.site_asked(site, size=70)
        board.site_done("a", seconds=1.0, epsilon=1.234, cap=8.0, error=None, size=50)
        board.site_done("b", seconds=1.0, epsilon=None, cap=None, error="TimedOut")
        RunLog(RunFolder(folder.run).metrics).append(a_round(Stage.SEGMENT, 2, {"a": 1.234}))
        told = read_status(folder)
        assert told["running"]
        assert (told["stage"], told["round"], told["rounds"]) == ("segment", 2, 3)
        assert (told["bytes_up"], told["bytes_down"], told["rounds_finished"]) == (3, 5, 1)
        text = status_text(told, now=0.0)
        assert "study: training, segment round 2 of 3" in text
        assert "a: in touch, never seen, answered, 70 bytes down, 50 up, epsilon 1.24 of 8" in text
        assert "b: in touch, never seen, failed, 70 bytes down, 0 up, last error TimedOut" in text
        assert "c: in touch, never seen, asked, 70 bytes down, 0 up" in text
        board.round_done(2, {})
        board.note("asking again")
        assert "asking again" in status_text(read_status(folder), now=0.0)
        board.finished()
    told = read_status(folder)
    assert (told["running"], told["phase"]) == (False, "finished")
    assert "segment 2/3" in shown.getvalue()  # and it was passed on


@pytest.mark.parametrize("format", ["text", "json"])
def test_what_happens_is_logged_in_a_file_that_rotates(
    tmp_path: Path, format: LogFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_BYTES", 1200)
    stop = log_to(tmp_path, "coordinator", package="medsynth_server", format=format, echo=False)
    board = StatusBoard(
        tmp_path / "status.json", LoggedProgress("delta 0.001"), federation="f", quorum=2
    )
    with board:
        assert "epsilon is for delta 0.001" in (tmp_path / "logs/coordinator.log").read_text()
        board.stage("segment", 30)
        for n in range(1, 31):
            board.round_started(n)
            board.site_asked("a", size=70)
            board.site_done("a", seconds=1.25, epsilon=None, cap=None, error="TimedOut")
            board.site_done("b", seconds=1.0, epsilon=1.234, cap=8.0, error=None, size=50)
            board.round_done(n, {"dice": 0.5})
        board.note("asking again")
        board.finished()
    with pytest.raises(ValueError, match="what went wrong"), board:
        raise ValueError("what went wrong")
    stop()
    assert not logging.getLogger("medsynth_server").handlers
    files = sorted((tmp_path / "logs").iterdir())
    assert [file.name for file in files][:2] == ["coordinator.log", "coordinator.log.1"]
    assert len(files) == 6  # the oldest lines are gone
    assert (tmp_path / "logs").stat().st_mode & 0o777 == 0o700
    lines = "".join(file.read_text() for file in reversed(files)).splitlines()
    assert "what went wrong" not in "".join(lines)
    if format == "text":
        assert any("WARNING coordinator: a: TimedOut" in line for line in lines)
        assert lines[-4].endswith("INFO coordinator: asking again")
        return
    events = [json.loads(line) for line in lines]
    failed, answered = events[-7], events[-6]
    assert (failed["level"], failed["site"], failed["error"]) == ("warning", "a", "TimedOut")
    assert (answered["stage"], answered["round"], answered["seconds"]) == ("segment", 30, 1.0)
    assert (answered["bytes"], answered["epsilon"], answered["cap"]) == (50, 1.234, 8.0)
    assert events[-5]["message"] == "round 30 combined, dice 0.5"
    said = [event["message"] for event in events[-3:]]
    assert said == ["finished", "epsilon is for delta 0.001", "stopped by ValueError"]


def test_a_coordinator_that_died_is_told_as_stopped(tmp_path: Path) -> None:
    folder = FederationFolder(tmp_path)
    board = StatusBoard(folder.status, LineProgress(StringIO()), federation="study", quorum=2)
    board.stage("segment", 3)  # and then it is killed
    assert read_status(folder)["phase"] == "stopped"
    with pytest.raises(ValueError, match="x"), board:
        raise ValueError("x")
    assert json.loads(folder.status.read_text())["phase"] == "stopped"
    folder.status.write_text("{")
    with pytest.raises(BadRecord, match="no JSON"):
        read_status(folder)
