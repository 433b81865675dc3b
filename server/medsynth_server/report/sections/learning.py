"""How the training went: losses, rounds, time and bytes, stage by stage."""

import math
from dataclasses import dataclass

from medsynth_common.plan import Stage
from medsynth_server.record import Arm, RoundEvent
from medsynth_server.report.figures import Curve, Look, curves
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.palette import PUBLIC, STAGE_WORD, ArmLook, arm_look
from medsynth_server.report.section import Section


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What one arm's rounds of a stage took."""

    look: ArmLook
    rounds: int
    seconds: float
    sites: int
    refusals: int
    bytes_up: int
    bytes_down: int
    last_losses: tuple[tuple[str, float | None], ...]
    site_metrics: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class StageStory:
    """One stage: its table, and its curves where there are any."""

    title: str
    efforts: tuple[Effort, ...]
    losses: tuple[str, ...]
    chart: str


def learning(folder: RunFolder) -> Section:
    """Tell the stages in order."""
    title = "How the training went"
    stages = [stage for stage in Stage if any(event.stage is stage for event in folder.rounds)]
    if not stages:
        return Section(name="learning", title=title, missing="No round has been finished yet.")
    return Section(
        name="learning",
        title=title,
        facts={"stages": [_story(folder, stage) for stage in stages]},
    )


def _story(folder: RunFolder, stage: Stage) -> StageStory:
    arms = {
        arm: rounds
        for arm in Arm
        if (rounds := [e for e in folder.rounds if (e.arm, e.stage) == (arm, stage)])
    }
    looks = {arm: _look(folder, arm, stage) for arm in arms}
    drawn = [curve for arm, rounds in arms.items() for curve in _curves(rounds, looks[arm])]
    return StageStory(
        title=STAGE_WORD[stage],
        efforts=tuple(_effort(rounds, looks[arm]) for arm, rounds in arms.items()),
        losses=tuple(dict.fromkeys(curve.loss for curve in drawn)),
        chart=curves(drawn) if drawn else "",
    )


def _look(folder: RunFolder, arm: Arm, stage: Stage) -> ArmLook:
    if stage is Stage.PRETRAIN:  # touches no patient, whatever the arm
        return ArmLook(word="public data only", colour=PUBLIC, marker="s", line="-")
    return arm_look(protected=folder.protects(arm))


def _effort(rounds: list[RoundEvent], look: ArmLook) -> Effort:
    last = max(rounds, key=lambda event: event.round)
    return Effort(
        look=look,
        rounds=len(rounds),
        seconds=sum(event.seconds for event in rounds),
        sites=len({site for event in rounds for site in event.sites}),
        refusals=sum(len(event.refused) for event in rounds),
        bytes_up=sum(event.bytes_up for event in rounds),
        bytes_down=sum(event.bytes_down for event in rounds),
        last_losses=tuple(last.losses.items()),
        site_metrics=tuple((name, metric.words) for name, metric in last.site_metrics.items()),
    )


def _curves(rounds: list[RoundEvent], look: ArmLook) -> list[Curve]:
    """Give each loss its curve; a single round makes none."""
    if len(rounds) < 2:
        return []
    rounds = sorted(rounds, key=lambda event: event.round)
    names = dict.fromkeys(name for event in rounds for name in event.losses)
    return [
        Curve(
            loss=name,
            look=Look(word=look.word, colour=look.colour, marker=look.marker, line=look.line),
            rounds=tuple(event.round for event in rounds),
            values=tuple(_number(event.losses.get(name)) for event in rounds),
        )
        for name in names
    ]


def _number(loss: float | None) -> float:
    return math.nan if loss is None else loss
