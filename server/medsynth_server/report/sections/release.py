"""“Release check”: whether the synthetic set holds copies, and whether it tells who took part."""

from typing import Final

from medsynth_common.release_check import ReleaseCheck, Verdict
from medsynth_common.release_check.result import AttackFinding, Interval, NearnessFinding
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.release_figure import distances
from medsynth_server.report.section import Section

_SIGN: Final = {Verdict.PASSED: "good", Verdict.FAILED: "bad", Verdict.NOT_DECIDABLE: "care"}


def release(folder: RunFolder) -> Section:
    """Show the verdict, why, and the numbers behind it."""
    title = "Release check"
    check = folder.release
    if check is None:
        return Section(
            name="release",
            title=title,
            missing="The synthetic set has not been compared with the patients.",
        )
    return Section(
        name="release",
        title=title,
        facts={
            "check": check,
            "headline": _headline(check),
            "parts": [
                {"verdict": _SIGN[part.verdict], "word": part.verdict, "text": part.reason}
                for part in check.findings
            ],
            "figure": distances(check.nearness[0]),
            "figure_words": _figure_words(check.nearness[0]),
            "nearness": [_nearness_row(one) for one in check.nearness],
            "attacks": [_attack_row(one) for one in check.attacks if one.auc is not None],
        },
    )


def _headline(check: ReleaseCheck) -> str:
    if check.override is not None:
        return "The set did not pass, and a person released it anyway."
    return {
        Verdict.PASSED: "The set passed: no copy was found, no attack could tell who took part.",
        Verdict.FAILED: "The set failed and was withheld.",
        Verdict.NOT_DECIDABLE: "The set was released, but part of the check could not be made.",
    }[check.verdict]


def _figure_words(images: NearnessFinding) -> str:
    groups = {
        "synthetic volume to its nearest training patient": images.to_training,
        "held-out patient to the nearest training patient": images.held_out_to_training,
        "synthetic volume to its nearest held-out patient": images.to_held_out,
    }
    told = [f"{word}: {min(d):.3f} to {max(d):.3f}" for word, d in groups.items() if d]
    return "Distances from " + "; ".join(told) + "."


def _nearness_row(one: NearnessFinding) -> dict[str, str]:
    return {
        "of": one.of,
        "copies": f"{len(one.copies)} of {one.compared}",
        "share": f"{one.share:.0%} ({_percent(one.share_interval)})",
        "unusual": f"{one.unusual:.0%}",
        "near_held_out": str(one.near_held_out),
        "threshold": "-" if one.threshold is None else f"{one.threshold:.2f}",
        "names": ", ".join(one.copies[:10]) + (" ..." if len(one.copies) > 10 else ""),
    }


def _attack_row(one: AttackFinding) -> dict[str, str]:
    assert one.auc is not None
    assert one.auc_interval is not None
    assert one.true_positive_interval is not None
    return {
        "attack": one.attack,
        "auc": f"{one.auc:.2f} ({one.auc_interval.low:.2f} to {one.auc_interval.high:.2f})",
        "control": f"{one.control:.2f}",
        "rate": f"{one.true_positive_rate:.0%} ({_percent(one.true_positive_interval)})",
        "false": f"{one.false_positive_rate:.1%}",
    }


def _percent(interval: Interval) -> str:
    return f"{interval.low:.0%} to {interval.high:.0%}"
