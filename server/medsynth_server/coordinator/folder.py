"""The federation's folder: where everything lies, what is secret, and that one process serves it.

federation.toml   settings            keys/  signing.key server.key ca.key   (mode 0600)
coordinator.card  for hospitals       pki/   ca.crt server.crt
enrolment.txt     fingerprints        sites/ NAME.card, one a hospital
state/            the link's database, checkpoint, status.json, lock
run/              the run, as `simulate` leaves one
"""

import fcntl
import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from medsynth_common.errors import BadConfig, BadInput, Problem
from medsynth_common.plan import Name, problems_of
from medsynth_common.privacy.mechanism import Value
from medsynth_server.config import RunConfig, parse_config
from medsynth_server.coordinator.pki import Credential


class CoordinatorSettings(Value):
    """The `[coordinator]` table of federation.toml.

    Attributes:
        name: of the federation.
        address: host and port that hospitals connect to; the server certificate is for it.
        listen: host and port that the coordinator binds, which a proxy or a firewall may forward.
        quorum: how many sites must answer a round.
        join_deadline: seconds to wait for so many to be in touch.
        repeats: how often a round without a quorum is asked again before the run gives up.

    """

    name: Name
    address: str = Field(min_length=3, max_length=300)
    listen: str = Field(min_length=3, max_length=300)
    quorum: int = Field(default=2, ge=1, le=10_000)
    join_deadline: float = Field(default=3600.0, gt=0)
    repeats: int = Field(default=3, ge=0, le=1000)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of federation.toml: the coordinator's own settings, and the run's."""

    coordinator: CoordinatorSettings
    run: RunConfig


@dataclass(frozen=True)
class FederationFolder:
    """The paths of one federation."""

    path: Path

    @property
    def settings(self) -> Path:
        """What the operator may change."""
        return self.path / "federation.toml"

    @property
    def card(self) -> Path:
        """The coordinator's card, to send to every hospital."""
        return self.path / "coordinator.card"

    @property
    def sheet(self) -> Path:
        """Fingerprints to be read on the telephone."""
        return self.path / "enrolment.txt"

    @property
    def sites(self) -> Path:
        """The cards of enrolled hospitals."""
        return self.path / "sites"

    @property
    def signing_key(self) -> Path:
        """The key that plans are sealed with."""
        return self.path / "keys" / "signing.key"

    @property
    def server_key(self) -> Path:
        """The key of the server's certificate."""
        return self.path / "keys" / "server.key"

    @property
    def authority_key(self) -> Path:
        """The key of the federation's own authority; absent with an operator's certificate."""
        return self.path / "keys" / "ca.key"

    @property
    def server_certificate(self) -> Path:
        """What the server shows."""
        return self.path / "pki" / "server.crt"

    @property
    def authority_certificate(self) -> Path:
        """What hospitals believe; also stands on the card."""
        return self.path / "pki" / "ca.crt"

    @property
    def database(self) -> Path:
        """Nodes and messages of the link."""
        return self.path / "state" / "link.db"

    @property
    def status(self) -> Path:
        """What a running coordinator tells of itself."""
        return self.path / "state" / "status.json"

    @property
    def stop(self) -> Path:
        """Its presence asks a running coordinator to end after its round."""
        return self.path / "state" / "stop"

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.path / "run"

    def load(self) -> Settings:
        """Read federation.toml. Raises `BadConfig` with every problem in it."""
        try:
            values = tomllib.loads(self.settings.read_text(encoding="utf-8"))
        except OSError as error:
            value = error.strerror or type(error).__name__
            mend = f"medsynth-server init {self.path} --address HOST:PORT"
            problem = Problem(
                name=str(self.settings), value=value, wanted="a federation's settings", mend=mend
            )
            raise BadConfig(problem) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            problem = Problem(name=str(self.settings), value=str(error), wanted="valid TOML")
            raise BadConfig(problem) from error
        return _settings(values, name=self.settings.name)

    def server(self) -> Credential:
        """Read the server's key and certificate. Raises `BadConfig`."""
        try:
            return Credential(
                key=self.server_key.read_bytes(), certificate=self.server_certificate.read_bytes()
            )
        except OSError as error:
            value = error.strerror or type(error).__name__
            problem = Problem(name=str(error.filename), value=value, wanted="a readable file")
            raise BadConfig(problem) from error

    @property
    def running(self) -> bool:
        """Whether a coordinator serves this folder now."""
        try:
            with self.serving():
                return False
        except BadInput:
            return True

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Be the folder's one coordinator. Raises `BadInput` when there is one already."""
        lock = self.path / "state" / "lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                problem = Problem(
                    name=str(self.path),
                    value="a federation with a running coordinator",
                    wanted="one coordinator a federation",
                    mend=f"medsynth-server stop {self.path}",
                )
                raise BadInput(problem) from error
            yield


def _settings(values: dict[str, Any], *, name: str) -> Settings:
    problems: list[Problem] = [
        Problem(name=f"{name}: {key}", value="unknown table", wanted="[coordinator] or [run]")
        for key in values
        if key not in ("coordinator", "run")
    ]
    coordinator, run = None, None
    try:
        # As JSON, for strict values: a list is then a tuple, but 1 is still no `true`.
        table = json.dumps(values.get("coordinator", {}), default=str)
        coordinator = CoordinatorSettings.model_validate_json(table)
    except ValidationError as error:
        problems += problems_of(error, name=f"{name}: coordinator")
    try:
        run = parse_config(values.get("run", {}), name=f"{name}: run")
    except BadConfig as error:
        problems += error.problems
    if problems or coordinator is None or run is None:
        raise BadConfig(problems)
    return Settings(coordinator=coordinator, run=run)
