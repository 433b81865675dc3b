"""At the moment when noise is drawn, its cost stands on disk, with that of every round before.

The ledger's file is read as another process would read it: by a connection of its own.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medsynth_client.keeping import Kept
from medsynth_client.ledger import Receipt
from medsynth_client.order import Outcome
from medsynth_client.site import Site
from medsynth_client.site_record import read_site
from medsynth_common.plan import RoundPlan, Stage
from medsynth_common.privacy.mechanism import Gaussian
from medsynth_common.privacy.randomness import Randomness
from tiny import NewSite, gaussian, plan

ROUNDS = (
    plan(),
    plan(round=2, mechanisms=(gaussian("spread"),)),
    plan(Stage.SEGMENT, mechanisms=(gaussian("segmenter", steps=2),)),
    plan(Stage.SEGMENT, round=2, mechanisms=(gaussian("segmenter", steps=2),)),
)


@dataclass(kw_only=True)
class Witness:
    """Stands where noise is drawn and looks into the ledger."""

    folder: Path
    owed: Counter[str] = field(default_factory=Counter)
    looked: int = 0
    missing: list[str] = field(default_factory=list)

    def look(self) -> None:
        self.looked += 1
        charged: Counter[str] = Counter()
        for line in read_site(self.folder).ledger.spending.statement():
            charged[line.name] += line.steps
        self.missing += sorted((self.owed - charged).elements())


def uncharged(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Site] = Site,
    between_rounds: Callable[[], None] = lambda: None,
) -> list[str]:
    """Carry out all rounds; what noise was drawn for, a step each, and not found charged."""
    witness = Witness(folder=folder)
    noised = Gaussian.noised

    def watched(self: Gaussian, total: Tensor, randomness: Randomness) -> Tensor:
        witness.look()
        return noised(self, total, randomness)

    monkeypatch.setattr(Gaussian, "noised", watched)
    for asked in ROUNDS:
        for mechanism in asked.header.mechanisms:
            witness.owed[mechanism.name] += mechanism.steps
        kind(folder, device=torch.device("cpu")).carry(asked)
        between_rounds()
    assert witness.looked > len(ROUNDS)
    return witness.missing


def test_noise_is_drawn_after_its_charge(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert uncharged(new_site(), monkeypatch) == []


class ChargesLate(Site):
    """Fault: trains first, and pays when it knows that there is something to release."""

    def _charge(self, plan: RoundPlan, digest: str) -> list[Receipt]:
        self._early = super()._train(plan, digest, self._keeping.load(plan.header.run, digest))
        return super()._charge(plan, digest)

    def _train(self, plan: RoundPlan, digest: str, kept: Kept) -> Outcome:
        return self._early


def test_a_charge_after_the_noise_is_found(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = uncharged(new_site(), monkeypatch, ChargesLate)
    assert set(found) == {"level", "spread", "segmenter"}


def test_an_account_that_begins_anew_each_round_is_found(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_site()

    def begin_anew() -> None:
        for file in folder.glob("ledger*"):
            file.unlink()

    found = uncharged(folder, monkeypatch, between_rounds=begin_anew)
    assert set(found) == {"level", "spread", "segmenter"}
