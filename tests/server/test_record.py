import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medsynth_common.errors import BadData
from medsynth_common.labels import Contrast, Region, Tissue
from medsynth_common.plan import Stage
from medsynth_server import record
from medsynth_server.record import (
    Arm,
    ArmPrivacy,
    EvaluationEvent,
    Event,
    IntensityEvent,
    MechanismSpent,
    NoteEvent,
    PrivacyStatement,
    RoundEvent,
    RunLog,
    SitePrivacy,
    epsilon_words,
    read_events,
    read_privacy,
    write_privacy,
)


def a_round(number: int, *, seconds: float = 1.0, loss: float = 0.5) -> RoundEvent:
    return RoundEvent(
        arm=Arm.PRIVATE,
        stage=Stage.SEGMENT,
        round=number,
        seconds=seconds,
        losses={"segmenter": loss},
        sites=("site-a", "site-b"),
        refused={"site-c": "BudgetExhausted"},
        bytes_up=10,
        bytes_down=20,
    )


EVENTS: tuple[Event, ...] = (
    a_round(1),
    EvaluationEvent(
        arm=Arm.REFERENCE,
        model="synthetic only",
        trained_on="synthetic volumes",
        region=Region.CORE,
        dice_mean=0.5,
        dice_sd=None,
        patients=3,
        per_site={"site-a": 0.5, "site-b": None},
    ),
    IntensityEvent(
        arm=Arm.PRIVATE,
        site="site-a",
        contrast=Contrast.FLAIR,
        tissue=Tissue.OEDEMA,
        edges=(0.0, 0.5, 1.0),
        real=(3.0, 1.0),
        synthetic=(2.0, 2.0),
    ),
    NoteEvent(text="Private training did not beat the model before training."),
)


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run" / "metrics.jsonl")
    for event in EVENTS:
        log.append(event)
    assert read_events(tmp_path / "run" / "metrics.jsonl") == EVENTS


def test_a_run_that_has_not_begun_has_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path / "metrics.jsonl") == ()


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(min_value=0, max_value=10_000))
def test_a_crash_at_any_byte_loses_at_most_the_last_event(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("torn") / "metrics.jsonl"
    log = RunLog(path)
    for event in EVENTS:
        log.append(event)
    content = path.read_bytes()
    kept = content[: cut % (len(content) + 1)]
    path.write_bytes(kept)

    whole = EVENTS[: kept.count(b"\n")]
    assert read_events(path) == whole
    RunLog(path).append(a_round(9))
    assert read_events(path) == (*whole, a_round(9))


def test_of_a_repeated_round_the_last_one_counts(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.jsonl")
    for event in (a_round(1), a_round(2, seconds=5.0), a_round(2, seconds=7.0), a_round(3)):
        log.append(event)
    assert read_events(tmp_path / "metrics.jsonl") == (
        a_round(1),
        a_round(2, seconds=7.0),
        a_round(3),
    )


def test_a_loss_that_is_not_finite_is_recorded_as_null(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.jsonl")
    log.append(a_round(1, loss=math.nan))
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    (event,) = read_events(tmp_path / "metrics.jsonl")
    assert isinstance(event, RoundEvent)
    assert event.losses == {"segmenter": None}


def test_every_bad_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = ['{"event":"dance"}', a_round(1).model_dump_json(), "not json", '{"event":"note"}']
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(BadData) as caught:
        read_events(path)
    named = [problem.name for problem in caught.value.problems]
    assert named == [
        "metrics.jsonl line 1",
        "metrics.jsonl line 3",
        "metrics.jsonl line 4: note.text",
    ]


def test_a_full_disk_leaves_the_log_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    log = RunLog(path)
    log.append(a_round(1))

    def half_a_line(path: Path, line: str) -> None:
        with path.open("a") as stream:
            stream.write(line[:10])
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(record, "append_line", half_a_line)
        with pytest.raises(OSError, match="no space"):
            log.append(a_round(2))
    log.append(a_round(3))
    assert read_events(path) == (a_round(1), a_round(3))


@pytest.mark.parametrize(
    ("edges", "real", "wanted"),
    [((0.0, 1.0), (1.0, 2.0), "2 edges need 1 bins"), ((1.0, 0.0), (1.0,), "edges must ascend")],
)
def test_a_histogram_checks_its_bins(
    edges: tuple[float, ...], real: tuple[float, ...], wanted: str
) -> None:
    with pytest.raises(ValidationError, match=wanted):
        IntensityEvent(
            arm=Arm.PRIVATE,
            site="site-a",
            contrast=Contrast.T1,
            tissue=Tissue.GREY,
            edges=edges,
            real=real,
            synthetic=real,
        )


def spent(epsilon: float | None) -> SitePrivacy:
    return SitePrivacy(
        epsilon=epsilon,
        cap=8.0,
        delta=1e-5,
        patients_declared=8,
        mechanisms=(
            MechanismSpent(
                name="segmenter",
                clip=1.0,
                noise_multiplier=1.2,
                sampling_rate=0.5,
                steps=20,
                releases=20,
                epsilon_alone=epsilon,
            ),
        ),
    )


def test_a_privacy_statement_is_read_back(tmp_path: Path) -> None:
    statement = PrivacyStatement(
        seeded=True,
        arms={
            Arm.PRIVATE: ArmPrivacy(protected=True, sites={"site-a": spent(3.0)}),
            Arm.REFERENCE: ArmPrivacy(protected=False, sites={"site-a": spent(None)}),
        },
    )
    write_privacy(tmp_path / "privacy.json", statement)
    assert read_privacy(tmp_path / "privacy.json") == statement
    assert statement.protects(Arm.PRIVATE)
    assert not statement.protects(Arm.REFERENCE)


def test_protection_without_a_bound_is_a_contradiction() -> None:
    with pytest.raises(ValidationError, match="needs an epsilon for site-b"):
        ArmPrivacy(protected=True, sites={"site-a": spent(3.0), "site-b": spent(None)})


def test_a_privacy_statement_that_does_not_check_is_told(tmp_path: Path) -> None:
    assert read_privacy(tmp_path / "privacy.json") is None
    (tmp_path / "privacy.json").write_text('{"unit": "slice", "seeded": false, "arms": {}}')
    with pytest.raises(BadData, match=r"privacy\.json: unit: got 'slice'"):
        read_privacy(tmp_path / "privacy.json")


@pytest.mark.parametrize(
    ("epsilon", "words"),
    [(None, "none"), (0.0, "0.00"), (7.9, "7.90"), (7.9900001, "8.00"), (1e-9, "0.01")],
)
def test_an_epsilon_is_never_written_smaller_than_it_is(epsilon: float | None, words: str) -> None:
    assert epsilon_words(epsilon) == words
