"""A site that names its coordinator takes its sealed plans alone, each once, and seals answers."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medsynth_client.audit import AuditLog
from medsynth_client.credentials import SIGNING_KEY, Credentials, TakenSeals
from medsynth_client.site import Site
from medsynth_client.site_record import read_site
from medsynth_common.errors import (
    BadConfig,
    BadRecord,
    BadSignature,
    Expired,
    Refused,
    Replayed,
    WrongAddress,
)
from medsynth_common.identity import SigningKey
from medsynth_common.identity.sealing import check_plan_seal, check_update_seal, seal_plan
from medsynth_common.plan import RoundPlan
from medsynth_common.tensors import pack
from medsynth_common.wire.parts import update_tensors
from tiny import NewSite, plan

CPU = torch.device("cpu")
COORDINATOR = SigningKey.generate()


@pytest.fixture
def folder(new_site: NewSite) -> Path:
    made: Path = new_site()
    SigningKey.generate().save(made / SIGNING_KEY)
    file = made / "site.toml"
    line = f'coordinator_key = "{COORDINATOR.public.text}"\n'
    file.write_text(line + file.read_text())
    return made


def sealed(**changes: object) -> RoundPlan:
    return seal_plan(plan(**changes), COORDINATOR, now=time.time())  # type: ignore[arg-type]


def test_a_sealed_plan_is_answered_under_seal(folder: Path) -> None:
    site = Site(folder, device=CPU)
    asked = sealed()
    update = site.carry(asked)
    question = check_plan_seal(asked, COORDINATOR.public, now=time.time())
    own = SigningKey.load(folder / SIGNING_KEY).public
    check_update_seal(update, own, question=question, now=time.time())

    # The same plan under a new seal is the same work: one release, one charge, a fresh seal.
    again_asked = seal_plan(asked, COORDINATOR, now=time.time())
    again = site.carry(again_asked)
    assert pack(update_tensors(again)) == pack(update_tensors(update))
    newer = check_plan_seal(again_asked, COORDINATOR.public, now=time.time())
    check_update_seal(again, own, question=newer, now=time.time())
    assert [line.steps for line in read_site(folder).ledger.spending.statement()] == [1]
    assert [event.outcome for event in AuditLog(folder / "audit.jsonl").read()] == ["released"]


def test_what_is_not_the_coordinator_s_word_is_refused_by_name_and_recorded(folder: Path) -> None:
    long_ago = time.time() - 7 * 86400
    forged = replace(sealed(), header=sealed(public_seed=99).header)
    cases: list[tuple[RoundPlan, type[Refused]]] = [
        (plan(), BadSignature),
        (seal_plan(plan(), SigningKey.generate(), now=time.time()), BadSignature),
        (forged, WrongAddress),
        (sealed(site="site-b"), WrongAddress),
        (seal_plan(plan(), COORDINATOR, now=long_ago), Expired),
    ]
    site = Site(folder, device=CPU)
    for asked, error in cases:
        with pytest.raises(error):
            site.carry(asked)
    events = AuditLog(folder / "audit.jsonl").read()
    assert [event.error for event in events] == [error.__name__ for _, error in cases]
    assert read_site(folder).ledger.spending.statement() == []


def test_a_seal_is_taken_once_also_by_the_next_process(folder: Path) -> None:
    asked = sealed()
    Site(folder, device=CPU).carry(asked)
    with pytest.raises(Replayed):
        Site(folder, device=CPU).carry(asked)
    assert [line.steps for line in read_site(folder).ledger.spending.statement()] == [1]


def test_a_site_without_its_own_key_does_not_start(folder: Path) -> None:
    (folder / SIGNING_KEY).unlink()
    with pytest.raises(BadConfig, match=r"signing.key"):
        Site(folder, device=CPU)


def test_expired_seals_are_forgotten_and_the_others_kept(folder: Path) -> None:
    now = time.time()
    credentials = Credentials(folder, COORDINATOR.public)
    credentials.take(seal_plan(plan(), COORDINATOR, now=now, lifetime=1.0))
    credentials.take(seal_plan(plan(), COORDINATOR, now=now, lifetime=1e6))
    path = folder / "seals.jsonl"
    assert len(path.read_text().splitlines()) == 2
    TakenSeals(path, now=now + 1e5)
    assert len(path.read_text().splitlines()) == 1


def test_a_torn_line_is_a_crash_and_any_other_is_told(folder: Path) -> None:
    path = folder / "seals.jsonl"
    Credentials(folder, COORDINATOR.public).take(sealed())
    whole = path.read_text()
    path.write_text(whole + '{"nonce": "ab')
    TakenSeals(path, now=time.time())
    assert path.read_text() == whole
    path.write_text("strange\n" + whole)
    with pytest.raises(BadRecord, match="a line that does not read"):
        TakenSeals(path, now=time.time())
