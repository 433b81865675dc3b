"""Dice scores of the record, sorted into the rows that people compare."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from medsynth_common.labels import Region
from medsynth_server.record import (
    BEFORE_TRAINING,
    FEDERATED,
    SYNTHETIC_ONLY,
    Arm,
    EvaluationEvent,
)
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.palette import PUBLIC, ArmLook, arm_look

_ORDER: Final = (BEFORE_TRAINING, FEDERATED, SYNTHETIC_ONLY)
_MODEL_WORD: Final = {
    BEFORE_TRAINING: "Before training",
    FEDERATED: "Federated",
    SYNTHETIC_ONLY: "Synthetic only",
}
#: A difference that chance makes less often than this is called one.
_CHANCE: Final = 0.05


@dataclass(frozen=True, kw_only=True)
class Score:
    """A Dice over held-out patients; `per_site` holds None where a site has no such patient."""

    mean: float
    sd: float | None
    patients: int
    per_site: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One segmenter: what it is, how it is drawn, and its score in each region."""

    name: str
    look: ArmLook
    trained_on: str
    scores: Mapping[Region, Score | None]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The whole-tumour Dice before and after training; `chance` is the p of a paired test."""

    before: Score
    after: Score
    chance: float | None

    @property
    def gain(self) -> float:
        """How much the mean rose."""
        return self.after.mean - self.before.mean

    @property
    def beyond_chance(self) -> bool:
        """Tell whether patients differ by more than chance makes likely."""
        return self.chance is not None and self.chance < _CHANCE


def score_rows(folder: RunFolder) -> list[ScoreRow]:
    """Give a row a model and arm: before training, federated, synthetic only, then others."""
    pairs = dict.fromkeys((event.model, event.arm) for event in folder.evaluations)
    place = {model: number for number, model in enumerate(_ORDER)}
    arms = list(Arm)
    rows: list[ScoreRow] = []
    for model, arm in sorted(
        pairs, key=lambda pair: (place.get(pair[0], len(place)), arms.index(pair[1]))
    ):
        row = _row(folder, model, arm)
        if row not in rows:  # both arms start from one public model: said once
            rows.append(row)
    return rows


def find(folder: RunFolder, *, arm: Arm, model: str, region: Region) -> Score | None:
    """Look one score up; None where it was not measured."""
    event = _event(folder, arm, model, region)
    return None if event is None or event.dice_mean is None else _score(event, event.dice_mean)


def compare(folder: RunFolder, *, arm: Arm, model: str) -> Comparison | None:
    """Compare `model` with the model before training; None where either was not measured."""
    before, after = (
        find(folder, arm=arm, model=name, region=Region.WHOLE) for name in (BEFORE_TRAINING, model)
    )
    event = _event(folder, arm, model, Region.WHOLE)
    if before is None or after is None or event is None:
        return None
    return Comparison(before=before, after=after, chance=event.chance)


def _event(folder: RunFolder, arm: Arm, model: str, region: Region) -> EvaluationEvent | None:
    wanted = (arm, model, region)
    events = (e for e in folder.evaluations if (e.arm, e.model, e.region) == wanted)
    return next(events, None)


def _score(event: EvaluationEvent, mean: float) -> Score:
    return Score(mean=mean, sd=event.dice_sd, patients=event.patients, per_site=event.per_site)


def _row(folder: RunFolder, model: str, arm: Arm) -> ScoreRow:
    look = arm_look(protected=folder.protects(arm))
    name = f"{_MODEL_WORD.get(model, model.capitalize())}, {look.word}"
    if model == BEFORE_TRAINING:
        look = ArmLook(word="public data only", colour=PUBLIC, marker="s", line=":")
        name = _MODEL_WORD[model]
    trained_on = next(
        event.trained_on for event in folder.evaluations if (event.arm, event.model) == (arm, model)
    )
    scores = {region: find(folder, arm=arm, model=model, region=region) for region in Region}
    return ScoreRow(name=name, look=look, trained_on=trained_on, scores=scores)
