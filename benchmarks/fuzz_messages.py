"""A hundred thousand spoilt messages against a live trainer and a live coordinator's checks.

Real are the decoders, policy, ledger, gate, audit log and memory of a site, and the coordinator's
checks of what comes up; the work on patients is replaced, so that it is quick, and sometimes
gives back what must not leave. The accountant is a quick upper bound. After every message the
site's records must tell exactly what came of it. `python -m benchmarks.fuzz_messages`.
"""

import argparse
import hashlib
import json
import logging
import math
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import tomli_w
import torch
from flwr.app import Message
from rich.console import Console
from rich.table import Table

from benchmarks.crash_matrix import uncharged
from benchmarks.message_mutations import spoil
from medsynth_client import site as site_file
from medsynth_client import verification
from medsynth_client.order import Order, Outcome
from medsynth_client.spending import Spent
from medsynth_client.stages import WORK
from medsynth_client.trainer import Trainer
from medsynth_common import errors
from medsynth_common.dataset.source import PhantomSource
from medsynth_common.durable import write_json
from medsynth_common.networks import NetworkSettings
from medsynth_common.phantom import SITE_SCANNERS
from medsynth_common.plan import (
    AdversarialSettings,
    MomentsSettings,
    PlanHeader,
    RoundPlan,
    SegmentSettings,
    Settings,
    Stage,
    canonical_json,
)
from medsynth_common.privacy.mechanism import Gaussian
from medsynth_common.tensors import under
from medsynth_common.update import LARGEST_WEIGHT, SiteUpdate
from medsynth_common.wire.forms import expected_mechanisms, expected_plan, expected_update
from medsynth_common.wire.parts import (
    plan_parts,
    update_from_parts,
    update_tensors,
)
from medsynth_common.wire.records import plan_to_records, update_to_records
from medsynth_common.wire.site_pb2 import PlanPart, UpdatePart
from medsynth_server.engines.by_messages import update_in
from medsynth_server.federation import _checked
from medsynth_server.flower import reply, start_identity, train_message

SITE: Final = "site-a"
#: Stands in every error of the replaced work; it must be in no message and in no record.
SECRET: Final = "anna-1970-03-02"
#: What the trainer may answer: errors made on purpose, and the one that the work here dies of.
NAMED: Final = {name for name, kind in vars(errors).items() if isinstance(kind, type)} | {
    RuntimeError.__name__
}
#: Messages to one site before its folder is begun anew, as records grow with every message.
LIFE: Final = 2000
#: How much the process may grow from the first life's end to the last's, MiB.
GROWTH: Final = 150.0

_NETWORKS: Final = NetworkSettings(
    generator_channels=(4, 8), detail_channels=4, critic_channels=4, segmenter_channels=(4, 8)
)
_SETTINGS: Final = (
    MomentsSettings(),
    SegmentSettings(),
    AdversarialSettings(),
    AdversarialSettings(paired_weight=1.0),
)
#: Some lives end in a spent budget, some do not.
_CAPS: Final = (6.0, 300.0, 1000.0)


def good_plan(draw: random.Random, round: int) -> RoundPlan:
    """A plan that a site carries out, of any stage."""
    header = _header(
        draw.choice(_SETTINGS),
        run=draw.choice(("run-1", "run-2")),
        round=round,
        public_seed=draw.randrange(2**32),
    )
    mechanisms = tuple(
        Gaussian(
            name=name,
            clip=1.0,
            noise_multiplier=draw.choice((5.0, 20.0)),
            sampling_rate=draw.choice((0.2, 1.0)),
            steps=draw.choice((1, 5)),
        )
        for name in expected_mechanisms(header)
    )
    header = PlanHeader(**{**dict(header), "mechanisms": mechanisms})
    return RoundPlan(header=header, weights=_weights(header.stage))


def _header(settings: Settings, **fields: Any) -> PlanHeader:
    """A header of the smallest plan, without its mechanisms."""
    first = {"run": "run-1", "round": 1, "site": SITE, "grid": (24, 24, 24), "crop": (16, 16, 16)}
    last = {"networks": _NETWORKS, "settings": settings, "mechanisms": (), "public_seed": 0}
    return PlanHeader(stage=settings.stage, **{**first, **last, **fields})


@cache
def _weights(stage: Stage) -> Mapping[str, torch.Tensor]:
    """Weights of the form that a stage takes, made once: networks are slow to lay out."""
    settings = next(one for one in _SETTINGS if one.stage is stage)
    return _numbers(expected_plan(_header(settings)))


def _numbers(form: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(one.shape).to(one.dtype)
        if one.is_floating_point()
        else torch.zeros(one.shape, dtype=one.dtype)
        for name, one in form.items()
    }


@dataclass
class _Work:
    """Takes the place of training; now and then it dies or gives back what must not leave."""

    draw: random.Random

    def __call__(self, order: Order) -> Outcome:
        plan = RoundPlan(header=order.plan, weights=order.weights)
        made = _numbers(expected_update(plan))
        match self.draw.randrange(20):
            case 0:
                raise RuntimeError(SECRET)
            case 1:
                made[next(iter(made))].fill_(math.nan)
            case 2:
                made["own.patients"] = torch.tensor(3.0)
            case 3:
                made[next(iter(made))].fill_(1e30)
        return Outcome(weights=under("weights", made), own=under("own", made), state={})


def _quick_epsilon(spent: Sequence[Spent], delta: float) -> float:
    """Zero-concentrated DP without amplification (Bun & Steinke 2016): an upper bound."""
    rho = sum(one.steps / (2 * one.noise_multiplier**2) for one in spent)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


@contextmanager
def _replaced(draw: random.Random) -> Iterator[None]:
    logger = logging.getLogger("medsynth_client.trainer")
    with ExitStack() as held:
        held.enter_context(patch.dict(WORK, dict.fromkeys(WORK, _Work(draw))))
        for module in (site_file, verification):
            held.enter_context(patch.object(module, "epsilon_of", _quick_epsilon))
        held.callback(setattr, logger, "disabled", logger.disabled)
        logger.disabled = True
        yield


@dataclass
class Tally:
    """What came of all messages.

    Attributes:
        outcomes: how many of each (direction, level, outcome).
        broken: promises that were not kept, each with the message's number.
        grown: MiB the process grew by, from the first life's end to the last's.

    """

    outcomes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    grown: float = 0.0


class Life:
    """One site from its first message to its last, under a real trainer."""

    def __init__(self, folder: Path, *, cap: float, draw: random.Random, tally: Tally) -> None:
        self.folder, self._draw, self._tally = folder, draw, tally
        source = PhantomSource(scanner=SITE_SCANNERS[0], patients=1, seed=1)
        policy = {
            "epsilon_cap": cap,
            "delta": 1e-5,
            "stages": ["moments", "segment", "adversarial"],
            "minimum_patients": 1,
            "maximum_voxels": 24**3,
        }
        values = {"name": SITE, "declared_patients": 1, "policy": policy}
        values["source"] = source.model_dump(mode="json")
        folder.mkdir(parents=True)
        (folder / "site.toml").write_text(tomli_w.dumps(values))
        self._trainer = Trainer([folder], device=torch.device("cpu"))
        self._old: list[RoundPlan] = []
        self._released: dict[str, str] = {}  # SHA-256 of every answer, and the plan it answers
        self._last: tuple[RoundPlan, SiteUpdate] | None = None

    def down(self, number: int) -> None:
        """Send one plan, spoilt or good, old or new; hold the answer against the records."""
        plan = good_plan(self._draw, 1 + number // 10)
        parts: Sequence[PlanPart] | None
        match self._draw.randrange(10):
            case 0:
                level, parts = "good", list(plan_parts(plan))
            case 1 if self._old:
                level, plan = "replayed", self._draw.choice(self._old)
                parts = list(plan_parts(plan))
            case 2 if self._last is not None:
                level, plan = "again", self._last[0]
                parts = list(plan_parts(plan))
            case _:
                header = canonical_json(plan.header)
                level, parts = spoil(header, plan.weights, PlanPart, self._draw)
        before = self._lines()
        if parts is None:
            self._count("plan", level, "no message: gRPC ends the call")
            return
        answer = list(self._trainer.carry(parts))
        self._hold(number, plan, level, answer, told=self._lines() - before)

    def up(self, number: int) -> None:
        """Spoil the site's last answer; the coordinator must use it whole or name its fault."""
        if self._last is None:
            return
        plan, update = self._last
        header, tensors = canonical_json(update.header), update_tensors(update)
        level, parts = spoil(header, tensors, UpdatePart, self._draw)
        if parts is None:
            self._count("update", level, "no message: gRPC ends the call")
            return
        try:
            got = update_from_parts(parts)
            if isinstance(got, SiteUpdate):
                got = update_in(reply(update_to_records(got), self._question(plan)))
            if isinstance(got, SiteUpdate):
                got = _checked(got, plan)
        except errors.BadMessage:
            got = errors.BadMessage.__name__
        except Exception as error:
            self._broken(number, f"the coordinator died of {type(error).__name__}: {error}")
            return
        self._count("update", level, got if isinstance(got, str) else "used")
        if isinstance(got, SiteUpdate):
            values = [one for one in update_tensors(got).values() if one.is_floating_point()]
            if not all(bool((one.abs() <= LARGEST_WEIGHT).all()) for one in values):
                self._broken(number, "an update that is not finite or too large was used")
            if got.header.plan_digest != plan.digest():
                self._broken(number, "another plan's update was used")

    def _question(self, plan: RoundPlan) -> Message:
        return train_message(plan_to_records(plan), 1000)

    def end(self) -> None:
        """Hold audit log and ledger against each other."""
        for problem in uncharged(self.folder):
            self._broken(-1, problem)
        records = b"".join(path.read_bytes() for path in self.folder.glob("*.jsonl"))
        if SECRET.encode() in records:
            self._broken(-1, "an error's text is in the audit log")

    def _hold(
        self, number: int, plan: RoundPlan, level: str, answer: Sequence[UpdatePart], *, told: int
    ) -> None:
        sent = b"".join(part.SerializeToString() for part in answer)
        if SECRET.encode() in sent:
            self._broken(number, "an error's text was sent")
        got = update_from_parts(answer)
        if isinstance(got, str):
            self._count("plan", level, got)
            if got not in NAMED:
                self._broken(number, f"{got} is no error of ours")
            if told != 1 or self._event()["error"] != got:
                self._broken(number, f"{told} lines tell of a {got}")
            return
        digest = hashlib.sha256(b"".join(part.chunk for part in answer)).hexdigest()
        if told == 0:
            self._count("plan", level, "answered from memory")
            if self._released.get(digest) != got.header.plan_digest:
                self._broken(number, "an answer was sent that was never released")
            return
        self._count("plan", level, "released")
        event = self._event()
        wanted = ("released", digest, got.header.plan_digest)
        if told != 1 or (event["outcome"], event["sha256"], event["plan_digest"]) != wanted:
            self._broken(number, f"{told} lines tell of a release")
        if not event["receipts"]:
            self._broken(number, "a release without a ledger row")
        self._released[digest] = got.header.plan_digest
        if got.header.plan_digest == plan.digest():
            self._last = plan, got
            self._old = [*self._old[-20:], plan]

    def _lines(self) -> int:
        head = self.folder / "audit.jsonl.head"
        return int(json.loads(head.read_bytes())["count"]) if head.exists() else 0

    def _event(self) -> Mapping[str, Any]:
        with (self.folder / "audit.jsonl").open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 4096))
            event: Mapping[str, Any] = json.loads(log.readlines()[-1])["event"]
        return event

    def _count(self, direction: str, level: str, outcome: str) -> None:
        self._tally.outcomes[direction, level, outcome] += 1

    def _broken(self, number: int, what: str) -> None:
        self._tally.broken.append(f"message {number}: {what}")


def fuzz(messages: int, *, seed: int) -> Tally:
    """Send so many messages, three plans to each update, and tell what came of them."""
    start_identity(run_id=1)
    torch.manual_seed(seed)
    draw, tally, base = random.Random(seed), Tally(), 0.0
    with tempfile.TemporaryDirectory(prefix="medsynth-fuzz-") as name, _replaced(draw):
        for number, first in enumerate(range(0, messages, LIFE)):
            cap = _CAPS[number % len(_CAPS)]
            life = Life(Path(name) / str(number), cap=cap, draw=draw, tally=tally)
            for message in range(first, min(first + LIFE, messages)):
                send = life.up if draw.random() < 0.25 and life._last else life.down
                try:
                    send(message - first)
                except Exception as error:
                    tally.broken.append(f"message {message}: {type(error).__name__}: {error}")
            life.end()
            base = base or _resident()
            tally.grown = _resident() - base
    return tally


def _resident() -> float:
    """MiB of memory this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(
    messages: int = 100_000, *, seed: int = 1, out: Path = Path("runs/bench/fuzz_messages.json")
) -> bool:
    """Send the messages, print a table, write `out`; whether every promise was kept."""
    tally = fuzz(messages, seed=seed)
    rows = [[*key, count] for key, count in sorted(tally.outcomes.items())]
    result = {"messages": messages, "seed": seed, "grown_mib": tally.grown}
    write_json(out, {**result, "outcomes": rows, "broken": tally.broken})
    console = Console()
    console.print(_table(tally))
    console.print(
        f"{sum(tally.outcomes.values()):,} messages, memory grew by {tally.grown:.0f} MiB"
    )
    for problem in tally.broken[:20]:
        console.print(problem, markup=False)
    return not tally.broken and tally.grown <= GROWTH


def _table(tally: Tally) -> Table:
    table = Table(title=f"Spoilt messages: {len(tally.broken)} promises broken")
    for heading in ("message", "spoilt", "outcome", "times"):
        table.add_column(heading, justify="right" if heading == "times" else "left")
    for (direction, level, outcome), count in sorted(tally.outcomes.items()):
        table.add_row(direction, level, outcome, f"{count:,}")
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz_messages", description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000, help="how many to send")
    parser.add_argument("--seed", type=int, default=1, help="of the faults")
    given = parser.parse_args()
    raise SystemExit(not main(given.messages, seed=given.seed))
