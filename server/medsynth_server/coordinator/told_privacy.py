"""`privacy.json` of a real federation: what each site told of its own ledger, and no more.

The coordinator knows which mechanisms it asked for and which rounds were answered. What they cost
a patient, with rounds that were charged and lost, only the site's ledger knows.
"""

from collections.abc import Sequence
from math import isfinite

from medsynth_common.plan import Stage
from medsynth_server.budget import Budget, plan_budget
from medsynth_server.config import RunConfig
from medsynth_server.model import Model
from medsynth_server.record import (
    Arm,
    ArmPrivacy,
    MechanismSpent,
    NoteEvent,
    PrivacyStatement,
    RoundEvent,
    RunLog,
    SitePrivacy,
    Told,
    read_events,
    write_privacy,
)
from medsynth_server.run_folder import RunFolder

#: The mechanisms of each stage's rounds; the moments' two are of one round each.
_OF_STAGE = {Stage.SEGMENT: ("segmenter",), Stage.ADVERSARIAL: ("critic", "paired")}
_OF_MOMENTS = ("level", "spread")


def state_told_privacy(folder: RunFolder, config: RunConfig, public: Model, *, log: RunLog) -> None:
    """Write the statement from the record; a site that told no epsilon is named in a note."""
    events = read_events(folder.metrics)
    rounds = [e for e in events if isinstance(e, RoundEvent) and e.arm is Arm.PRIVATE]
    told: dict[str, Told] = {site: said for event in rounds for site, said in event.told.items()}
    protected = config.privacy != "off"
    silent = sorted(site for site, said in told.items() if protected and said.epsilon is None)
    if silent:
        log.append(NoteEvent(text=f"No epsilon was told by {', '.join(silent)}: ask them for it."))
    budget = plan_budget(config, public)
    sites = {
        site: SitePrivacy(
            epsilon=said.epsilon,
            cap=said.cap,
            delta=said.delta,
            patients_declared=said.patients,
            mechanisms=_asked(site, rounds, budget, config),
        )
        for site, said in sorted(told.items())
        if site not in silent
    }
    arms = {Arm.PRIVATE: ArmPrivacy(protected=protected, sites=sites)}
    # The run's seed is of public things alone; a site says itself where its noise is a rehearsal's.
    seeded = any(said.rehearsal for said in told.values())
    write_privacy(folder.privacy, PrivacyStatement(seeded=seeded, arms=arms))


def _asked(
    site: str, rounds: Sequence[RoundEvent], budget: Budget, config: RunConfig
) -> tuple[MechanismSpent, ...]:
    """The mechanisms of the rounds that a site answered."""
    steps = {
        "segmenter": config.segment.steps,
        "critic": config.adversarial.steps,
        "paired": config.adversarial.generator_steps,
    }
    releases: dict[str, int] = {}
    for event in rounds:
        if site not in event.sites:
            continue
        names = _OF_STAGE.get(event.stage, ())
        if event.stage is Stage.MOMENTS:
            names = (_OF_MOMENTS[event.round - 1],)
        for name in names:
            releases[name] = releases.get(name, 0) + 1
    return tuple(
        MechanismSpent(
            name=name,
            clip=mechanism.clip if isfinite(mechanism.clip) else 0.0,
            noise_multiplier=mechanism.noise_multiplier,
            sampling_rate=mechanism.sampling_rate,
            steps=count * steps.get(name, 1),
            releases=count,
        )
        for name, count in releases.items()
        if (mechanism := budget.mechanisms.get(name)) is not None
    )
