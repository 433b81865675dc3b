"""“Can I trust this?”: what speaks for the run and what speaks against it, side by side."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from medsynth_common.release_check import Verdict
from medsynth_common.wording import counted
from medsynth_server.record import FEDERATED, SYNTHETIC_ONLY, Arm
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.scores import Comparison, compare
from medsynth_server.report.section import Section
from medsynth_server.report.sections.summary import largest_bound
from medsynth_server.report.words import bound_words, listed, three_decimals, two_decimals


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing to know before relying on the run."""

    verdict: Literal["good", "care", "bad"]
    title: str
    text: str


def trust(folder: RunFolder) -> Section:
    """List the checks, the worst first."""
    checks = [
        *_privacy(folder),
        *_noise(folder),
        *_released(folder),
        *_comparison_arm(folder),
        *_learning(folder),
        *_answers(folder),
        *_pictures(folder),
        *_in_the_clear(folder),
    ]
    worst_first = ("bad", "care", "good")
    checks.sort(key=lambda check: worst_first.index(check.verdict))
    return Section(name="trust", title="Can I trust this?", facts={"checks": checks})


def _privacy(folder: RunFolder) -> Iterator[Check]:
    if folder.privacy is None:
        yield Check(
            verdict="bad",
            title="No privacy statement",
            text="The record holds no privacy statement, so nothing is known of what was spent.",
        )
        return
    if not folder.protects(folder.main_arm):
        yield Check(
            verdict="bad",
            title="No privacy",
            text="Privacy was switched off. Treat everything trained here as patient data.",
        )
        return
    sites = folder.privacy.arms[folder.main_arm].sites
    over = {name: site for name, site in sites.items() if site.over}
    for name, site in over.items():
        yield Check(
            verdict="bad",
            title=f"{name} is past its cap",
            text=f"{bound_words(site, folder.privacy)}, and its cap is {site.cap_words}.",
        )
    if sites and not over:
        yield Check(
            verdict="good",
            title="Every hospital stayed within its privacy cap",
            text=f"The largest spend is {largest_bound(folder)}. The smaller ε, the less anyone "
            "can learn from the models about whether one patient took part; a common rule of thumb "
            "(Ponomareva et al. 2023) calls up to 1 strong, up to 10 reasonable and more weak. It "
            "is a limit on what can be learnt, not a promise that nothing can.",
        )


def _noise(folder: RunFolder) -> Iterator[Check]:
    if folder.privacy is not None and folder.privacy.seeded:
        yield Check(
            verdict="care",
            title="A rehearsal, not a release",
            text="The simulation was seeded, so that it can be repeated. Whoever knows the seed "
            "can replay the privacy noise and take it off again. Do not publish models or images "
            "of a seeded run that real patients took part in.",
        )


def _released(folder: RunFolder) -> Iterator[Check]:
    check = folder.release
    if check is None:
        return
    against = " ".join(check.reasons)
    if check.verdict is Verdict.PASSED:
        yield Check(
            verdict="good",
            title="The synthetic set passed its release check",
            text="No copy of a patient was found in it, and two attacks could not tell from it who "
            "was trained on. Other attacks may.",
        )
    elif check.override is not None:
        yield Check(
            verdict="bad",
            title="The synthetic set did not pass its release check and was released anyway",
            text=f"{against} {check.override.who} released it: {check.override.reason}",
        )
    elif check.verdict is Verdict.FAILED:
        yield Check(
            verdict="bad",
            title="The synthetic set was withheld",
            text=against,
        )
    else:
        yield Check(
            verdict="care",
            title="The release check could not be made in full",
            text=against,
        )


def _comparison_arm(folder: RunFolder) -> Iterator[Check]:
    if Arm.REFERENCE in folder.arms and not folder.protects(Arm.REFERENCE):
        if folder.main_arm is Arm.REFERENCE:
            return
        yield Check(
            verdict="care",
            title="Part of this run had no privacy, for comparison",
            text="What is printed in red was trained without any privacy. It shows what privacy "
            "costs; its models and images must stay where the patients' data may be.",
        )


def _learning(folder: RunFolder) -> Iterator[Check]:
    whose = "private " if folder.protects(folder.main_arm) else ""
    for model, what in (
        (FEDERATED, f"{whose}federated training"),
        (SYNTHETIC_ONLY, f"training on {whose}synthetic images only"),
    ):
        compared = compare(folder, arm=folder.main_arm, model=model)
        if compared is not None:
            yield _did_it_help(compared, what[0].upper() + what[1:])


def _did_it_help(compared: Comparison, what: str) -> Check:
    before, after = three_decimals(compared.before.mean), three_decimals(compared.after.mean)
    patients = counted(compared.after.patients, "held-out patient")
    went = f"Whole-tumour Dice went from {before} before training to {after}, over {patients}."
    spread = test = ""
    if compared.after.sd is not None:
        spread = f" Patients differ by ± {two_decimals(compared.after.sd)} (SD)."
    if compared.chance is None:
        verdict = "was not tested against chance"
    else:
        test = f" Signed-rank test over the patients: p = {compared.chance:.2g}."
        verdict = "showed no change beyond chance"
        if compared.beyond_chance:
            verdict = "helped" if compared.gain > 0 else "did harm"
    return Check(
        verdict="good" if verdict == "helped" else "care",
        title=f"{what} {verdict}",
        text=f"{went}{spread}{test}",
    )


def _answers(folder: RunFolder) -> Iterator[Check]:
    errors = Counter(
        f"{site}: {error}" for event in folder.rounds for site, error in event.refused.items()
    )
    if errors:
        told = listed(f"{name} ({counted(times, 'round')})" for name, times in errors.items())
        yield Check(
            verdict="care",
            title="Not every hospital answered every round",
            text=f"Missing answers, by name of the error: {told}.",
        )
    elif any(event.sites for event in folder.rounds):
        yield Check(
            verdict="good",
            title="Every hospital answered every round",
            text="No site refused, failed or was late.",
        )


def _pictures(folder: RunFolder) -> Iterator[Check]:
    if folder.samples is None:
        return
    if folder.samples.source == "phantom":
        yield Check(
            verdict="care",
            title="The patients are phantoms",
            text="The brains were drawn by a procedure. The figures show that the method runs and "
            "how its parts compare; they say nothing yet about patients.",
        )
    else:
        yield Check(
            verdict="care",
            title="This page shows real patients' images",
            text="Keep it where those patients' data may be kept, and do not pass it on.",
        )
    if not folder.samples.held_out:
        yield Check(
            verdict="care",
            title="No patient was held out",
            text="The hospitals have too few patients. The pictures and histograms are those of "
            "patients trained on, and say little about others; no Dice was measured.",
        )


def _in_the_clear(folder: RunFolder) -> Iterator[Check]:
    if folder.protects(folder.main_arm):
        yield Check(
            verdict="care",
            title="The privacy bound covers the models, not this page",
            text="Dice, histograms and pictures were measured directly on the evaluation volumes, "
            "without noise. That is right for a simulation; at a hospital they stay inside.",
        )
