"""`site.toml`: the site's own file. It is never the coordinator's to write or to change."""

import json
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from medsynth_client.policy import SitePolicy, key_problem
from medsynth_common.dataset.source import Source
from medsynth_common.errors import BadConfig, Problem
from medsynth_common.plan import Name, problems_of
from medsynth_common.privacy.mechanism import Value


class ConnectionSettings(Value):
    """How the site reaches its coordinator, where that needs saying.

    Attributes:
        extra_ca: a PEM file of certificate authorities that are trusted besides the one on the
            coordinator's card: a proxy's that opens TLS. It can read what passes, and forge
            nothing, since plans and updates are sealed.

    """

    extra_ca: str | None = Field(default=None, min_length=1)


class SiteFile(Value):
    """What a site says about itself.

    Attributes:
        name: of the site, in every plan and record.
        declared_patients: its public size: the denominator of private means and the weight in
            averages. Not the true count, which one patient more or less would change.
        source: where the patients are.
        policy: what the site allows.
        held_out: patients that are never trained on: their names, or a share of all, which the
            site's own key draws. `evaluate` measures on them, and they stay here.
        coordinator_key: public key of the coordinator, whose seal every plan must bear; None
            where site and coordinator are one machine's.
        connection: how it is reached.
        simulation_seed: makes noise replayable, for rehearsals only; a hospital leaves it out.

    """

    name: Name
    declared_patients: int = Field(ge=1, le=1_000_000)
    source: Source
    policy: SitePolicy
    held_out: Annotated[float, Field(ge=0, le=0.9)] | tuple[str, ...] = 0.0
    coordinator_key: str | None = Field(default=None, pattern=r"^ed25519:[0-9a-f]{64}$")
    connection: ConnectionSettings = ConnectionSettings()
    simulation_seed: int | None = Field(default=None, ge=0, lt=2**62)

    @property
    def rehearsal_problem(self) -> Problem | None:
        """What keeps this from being a hospital: noise that whoever knows the seed can repeat."""
        if self.simulation_seed is None or self.coordinator_key is None:
            return None  # without a coordinator beyond this machine it is a simulation
        return Problem(
            name="site.toml: simulation_seed",
            value=str(self.simulation_seed),
            wanted="no seed: noise that can be repeated protects nobody",
            mend="remove it",
        )

    @classmethod
    def load(cls, path: Path) -> "SiteFile":
        """Read and check the file. Raises `BadConfig` with every problem in it."""
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadConfig(
                Problem(name=str(path), value=type(error).__name__, wanted="a readable TOML file")
            ) from error
        try:
            # As JSON, for strict values; `default` is for dates, which are none of ours.
            return cls.model_validate_json(json.dumps(values, default=str))
        except ValidationError as error:
            raise BadConfig(_problems_of(error, path)) from error


def _problems_of(error: ValidationError, path: Path) -> list[Problem]:
    problems = problems_of(error, name=str(path))
    for number, fault in enumerate(error.errors(include_url=False)):
        match fault["loc"]:
            case ("policy", str(key), *_):
                problems[number] = key_problem(problems[number].name, key, fault)
    return problems
