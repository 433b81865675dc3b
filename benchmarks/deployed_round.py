"""A round without any training: seconds with two sites, the coordinator's memory with four.

A coordinator and its sites as they are deployed, each a process of its own on loopback: TLS, keys
and seals, the link's database, `medsynth-client node` and a trainer behind its socket. The trainer
trains nothing: it gives back the plan's weights, a little moved. So a round's seconds are all
overhead, and the coordinator's memory is what the weights need on their way.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any, Final

import tomli_w

from benchmarks import memory, results
from benchmarks.results import Cell, Goal
from medsynth_client.node_key import NODE_KEY, load_node_key, make_node_key, public_line
from medsynth_common import __version__
from medsynth_common.dataset.source import PhantomSource
from medsynth_common.identity import SigningKey, VerifyKey
from medsynth_common.identity.cards import CoordinatorCard, SiteCard, read_card
from medsynth_common.identity.sealing import check_plan_seal, seal_update
from medsynth_common.networks import NetworkSettings
from medsynth_common.phantom import SITE_SCANNERS
from medsynth_common.plan import RoundPlan, SegmentSettings, Stage
from medsynth_common.update import SiteUpdate, UpdateHeader
from medsynth_common.wire.parts import plan_from_parts, update_parts
from medsynth_common.wire.site_pb2 import Description, PlanPart, UpdatePart
from medsynth_common.wire.trainer_rpc import serve
from medsynth_server.checkpoint import Checkpoint
from medsynth_server.config import RunConfig
from medsynth_server.coordinator.opening import Attendance, Premises, opened
from medsynth_server.coordinator.pki import make_authority, make_server
from medsynth_server.federation import Federation
from medsynth_server.model import Model
from medsynth_server.progress import LineProgress
from medsynth_server.record import Arm, RoundEvent, RunLog, read_events
from medsynth_server.stages.asking import Asking
from medsynth_server.strategies import Answer, Combiner

#: Megabytes of weights -> seconds that a round of two sites may take beyond the training.
BARS: Final = {1: 1.0, 50: 3.0}
#: The coordinator's peak memory, in sizes of the model, with four sites.
MEMORY_BAR, MEMORY_MEGABYTES, MEMORY_SITES = 3.0, 500, 4
ROUNDS: Final = 7
#: The segmenter's channels at (about) so many megabytes.
_CHANNELS: Final[Mapping[int, tuple[int, ...]]] = {
    1: (16, 32, 64),
    50: (128, 256, 384),
    500: (432, 832, 1024),
}
_GRID: Final = (32, 32, 32)
_PATIENTS: Final = 3


class Still:
    """A trainer that does not train: its answer is the plan's weights, a little moved."""

    def __init__(self, folder: Path) -> None:
        card = read_card(folder / "coordinator.card", CoordinatorCard)
        self._coordinator = VerifyKey.parse(card.signing_key, name="coordinator.card")
        self._key = SigningKey.load(folder / "keys" / "signing.key")

    def describe(self) -> Description:
        """Tell who is here."""
        return Description(sites=["still"], version=__version__)

    def carry(self, parts: Iterable[PlanPart]) -> Iterator[UpdatePart]:
        """Answer at once."""
        plan = plan_from_parts(parts)
        question = check_plan_seal(plan, self._coordinator, now=time.time())
        header = UpdateHeader(
            run=plan.header.run,
            site=plan.header.site,
            stage=plan.header.stage,
            round=plan.header.round,
            plan_digest=plan.digest(),
            declared_patients=_PATIENTS,
            delta=1e-3,
        )
        # Moved by each site's own step: equal contents would travel once for all sites.
        step = 1e-6 * (1 + int(plan.header.site.removeprefix("site-")))
        for tensor in plan.weights.values():
            tensor.add_(step)  # they are ours: read from the wire
        update = SiteUpdate(header=header, weights=plan.weights, own={})
        update = seal_update(update, self._key, question=question, now=time.time())
        yield from update_parts(update)


class Averaging:
    """A stage that only sends the segmenter round."""

    name = Stage.SEGMENT

    def __init__(self, networks: NetworkSettings, rounds: int) -> None:
        self.rounds = rounds
        config = RunConfig(grid=_GRID, crop=_GRID, networks=networks)
        self._asking = Asking(run="bench", config=config, public_seed=1)
        self._combiner = Combiner("fedavg")

    def plan(self, model: Model, site: str, round: int) -> RoundPlan | None:
        """Send the segmenter."""
        return self._asking.plan(
            stage=self.name,
            round=round,
            site=site,
            settings=SegmentSettings(),
            mechanisms=[],
            weights=model.part("segmenter"),
        )

    def combine(self, model: Model, round: int, answers: Sequence[Answer]) -> Model:
        """Average."""
        current = model.part("segmenter")
        weights, _ = self._combiner.combine(current, answers, round=round, memory={})
        return model.updated(weights)

    def after(self, model: Model, round: int) -> tuple[Model, Mapping[str, float]]:
        """Nothing is left to do."""
        return model, {}


def _model(megabytes: int) -> Model:
    networks = NetworkSettings(segmenter_channels=_CHANNELS[megabytes])
    whole = Model.fresh(networks, seed=1)
    return Model(networks=networks, tensors=whole.part("segmenter"))


def coordinate(folder: Path, *, megabytes: int, sites: int, rounds: int) -> None:
    """The coordinator's process: serve, ask, and print what memory it took."""
    idle = memory.held()
    start = [_model(megabytes)]
    networks = start[0].networks
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # building it took more; the peak counts from here
    bytes_of_model = sum(t.numel() * t.element_size() for t in start[0].tensors.values())
    cards = {f"site-{n}": _card(folder / f"site-{n}") for n in range(sites)}
    premises = Premises(
        database=folder / "link.db",
        listen=(folder / "address").read_text(),
        certificate=folder / "server.crt",
        key=folder / "server.key",
    )
    attendance = Attendance(quorum=sites, join_deadline=300.0, tell=lambda text: None)
    key = SigningKey.load(folder / "signing.key")
    with opened(premises, lambda: cards, key, attendance) as (grid, _):
        Federation(
            arm=Arm.PRIVATE,
            stages=[Averaging(networks, rounds)],
            grid=grid,
            checkpoint=Checkpoint(folder / "model.safetensors"),
            log=RunLog(folder / "metrics.jsonl"),
            progress=LineProgress(StringIO()),
            deadline=600.0,
            quorum=sites,
        ).run(start.pop())  # held by nobody else: a round's memory is its own
    print(json.dumps({"model": bytes_of_model, "idle": idle, "peak": memory.peak()}))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One federation's rounds.

    Attributes:
        seconds: of each round but the first, in which everything is started.
        told: the coordinator's bytes: model, idle, peak.

    """

    seconds: list[float]
    told: dict[str, int]


def measure(*, megabytes: int, sites: int, rounds: int) -> Measured:
    """Run one federation; its folder is removed."""
    folder = Path(tempfile.mkdtemp(prefix="medsynth-round-"))
    with ExitStack() as held:
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        _found(folder, sites)
        sizes = ("--megabytes", str(megabytes), "--sites", str(sites), "--rounds", str(rounds))
        coordinator = _start(held, folder / "coordinator.log", _us("coordinate", folder, *sizes))
        for number in range(sites):
            site = folder / f"site-{number}"
            socket = site / "t" / "s"
            _start(held, site / "trainer.log", _us("train", site))
            node = ["medsynth_client", "node", str(site), "--socket", str(socket)]
            _start(held, site / "node.log", [*node, "--keep-trying"])
        code = coordinator.wait()
        said = (folder / "coordinator.log").read_text()
        if code:
            raise SystemExit(f"the coordinator ended with {code}:\n{said}")
        events = read_events(folder / "metrics.jsonl")
        seconds = [event.seconds for event in events if isinstance(event, RoundEvent)]
        return Measured(seconds=seconds[1:], told=json.loads(said.splitlines()[-1]))


def _us(*words: object) -> list[str]:
    return ["benchmarks.deployed_round", *map(str, words)]


def _start(held: ExitStack, log: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    stream = held.enter_context(log.open("wb"))
    process = subprocess.Popen(
        [sys.executable, "-m", *words], stdout=stream, stderr=stream, env=environment
    )
    held.callback(process.wait)
    held.callback(process.kill)
    return process


def _found(folder: Path, sites: int) -> None:
    """Make the keys and files of a federation on loopback."""
    key = SigningKey.generate()
    key.save(folder / "signing.key")
    authority = make_authority("bench")
    server = make_server(authority, "127.0.0.1")
    (folder / "server.crt").write_bytes(server.certificate)
    (folder / "server.key").write_bytes(server.key)
    address = f"127.0.0.1:{_free_port()}"
    (folder / "address").write_text(address)
    card = CoordinatorCard(
        federation="bench",
        address=address,
        signing_key=key.public.text,
        ca=authority.certificate.decode(),
    )
    for number in range(sites):
        _make_site(folder / f"site-{number}", card)


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _make_site(folder: Path, card: CoordinatorCard) -> None:
    (folder / "t").mkdir(parents=True, mode=0o700)
    SigningKey.generate().save(folder / "keys" / "signing.key")
    make_node_key(folder / NODE_KEY)
    card.write(folder / "coordinator.card")
    source = PhantomSource(scanner=SITE_SCANNERS[0], patients=_PATIENTS, seed=1)
    values: dict[str, Any] = {
        "name": folder.name,
        "declared_patients": _PATIENTS,
        "coordinator_key": card.signing_key,
        "source": source.model_dump(mode="json"),
        "policy": {"epsilon_cap": 8.0, "delta": 1e-3, "stages": [], "minimum_patients": 1},
    }
    (folder / "site.toml").write_text(tomli_w.dumps(values))


def _card(site: Path) -> SiteCard:
    node = public_line(load_node_key(site / NODE_KEY))
    signing = SigningKey.load(site / "keys" / "signing.key").public.text
    return SiteCard(site=site.name, node_key=node, signing_key=signing)


def train(folder: Path) -> None:
    """A trainer's process, until it is killed."""
    serve(Still(folder), folder / "t" / "s").wait_for_termination()


def main() -> bool:
    """Measure, print and record; whether every bar is met."""
    rows: list[dict[str, Cell]] = []
    goals = []
    for megabytes, bar in BARS.items():
        found = measure(megabytes=megabytes, sites=2, rounds=ROUNDS)
        seconds = median(found.seconds)
        rows.append({"weights, MB": megabytes, "sites": 2, "median seconds": seconds})
        what = f"a round of {megabytes} MB with two sites, no training"
        goals.append(Goal(what=what, figure=seconds, bar=bar, unit="s"))
    found = measure(megabytes=MEMORY_MEGABYTES, sites=MEMORY_SITES, rounds=3)
    model, peak = found.told["model"], found.told["peak"]
    rows.append(
        {
            "weights, MB": round(model / 1e6),
            "sites": MEMORY_SITES,
            "median seconds": median(found.seconds),
            "coordinator's peak, models": peak / model,
        }
    )
    what = f"coordinator's peak memory over the model, {MEMORY_SITES} sites"
    goals.append(Goal(what=what, figure=peak / model, bar=MEMORY_BAR))
    return results.record(
        "deployed_round",
        title="A deployed round without any training",
        about="Coordinator, nodes and trainers as processes of their own on loopback: TLS, keys, "
        f"seals and the link's database. Medians of {ROUNDS} rounds, of three at the largest size.",
        rows=rows,
        goals=goals,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=("coordinate", "train"))
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--megabytes", type=int, default=1)
    parser.add_argument("--sites", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    if given.part == "coordinate":
        sizes = {"megabytes": given.megabytes, "sites": given.sites, "rounds": given.rounds}
        coordinate(given.folder, **sizes)
    elif given.part == "train":
        train(given.folder)
    else:
        raise SystemExit(0 if main() else 1)
