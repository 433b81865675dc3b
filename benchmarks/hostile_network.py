"""Four machines that lose each other: does a federation end as if nothing had happened?

A coordinator and three hospitals, each in a network namespace, run a small seeded federation over
TLS with enrolled keys. A hospital's link is cut in the middle of a round, and nodes, trainers and
the coordinator are killed (-9) at random moments; the coordinator's command is then given again.
At the end the weights are compared with a simulation's, byte by byte, and every ledger with what
was released. `python -m benchmarks.hostile_network --kills 30 --cut 90`, as root.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import tomli_w

from benchmarks.crash_matrix import SETTINGS, WEIGHTS, Undisturbed, run_undisturbed, uncharged
from benchmarks.namespaces import Network
from medsynth_client.node_key import make_node_key, public_line
from medsynth_common.durable import write_json
from medsynth_common.errors import ConnectionFailed
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard, SiteCard, read_card
from medsynth_server.record import RoundEvent, read_events

SITES: Final = ("site-1", "site-2", "site-3")
COORDINATOR: Final = "coord"
_PORT: Final = 8443
_LOOK_SECONDS: Final = 0.1
#: Between two kills, seconds: shorter and longer than a process takes to come back.
_PAUSE: Final = (2.0, 20.0)
#: A federation that has not ended by then never will.
_LONGEST: Final = 3600.0
_COORDINATOR_SETTINGS: Final = {"quorum": len(SITES), "repeats": 50, "join_deadline": 900.0}


@dataclass(kw_only=True)
class Disturbed:
    """One federation, and what was done to it.

    Attributes:
        folder: holds the coordinator's and the hospitals' folders.
        network: the machines.
        killed: whom, in order.
        broken: the promises that were not kept.

    """

    folder: Path
    network: Network
    killed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def study(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "study"

    def found(self, like: Undisturbed) -> None:
        """Found the federation and enrol the hospitals, with a simulation's patients and seeds."""
        address = f"{self.network.address(COORDINATOR)}:{_PORT}"
        _server("init", self.study, "--address", address)
        settings = tomllib.loads((self.study / "federation.toml").read_text())
        settings["coordinator"] |= _COORDINATOR_SETTINGS
        settings["run"] = _settings()
        (self.study / "federation.toml").write_text(tomli_w.dumps(settings))
        for site in SITES:
            _make_hospital(self.folder / site, like, self.study / "coordinator.card")
            card = self.folder / site / "site.card"
            shown = read_card(card, SiteCard).fingerprint
            _server("sites", "add", self.study, site, "--card", card, "--fingerprint", shown)

    def run(self, *, kills: int, cut: float, draw: random.Random) -> None:
        """Run it, and disturb it, until it has ended."""
        hospitals = {site: self._hospital(site) for site in SITES}
        coordinator = self._coordinator()
        due = time.monotonic() + 20
        down_until, victim_of_cut = (0.0 if cut else -1.0), draw.choice(SITES)
        give_up = time.monotonic() + _LONGEST
        try:
            while time.monotonic() < give_up:
                time.sleep(_LOOK_SECONDS)
                now = time.monotonic()
                if (code := coordinator.poll()) == 0:
                    return
                if code is not None and code != -signal.SIGKILL:
                    self.broken.append(f"the coordinator ended with {code}: {self._last_words()}")
                    return
                if code is not None:
                    coordinator = self._coordinator()
                for site, hospital in hospitals.items():
                    # Its first connection failed: a service manager would start it again.
                    if hospital.poll() == ConnectionFailed.exit_code:
                        hospitals[site] = self._hospital(site)
                if down_until == 0.0 and self._rounds() >= 2:  # in the midst of one
                    self.network.link(victim_of_cut, up=False)
                    down_until = now + cut
                elif 0.0 < down_until < now:
                    self.network.link(victim_of_cut, up=True)
                    down_until = -1.0
                # Not before the first round: public training alone is the coordinator's affair.
                if len(self.killed) < kills and now > due and self._rounds() >= 1:
                    self._kill(draw, coordinator)
                    due = now + draw.uniform(*_PAUSE)
            self.broken.append(f"not finished after {_LONGEST:.0f} s")
        finally:
            everyone = (*hospitals.values(), coordinator)
            for process in everyone:
                process.terminate()
            for process in everyone:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(60)

    def judge(self, like: Undisturbed) -> None:
        """Compare with the simulation, and each ledger with its audit log."""
        run = self.study / "run"
        for name in WEIGHTS:
            ours, theirs = (one / "weights" / name for one in (run, like.folder))
            if not ours.is_file() or ours.read_bytes() != theirs.read_bytes():
                self.broken.append(f"{name} is not the undisturbed run's")
        for event in read_events(run / "metrics.jsonl"):
            if isinstance(event, RoundEvent) and len(set(event.sites)) != len(event.sites):
                self.broken.append(f"{event.stage} round {event.round}: a site counted twice")
        for site in SITES:
            if (self.folder / site / "ledger.db").exists():
                self.broken += [f"{site}: {problem}" for problem in uncharged(self.folder / site)]
            else:
                self.broken.append(f"{site}: never asked, it has no ledger")

    def _kill(self, draw: random.Random, coordinator: subprocess.Popen[bytes]) -> None:
        who = draw.choice(("node", "trainer", "coordinator"))
        if who == "coordinator":
            coordinator.kill()
            coordinator.wait()
        else:
            site = draw.choice(SITES)
            pids = _processes(who, self.folder / site)
            if not pids:  # it is being started again just now
                return
            with suppress(ProcessLookupError):
                os.kill(pids[0], signal.SIGKILL)
            who = f"{who} of {site}"
        self.killed.append(f"{who} after {self._rounds()} rounds")

    def _rounds(self) -> int:
        path = self.study / "run" / "metrics.jsonl"
        if not path.exists():
            return 0
        return path.read_bytes().count(b'"event":"round"')

    def _last_words(self) -> str:
        return " | ".join((self.folder / f"{COORDINATOR}.log").read_text().splitlines()[-5:])

    def _hospital(self, site: str) -> subprocess.Popen[bytes]:
        return self._start(site, "medsynth_client", self.folder / site)

    def _coordinator(self) -> subprocess.Popen[bytes]:
        return self._start(COORDINATOR, "medsynth_server", self.study)

    def _start(self, machine: str, program: str, folder: Path) -> subprocess.Popen[bytes]:
        log = self.folder / f"{machine}.log"
        return self.network.start(machine, [program, "run", folder], log)


def _settings() -> dict[str, object]:
    settings = tomllib.loads(SETTINGS)
    settings["federation"] |= {"sites": len(SITES), "deadline": 60.0}
    return settings


def _make_hospital(folder: Path, like: Undisturbed, card: Path) -> None:
    folder.mkdir()
    key = read_card(card, CoordinatorCard).signing_key
    simulated = (like.folder / "sites" / folder.name / "site.toml").read_text()
    (folder / "site.toml").write_text(f'coordinator_key = "{key}"\n{simulated}')
    (folder / "coordinator.card").write_bytes(card.read_bytes())
    signing = SigningKey.generate()
    signing.save(folder / "keys" / "signing.key")
    node = public_line(make_node_key(folder / "keys" / "node.key"))
    made = SiteCard(site=folder.name, node_key=node, signing_key=signing.public.text)
    made.write(folder / "site.card")


def _server(*words: object) -> None:
    command = [sys.executable, "-m", "medsynth_server", *map(str, words)]
    subprocess.run(command, check=True, capture_output=True)


def _processes(kind: str, folder: Path) -> list[int]:
    """The node or trainer of a hospital: it has the hospital's folder among its words."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"medsynth_client" in words and kind.encode() in words:
                found += [int(entry.name)] if str(folder).encode() in words else []
    return found


def main(kills: int = 30, *, each: int = 10, cut: float = 90.0, seed: int = 1) -> bool:
    """Disturb federations until `kills` were made; print and write what became of them."""
    if os.geteuid() != 0:
        print("network namespaces need root", file=sys.stderr)
        return False
    draw = random.Random(seed)
    told: list[dict[str, Any]] = []
    top = Path(tempfile.mkdtemp(prefix="medsynth-network-"))
    with ExitStack() as held:
        held.callback(print, f"logs are in {top}", flush=True)
        (top / "tiny.toml").write_text(tomli_w.dumps(_settings()))
        like = run_undisturbed(top / "tiny.toml", top / "undisturbed")
        left = kills
        while not told or left > 0:
            folder = top / f"federation-{len(told)}"
            folder.mkdir()
            began = time.monotonic()
            with Network([COORDINATOR, *SITES]) as network:
                disturbed = Disturbed(folder=folder, network=network)
                disturbed.found(like)
                disturbed.run(kills=min(each, left), cut=cut if not told else 0.0, draw=draw)
            disturbed.judge(like)
            seconds = time.monotonic() - began
            told.append(
                {
                    "seconds": seconds,
                    "cut": cut if not told else 0.0,
                    "killed": disturbed.killed,
                    "broken": disturbed.broken,
                }
            )
            _tell(disturbed, seconds)
            left -= len(disturbed.killed)
            if not disturbed.killed:
                break  # it ended before anything could be killed: it would again
        if not any(one["broken"] for one in told):
            held.pop_all()
            shutil.rmtree(top)
    write_json(Path("runs/bench/hostile_network.json"), {"seed": seed, "federations": told})
    return not any(one["broken"] for one in told)


def _tell(disturbed: Disturbed, seconds: float) -> None:
    kept = "as undisturbed" if not disturbed.broken else "BROKEN"
    print(f"{seconds:.0f} s, {len(disturbed.killed)} killed: {kept}", flush=True)
    _list("killed", disturbed.killed)
    _list("broken", disturbed.broken)


def _list(what: str, lines: Sequence[str]) -> None:
    for line in lines:
        print(f"  {what}: {line}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--each", type=int, default=10, help="kills in one federation")
    parser.add_argument("--cut", type=float, default=90.0, help="seconds without a link; 0: none")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    met = main(given.kills, each=given.each, cut=given.cut, seed=given.seed)
    raise SystemExit(0 if met else 1)
