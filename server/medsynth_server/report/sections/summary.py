"""The first paragraph: what was done, with the few numbers that matter most."""

from dataclasses import dataclass
from typing import Final

from medsynth_common.labels import Region
from medsynth_common.plan import Stage
from medsynth_common.wording import counted
from medsynth_server.record import (
    BEFORE_TRAINING,
    FEDERATED,
    SYNTHETIC_ONLY,
    SitePrivacy,
    epsilon_words,
)
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.scores import find
from medsynth_server.report.section import Section
from medsynth_server.report.words import bound_words, in_bytes, in_time, two_decimals

_STAGE_WORD: Final = {
    Stage.PRETRAIN: "public pre-training",
    Stage.MOMENTS: "matching tissue intensities",
    Stage.SEGMENT: "training the segmenter",
    Stage.ADVERSARIAL: "training the generator",
    Stage.METRICS: "measuring at the hospitals, with noise",
}


@dataclass(frozen=True, kw_only=True)
class KeyNumber:
    """One figure with what it is, and what must be read beside it."""

    value: str
    what: str
    beside: str
    alarming: bool = False


def summary(folder: RunFolder) -> Section:
    """Say what the run did and print its key numbers."""
    title = "What was done"
    if not (folder.rounds or folder.evaluations or folder.privacy):
        return Section(
            name="summary", title=title, missing="The run has not recorded anything yet."
        )
    arm = folder.main_arm
    scores = {
        model: find(folder, arm=arm, model=model, region=Region.WHOLE)
        for model in (BEFORE_TRAINING, FEDERATED, SYNTHETIC_ONLY)
    }
    return Section(
        name="summary",
        title=title,
        facts={
            "sites": folder.sites,
            "simulated": folder.samples is not None and folder.samples.source == "phantom",
            "patients": _patients(folder),
            "stages": _stages(folder),
            "protected": folder.protects(arm),
            "bound_known": folder.privacy is not None,
            "notes": folder.notes,
            "bound": largest_bound(folder),
            "before": scores[BEFORE_TRAINING],
            "federated": scores[FEDERATED],
            "synthetic": scores[SYNTHETIC_ONLY],
            "numbers": [*_effort(folder), *_spent(folder), *_scored(folder)],
        },
    )


def largest_bound(folder: RunFolder) -> str:
    """Write the largest epsilon of the main arm's sites; empty where nothing bounds it.

    Hospitals hold different patients, so the federation's epsilon is its largest site's.
    """
    site = _most_spent(folder)
    return bound_words(site, folder.privacy) if site and folder.privacy else ""


def _most_spent(folder: RunFolder) -> SitePrivacy | None:
    if not folder.privacy or not folder.protects(folder.main_arm):
        return None
    sites = folder.privacy.arms[folder.main_arm].sites.values()
    return max(sites, key=lambda site: site.epsilon or 0.0, default=None)


def _patients(folder: RunFolder) -> int | None:
    """Add up the public sizes that the sites declared."""
    if not folder.privacy or folder.main_arm not in folder.privacy.arms:
        return None
    sites = folder.privacy.arms[folder.main_arm].sites.values()
    return sum(site.patients_declared for site in sites)


def _stages(folder: RunFolder) -> list[str]:
    rounds = [event.stage for event in folder.rounds if event.arm is folder.main_arm]
    return [
        f"{counted(rounds.count(stage), 'round')} of {_STAGE_WORD[stage]}"
        for stage in Stage
        if stage in rounds
    ]


def _effort(folder: RunFolder) -> list[KeyNumber]:
    rounds = [event for event in folder.rounds if event.arm is folder.main_arm]
    if not rounds:
        return []
    patients = _patients(folder)
    declared = "" if patients is None else f"{counted(patients, 'patient')} declared"
    sent = in_bytes(sum(event.bytes_up for event in rounds))
    return [
        KeyNumber(value=str(len(folder.sites)), what="hospitals", beside=declared),
        KeyNumber(
            value=str(len(rounds)),
            what="rounds of training",
            beside=f"{in_time(sum(event.seconds for event in rounds))}; sites sent {sent} in all",
        ),
    ]


def _spent(folder: RunFolder) -> list[KeyNumber]:
    what = "largest privacy spend of a hospital"
    site = _most_spent(folder)
    if site is not None and folder.privacy is not None:
        return [
            KeyNumber(
                value=f"ε {epsilon_words(site.epsilon)}",
                what=what,
                beside=f"{bound_words(site, folder.privacy)}; its cap is {site.cap_words}",
                alarming=site.over,
            )
        ]
    value, beside = (
        ("unknown", "no privacy statement is recorded")
        if folder.privacy is None
        else ("none", "privacy was off: nothing limits ε")
    )
    return [KeyNumber(value=value, what="privacy bound", beside=beside, alarming=True)]


def _scored(folder: RunFolder) -> list[KeyNumber]:
    shown = {
        FEDERATED: "whole-tumour Dice, federated segmenter",
        SYNTHETIC_ONLY: "whole-tumour Dice, segmenter trained on synthetic images only",
    }
    before = find(folder, arm=folder.main_arm, model=BEFORE_TRAINING, region=Region.WHOLE)
    numbers = []
    for model, what in shown.items():
        score = find(folder, arm=folder.main_arm, model=model, region=Region.WHOLE)
        if score is not None:
            spread = "" if score.sd is None else f"± {two_decimals(score.sd)}, "
            beside = f"{spread}{counted(score.patients, 'held-out patient')}"
            if before is not None:
                beside += f"; before training {two_decimals(before.mean)}"
            numbers.append(KeyNumber(value=two_decimals(score.mean), what=what, beside=beside))
    return numbers
