"""Whom a site believes, and how it is believed: seals on plans that come, on updates that go.

A site that names its coordinator's key in `site.toml` takes sealed plans only, each once, and
seals what it answers with its own key, `keys/signing.key`, made here by `medsynth-client init`.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from medsynth_common.durable import append_line, write_bytes
from medsynth_common.errors import BadRecord, Problem, Replayed
from medsynth_common.identity import SigningKey, VerifyKey
from medsynth_common.identity.sealing import (
    CLOCK_SLACK,
    Sealed,
    check_plan_seal,
    seal_update,
)
from medsynth_common.plan import RoundPlan
from medsynth_common.update import SiteUpdate

#: Seals an update as the answer to one question.
SealAnswer = Callable[[SiteUpdate], SiteUpdate]

SIGNING_KEY: Final = Path("keys") / "signing.key"


class Credentials:
    """One site's: the coordinator's public key, its own private one, and the seals it has taken."""

    def __init__(
        self, folder: Path, coordinator: VerifyKey, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._coordinator = coordinator
        self._key = SigningKey.load(folder / SIGNING_KEY)
        self._clock = clock
        self._taken = TakenSeals(folder / "seals.jsonl", now=clock())

    def take(self, plan: RoundPlan) -> SealAnswer:
        """Check the plan's seal and take it, once, on disk; give what seals the answer to it.

        Raises BadSignature, WrongAddress, Expired or Replayed.
        """
        question = check_plan_seal(plan, self._coordinator, now=self._clock())
        self._taken.add(question)
        return lambda update: seal_update(update, self._key, question=question, now=self._clock())


class WithinOneMachine:
    """The credentials of a site that runs under its coordinator: nothing is sealed."""

    def take(self, plan: RoundPlan) -> SealAnswer:
        """Take any plan; the answer goes back as it is."""
        return lambda update: update


class TakenSeals:
    """The nonces of seals that were taken, in a file, until each would be refused as expired."""

    def __init__(self, path: Path, *, now: float) -> None:
        self._path = path
        read = self._read()
        self._until = {nonce: until for nonce, until in read.items() if until > now - CLOCK_SLACK}
        if len(self._until) < len(read):
            lines = (_line(nonce, until) + "\n" for nonce, until in self._until.items())
            write_bytes(path, "".join(lines).encode())

    def add(self, sealed: Sealed) -> None:
        """Note a seal. Raises `Replayed` when it was noted before."""
        if sealed.nonce in self._until:
            raise Replayed(f"the seal of {sealed.stage} round {sealed.round} was taken before")
        append_line(self._path, _line(sealed.nonce, sealed.expires))
        self._until[sealed.nonce] = sealed.expires

    def _read(self) -> dict[str, float]:
        if not self._path.exists():
            return {}
        # A last line without its end was cut by a crash, before its plan was worked on.
        *whole, torn = self._path.read_bytes().split(b"\n")
        if torn:
            write_bytes(self._path, b"".join(line + b"\n" for line in whole))
        try:
            return {entry["nonce"]: float(entry["until"]) for entry in map(json.loads, whole)}
        except (ValueError, KeyError, TypeError) as error:
            problem = Problem(
                name=str(self._path),
                value="a line that does not read",
                wanted="the seals taken, as they were written",
                mend="restore it from a backup",
            )
            raise BadRecord(problem) from error


def load_credentials(folder: Path, coordinator: str | None) -> Credentials | WithinOneMachine:
    """Load the site's credentials; without a coordinator's key it is within one machine."""
    if coordinator is None:
        return WithinOneMachine()
    return Credentials(folder, VerifyKey.parse(coordinator, name="site.toml: coordinator_key"))


def _line(nonce: str, until: float) -> str:
    return json.dumps({"nonce": nonce, "until": until})
