"""`privacy.json`: what each simulated site spent, by the site's own ledger.

The figures are the hospitals': they come from `medsynth-client privacy status`, run as a hospital
would, never from the coordinator's own count.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsynth_common.errors import MedsynthError
from medsynth_server.record import (
    Arm,
    ArmPrivacy,
    MechanismSpent,
    PrivacyStatement,
    SitePrivacy,
    write_privacy,
)
from medsynth_server.run_folder import RunFolder
from medsynth_server.simulated_arm import SimulatedArm


def state_privacy(
    folder: RunFolder, simulated: Mapping[Arm, SimulatedArm], *, seeded: bool
) -> None:
    """Ask every site for its statement and write `privacy.json`."""
    arms = {}
    for arm, one in simulated.items():
        names = [site.name for site in one.sites]
        statuses = _ask_sites([one.site_folder(name) for name in names])
        arms[arm] = ArmPrivacy(
            protected=one.protected,
            sites={
                site.name: _site(status, declared=site.declared)
                for site, status in zip(one.sites, statuses, strict=True)
            },
        )
    write_privacy(folder.privacy, PrivacyStatement(seeded=seeded, arms=arms))


def _site(status: Mapping[str, Any], *, declared: int) -> SitePrivacy:
    mechanisms = tuple(
        MechanismSpent(
            name=one["name"],
            clip=one["clip"] or 0.0,
            noise_multiplier=one["noise_multiplier"],
            sampling_rate=one["sampling_rate"],
            steps=one["steps"],
            releases=one["releases"],
            epsilon_alone=one["epsilon_alone"],
        )
        for project in status["projects"]
        for one in project["mechanisms"]
    )
    return SitePrivacy(
        epsilon=status["epsilon"],
        cap=status["cap"],
        delta=status["delta"],
        patients_declared=declared,
        mechanisms=mechanisms,
    )


def _ask_sites(folders: Sequence[Path]) -> list[Mapping[str, Any]]:
    command = [
        *(sys.executable, "-m", "medsynth_client", "privacy", "status"),
        *(str(folder) for folder in folders),
        *("--format", "json"),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise MedsynthError(f"a site's ledger could not be read: {answer.stderr.strip()}")
    statuses: list[Mapping[str, Any]] = json.loads(answer.stdout)
    return statuses
