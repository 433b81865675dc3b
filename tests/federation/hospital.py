"""A true hospital: a folder, and `medsynth-client run` with its two processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import tomli_w

from medsynth_client.credentials import SIGNING_KEY
from medsynth_client.enrolment import SITE_CARD
from medsynth_client.node_key import NODE_KEY, make_node_key, public_line
from medsynth_client.status_file import read_status
from medsynth_common.dataset.source import PhantomSource
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard, SiteCard, read_card
from medsynth_common.phantom import SITE_SCANNERS
from tiny import FIRST_SEED, PATIENTS

SECONDS: Final = 60.0


@dataclass
class Hospital:
    """One site, made in `folder`; `start` runs it."""

    folder: Path
    process: subprocess.Popen[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def card(self) -> SiteCard:
        return read_card(self.folder / SITE_CARD, SiteCard)

    @property
    def status(self) -> dict[str, Any]:
        return read_status(self.folder)

    def start(self, *arguments: str, command: str = "run") -> "Hospital":
        """Start the site, or another command of it."""
        words = [sys.executable, "-m", "medsynth_client", command, str(self.folder), *arguments]
        self.process = subprocess.Popen(
            words,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment},
        )
        return self

    def pid(self, process: str) -> int:
        """The process of the node or the trainer as it runs now."""
        pid: int = self.status[process]["pid"]
        return pid

    def kill(self, process: str) -> None:
        os.kill(self.pid(process), signal.SIGKILL)

    def wait(self, condition: Callable[[dict[str, Any]], Any], *, seconds: float = SECONDS) -> None:
        """Wait until the status says so."""
        deadline = time.monotonic() + seconds
        while not condition(self.status):
            assert time.monotonic() < deadline, json.dumps(self.status, indent=2)
            assert self.process is None or self.process.poll() is None, self.errors()
            time.sleep(0.1)

    def connected(self) -> "Hospital":
        self.wait(lambda status: status.get("node", {}).get("phase") == "waiting")
        return self

    def log(self, process: str) -> str:
        path = self.folder / "logs" / f"{process}.log"
        return path.read_text() if path.exists() else ""

    def stop(self) -> int:
        """Ask it to end; gives the exit status."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self, *, seconds: float = SECONDS) -> int:
        assert self.process is not None
        self._told = self.process.communicate(timeout=seconds)[1]
        code, self.process = self.process.returncode, None
        return code

    def errors(self) -> str:
        """What it told on standard error, once it has ended."""
        if self.process is not None:
            self.ended()
        return self._told


def make_hospital(folder: Path, *, name: str, card: CoordinatorCard, **policy: Any) -> Hospital:
    """A site of three phantoms that obeys the coordinator of this card."""
    signing = SigningKey.generate()
    signing.save(folder / SIGNING_KEY)
    node = make_node_key(folder / NODE_KEY)
    card.write(folder / "coordinator.card")
    own = SiteCard(site=name, node_key=public_line(node), signing_key=signing.public.text)
    own.write(folder / SITE_CARD)
    source = PhantomSource(scanner=SITE_SCANNERS[0], patients=PATIENTS, seed=FIRST_SEED)
    limits = {
        "epsilon_cap": 8.0,
        "delta": 1e-3,
        "stages": ["moments", "segment"],
        "minimum_patients": 1,
    }
    values = {
        "name": name,
        "declared_patients": PATIENTS,
        "coordinator_key": card.signing_key,
        "source": source.model_dump(mode="json"),
        "policy": limits | policy,
    }
    (folder / "site.toml").write_text(tomli_w.dumps(values))
    return Hospital(folder)


def copy_of(hospital: Hospital, folder: Path) -> Hospital:
    """The same site in another folder, before it ever ran."""
    shutil.copytree(hospital.folder, folder)
    return Hospital(folder)
