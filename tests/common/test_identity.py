"""Keys and seals: who says what to whom, once, in time; anything else is refused by name."""

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from medsynth_common.errors import BadConfig, BadSignature, Expired, WrongAddress
from medsynth_common.identity import Seal, SigningKey, VerifyKey
from medsynth_common.identity.sealing import (
    CLOCK_SLACK,
    LIFETIME,
    Sealed,
    check_plan_seal,
    check_update_seal,
    seal_plan,
    seal_update,
)
from medsynth_common.plan import RoundPlan, Stage
from medsynth_common.update import SiteUpdate, UpdateHeader
from medsynth_common.wire.parts import (
    plan_from_parts,
    plan_parts,
    update_from_parts,
    update_parts,
)
from medsynth_common.wire.records import (
    plan_from_records,
    plan_to_records,
    update_from_records,
    update_to_records,
)
from tiny import plan

NOW = 1.8e9
COORDINATOR, SITE = SigningKey.generate(), SigningKey.generate()
PLAN = plan(Stage.SEGMENT)
SEALED = seal_plan(PLAN, COORDINATOR, now=NOW)
QUESTION = check_plan_seal(SEALED, COORDINATOR.public, now=NOW)


def answer(to: RoundPlan = PLAN) -> SiteUpdate:
    head = to.header
    return SiteUpdate(
        header=UpdateHeader(
            run=head.run,
            site=head.site,
            stage=head.stage,
            round=head.round,
            plan_digest=to.digest(),
            declared_patients=20,
            delta=1e-5,
        ),
        weights={"segmenter.weight": torch.arange(6.0)},
        own={},
    )


def test_a_key_is_its_owners_alone_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing.key"
    SITE.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).public.raw == SITE.public.raw
    with pytest.raises(BadConfig, match="a key is not overwritten"):
        SigningKey.generate().save(path)
    assert SigningKey.load(path).public.raw == SITE.public.raw


def test_a_key_that_others_may_read_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    SITE.save(path)
    path.chmod(0o640)
    with pytest.raises(BadConfig, match="mode 0640"):
        SigningKey.load(path)


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN", b"\xff" * 64])
def test_what_is_no_key_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "signing.key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(BadConfig, match="a private key in PEM"):
        SigningKey.load(path)


def test_another_kind_of_key_is_told(tmp_path: Path) -> None:
    path = tmp_path / "signing.key"
    pem = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(pem)
    path.chmod(0o600)
    with pytest.raises(BadConfig, match="ECPrivateKey"):
        SigningKey.load(path)


def test_a_public_key_is_one_line() -> None:
    public = SITE.public
    assert VerifyKey.parse(public.text + "\n", name="key").raw == public.raw
    assert len(public.fingerprint.split()) == 8
    assert public.fingerprint != COORDINATOR.public.fingerprint
    for text in ("", "rsa:00", "ed25519:", "ed25519:zz", public.text + "00"):
        with pytest.raises(BadConfig, match="key: got"):
            VerifyKey.parse(text, name="key")


def test_a_seal_changes_nothing_of_what_is_sealed() -> None:
    again = seal_plan(PLAN, COORDINATOR, now=NOW)
    assert SEALED.digest() == again.digest() == PLAN.digest()
    other = check_plan_seal(again, COORDINATOR.public, now=NOW)
    assert other.nonce != QUESTION.nonce
    assert seal_update(answer(), SITE, question=QUESTION, now=NOW).digest() == answer().digest()


def test_seals_travel_by_both_roads() -> None:
    update = seal_update(answer(), SITE, question=QUESTION, now=NOW)
    parts = update_parts(update)
    for plan_again in (
        plan_from_parts(plan_parts(SEALED)),
        plan_from_records(plan_to_records(SEALED)),
    ):
        assert check_plan_seal(plan_again, COORDINATOR.public, now=NOW) == QUESTION
    for update_again in (update_from_parts(parts), update_from_records(update_to_records(update))):
        assert isinstance(update_again, SiteUpdate)
        check_update_seal(update_again, SITE.public, question=QUESTION, now=NOW)


FORGERIES: dict[str, tuple[Callable[[RoundPlan], RoundPlan], type[Exception]]] = {
    "no seal": (lambda p: replace(p, seal=None), BadSignature),
    "another's key": (lambda p: seal_plan(p, SITE, now=NOW), BadSignature),
    "more noise asked": (lambda p: _moved(p, public_seed=7), WrongAddress),
    "another round": (lambda p: _moved(p, round=9), WrongAddress),
    "another site": (lambda p: _moved(p, site="site-b"), WrongAddress),
    "another run": (lambda p: _moved(p, run="run-9"), WrongAddress),
    "another weight": (lambda p: _nudged(p), WrongAddress),
    "an update's seal": (
        lambda p: replace(
            p, seal=seal_update(answer(p), COORDINATOR, question=QUESTION, now=NOW).seal
        ),
        WrongAddress,
    ),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_plan_whose_seal_does_not_hold_is_refused_by_name(name: str) -> None:
    change, error = FORGERIES[name]
    with pytest.raises(error):
        check_plan_seal(change(SEALED), COORDINATOR.public, now=NOW)


def _moved(sealed: RoundPlan, **changes: object) -> RoundPlan:
    return replace(sealed, header=sealed.header.model_copy(update=changes))


def _nudged(sealed: RoundPlan) -> RoundPlan:
    name = next(n for n, t in sealed.weights.items() if t.is_floating_point() and t.numel())
    return replace(sealed, weights={**sealed.weights, name: sealed.weights[name] + 1e-3})


@pytest.mark.parametrize(
    ("late", "taken"),
    [
        (0.0, True),
        (LIFETIME, True),
        (LIFETIME + CLOCK_SLACK - 1, True),
        (LIFETIME + CLOCK_SLACK + 1, False),
        (-CLOCK_SLACK + 1, True),
        (-CLOCK_SLACK - 1, False),
    ],
)
def test_a_seal_holds_in_its_time(late: float, taken: bool) -> None:
    if taken:
        check_plan_seal(SEALED, COORDINATOR.public, now=NOW + late)
    else:
        with pytest.raises(Expired):
            check_plan_seal(SEALED, COORDINATOR.public, now=NOW + late)


def test_an_answer_answers_one_question() -> None:
    update = seal_update(answer(), SITE, question=QUESTION, now=NOW)
    later = check_plan_seal(seal_plan(PLAN, COORDINATOR, now=NOW), COORDINATOR.public, now=NOW)
    with pytest.raises(WrongAddress, match="nonce"):
        check_update_seal(update, SITE.public, question=later, now=NOW)
    other = QUESTION.model_copy(update={"site": "site-b"})
    with pytest.raises(WrongAddress, match="asked was site-b"):
        check_update_seal(update, SITE.public, question=other, now=NOW)
    with pytest.raises(BadSignature):
        check_update_seal(update, COORDINATOR.public, question=QUESTION, now=NOW)
    changed = replace(update, weights={"segmenter.weight": torch.arange(6.0) + 1})
    with pytest.raises(WrongAddress, match="digest"):
        check_update_seal(changed, SITE.public, question=QUESTION, now=NOW)


@given(place=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
def test_no_changed_bit_passes(place: int, bit: int) -> None:
    assert SEALED.seal is not None
    content = bytearray(SEALED.seal.header + SEALED.seal.signature)
    content[place % len(content)] ^= 1 << bit
    size = len(SEALED.seal.header)
    changed = Seal(header=bytes(content[:size]), signature=bytes(content[size:]))
    with pytest.raises(BadSignature):
        check_plan_seal(replace(SEALED, seal=changed), COORDINATOR.public, now=NOW)


def test_a_signature_over_something_else_is_no_seal() -> None:
    assert SEALED.seal is not None
    bare = replace(SEALED.seal, signature=COORDINATOR.sign(SEALED.seal.header))
    with pytest.raises(BadSignature):
        check_plan_seal(replace(SEALED, seal=bare), COORDINATOR.public, now=NOW)


def test_a_seal_of_another_version_is_told() -> None:
    header = json.dumps({"kind": "plan"}).encode()
    strange = Seal(header=header, signature=COORDINATOR.sign(b"medsynth seal 1\n" + header))
    with pytest.raises(BadSignature, match="does not read"):
        check_plan_seal(replace(SEALED, seal=strange), COORDINATOR.public, now=NOW)


def test_what_was_sealed_says_all_that_matters() -> None:
    assert set(Sealed.model_fields) >= {"run", "stage", "round", "site", "digest", "nonce"}
    assert QUESTION.digest == PLAN.digest()
    assert QUESTION.expires == NOW + LIFETIME
