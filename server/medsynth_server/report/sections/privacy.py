"""The privacy statement: per arm and site, what was spent, of what cap, by which mechanisms."""

from dataclasses import dataclass

from medsynth_server.record import Arm, MechanismSpent, SitePrivacy, epsilon_words
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.palette import ArmLook, arm_look
from medsynth_server.report.section import Section
from medsynth_server.report.words import bound_words


@dataclass(frozen=True, kw_only=True)
class SiteStatement:
    """One site's part of the statement."""

    name: str
    spent: SitePrivacy
    bound: str
    share: float  # of the cap, in per cent, at most 100
    over: bool
    mechanisms: tuple[tuple[MechanismSpent, str], ...]  # each with its epsilon alone, in words


@dataclass(frozen=True, kw_only=True)
class ArmStatement:
    """One arm's part of the statement."""

    look: ArmLook
    protected: bool
    sites: tuple[SiteStatement, ...]


def privacy(folder: RunFolder) -> Section:
    """Print the privacy statement."""
    title = "Privacy spent at each hospital"
    statement = folder.privacy
    if statement is None:
        return Section(
            name="privacy", title=title, missing="No privacy statement has been written yet."
        )
    return Section(
        name="privacy",
        title=title,
        facts={
            "unit": statement.unit,
            "seeded": statement.seeded,
            "arms": [_arm(folder, arm) for arm in Arm if arm in statement.arms],
        },
    )


def _arm(folder: RunFolder, arm: Arm) -> ArmStatement:
    assert folder.privacy is not None  # the caller asks for arms of the statement
    told = folder.privacy.arms[arm]
    return ArmStatement(
        look=arm_look(protected=told.protected),
        protected=told.protected,
        sites=tuple(
            SiteStatement(
                name=name,
                spent=site,
                bound=bound_words(site, folder.privacy),
                share=100 * min((site.epsilon or 0.0) / site.cap, 1.0) if site.cap else 0.0,
                over=site.over,
                mechanisms=tuple(
                    (mechanism, epsilon_words(mechanism.epsilon_alone))
                    for mechanism in site.mechanisms
                ),
            )
            for name, site in sorted(told.sites.items())
        ),
    )
