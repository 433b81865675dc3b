"""A coordinator's link on loopback, with TLS and keys, for stand-in hospitals."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from federation.stand_in import Saying, StandIn
from medsynth_common.identity import SigningKey
from medsynth_common.identity.sealing import Sealed, check_plan_seal, seal_update
from medsynth_common.plan import RoundPlan, Stage
from medsynth_common.tensors import under
from medsynth_common.update import SiteUpdate, UpdateHeader
from medsynth_common.wire.forms import expected_update
from medsynth_server.coordinator.door import Door
from medsynth_server.coordinator.pki import make_authority, make_server
from medsynth_server.engines.flower import FlowerGrid
from medsynth_server.flower.link import Link
from tiny import plan as tiny_plan


@dataclass
class Wire:
    """A link, its door and its grid, for a test's own sites."""

    folder: Path
    sites: dict[str, StandIn] = field(default_factory=dict)
    key: SigningKey = field(default_factory=SigningKey.generate)
    told: list[str] = field(default_factory=list)
    quorum: int = 1
    join_deadline: float = 20.0
    grace: float = 20.0

    def __enter__(self) -> "Wire":
        self._held = ExitStack()
        authority = make_authority("test")
        server = make_server(authority, "127.0.0.1")
        self.ca = authority.certificate
        certificate, key = self.folder / "server.crt", self.folder / "server.key"
        certificate.write_bytes(server.certificate)
        key.write_bytes(server.key)
        self.link = Link(self.folder / "link.db")
        self._held.callback(self.link.close)
        self.grid = FlowerGrid(
            self.link,
            lambda: {name: site.card for name, site in self.sites.items()},
            self.key,
            quorum=self.quorum,
            join_deadline=self.join_deadline,
            tell=self.told.append,
            grace=self.grace,
        )
        self.door = self._held.enter_context(
            Door(
                self.link.app,
                listen="127.0.0.1:0",
                certificate=certificate,
                key=key,
                enrolled=self.grid.enrolled,
            )
        )
        return self

    def __exit__(self, *_: object) -> None:
        for site in self.sites.values():
            site.stop()
        self._held.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.door.port}"

    def join(self, name: str, say: Saying) -> StandIn:
        self.sites[name] = StandIn(name, say)
        self.grid.enrol()
        return self.sites[name].start(self.address, self.ca)

    def plan_for(self, site: str) -> RoundPlan:
        return tiny_plan(Stage.MOMENTS, site=site)

    def ask(self, *, timeout: float = 30.0) -> Mapping[str, SiteUpdate | str]:
        """Put one plan to every site; their answers by name."""
        plans = {n: self.plan_for(self.grid.site_of(n)) for n in self.grid.get_node_ids()}
        answers = self.grid.ask(plans, timeout=timeout)
        return {self.grid.site_of(node): answer for node, answer in answers}


def an_update(plan: RoundPlan, **changes: object) -> SiteUpdate:
    """A right answer to a plan, all ones."""
    tensors = {k: torch.ones(t.shape, dtype=t.dtype) for k, t in expected_update(plan).items()}
    header = plan.header
    values = {
        "run": header.run,
        "site": header.site,
        "stage": header.stage,
        "round": header.round,
        "plan_digest": plan.digest(),
        "declared_patients": 3,
        "epsilon": 1.0,
        "cap": 8.0,
        "delta": 1e-3,
    }
    return SiteUpdate(
        header=UpdateHeader(**(values | changes)),  # type: ignore[arg-type] # a test's choice
        weights=under("weights", tensors),
        own=under("own", tensors),
    )


def sealed(site: StandIn, wire: Wire, plan: RoundPlan, update: SiteUpdate) -> SiteUpdate:
    """The update with the site's own seal, as an answer to this very plan."""
    now = time.time()
    question: Sealed = check_plan_seal(plan, wire.key.public, now=now)
    return seal_update(update, site.signing_key, question=question, now=now)
