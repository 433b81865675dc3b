"""Sealing and checking: who says this, to whom, in which round, until when.

A coordinator seals each plan for one site with a fresh nonce; the site's answer is sealed with the
same nonce, and so answers this very question. A seal is beside what it seals, and no part of a
plan's digest: the same plan sealed twice is the same work, and is not charged twice.

    plan = seal_plan(plan, coordinator_key, now=time.time())
    sealed = check_plan_seal(plan, coordinator_public, now=time.time())
    update = seal_update(update, site_key, question=sealed, now=time.time())
    check_update_seal(update, site_public, question=sealed, now=time.time())
"""

import secrets
from dataclasses import replace
from typing import Final, Literal

from pydantic import Field

from medsynth_common.errors import (
    BadMessage,
    BadSignature,
    Expired,
    Problem,
    WrongAddress,
)
from medsynth_common.identity.keys import SigningKey, VerifyKey
from medsynth_common.identity.seal import Seal
from medsynth_common.plan import Name, RoundPlan, Stage, canonical_json, parse
from medsynth_common.privacy.mechanism import Value
from medsynth_common.update import SiteUpdate

#: Signed in front of the header: a signature over something else of ours can never pass for this.
_DOMAIN: Final = b"medsynth seal 1\n"
#: How far two clocks may stand apart, seconds; what Flower's own authentication takes.
CLOCK_SLACK: Final = 300.0
#: How long a plan may be on its way or wait at a site, seconds, unless said otherwise.
LIFETIME: Final = 24 * 3600.0


class Sealed(Value):
    """What a signature is over.

    Attributes:
        kind: what was sealed.
        run: the run it belongs to.
        stage: the run's stage.
        round: the stage's round.
        site: to whom a plan goes, from whom an update comes.
        digest: SHA-256 of the plan or update, header and tensors.
        nonce: drawn for each plan that is sent; an answer repeats it.
        issued: when, seconds since 1970.
        expires: until when it may be taken, seconds since 1970.

    """

    kind: Literal["plan", "update"]
    run: Name
    stage: Stage
    round: int = Field(ge=1, le=1_000_000)
    site: Name
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    nonce: str = Field(pattern=r"^[0-9a-f]{32}$")
    issued: float = Field(ge=0)
    expires: float = Field(ge=0)


def seal_plan(
    plan: RoundPlan, key: SigningKey, *, now: float, lifetime: float = LIFETIME
) -> RoundPlan:
    """Give the plan with a seal, good for `lifetime` seconds from `now`."""
    nonce = secrets.token_hex(16)
    return replace(plan, seal=_signed(_statement(plan, nonce, now, now + lifetime), key))


def check_plan_seal(plan: RoundPlan, key: VerifyKey, *, now: float) -> Sealed:
    """Check that the coordinator sealed this plan, for its site and round; give what was sealed.

    Raises:
        BadSignature: no seal, or another key's.
        WrongAddress: the seal is another plan's, site's, stage's or round's.
        Expired: it is too old, or from a future that clocks do not explain.

    """
    sealed = _opened(plan.seal, key)
    _compare(sealed, _statement(plan, sealed.nonce, sealed.issued, sealed.expires))
    _check_time(sealed, now)
    return sealed


def sealed_in(plan: RoundPlan) -> Sealed:
    """What our own seal on a plan says; nothing is checked."""
    assert plan.seal is not None
    return parse(Sealed, plan.seal.header, name="seal")


def seal_update(
    update: SiteUpdate, key: SigningKey, *, question: Sealed, now: float, lifetime: float = LIFETIME
) -> SiteUpdate:
    """Give the update with a seal that answers `question`."""
    return replace(
        update, seal=_signed(_statement(update, question.nonce, now, now + lifetime), key)
    )


def check_update_seal(
    update: SiteUpdate, key: VerifyKey, *, question: Sealed, now: float
) -> Sealed:
    """Check that the site sealed this update, and as an answer to `question`.

    Raises BadSignature, WrongAddress or Expired as `check_plan_seal` does.
    """
    sealed = _opened(update.seal, key)
    _compare(sealed, _statement(update, question.nonce, sealed.issued, sealed.expires))
    if (sealed.run, sealed.site) != (question.run, question.site):
        raise WrongAddress(f"an answer of {sealed.site} in {sealed.run}, asked was {question.site}")
    _check_time(sealed, now)
    return sealed


def _statement(what: RoundPlan | SiteUpdate, nonce: str, issued: float, expires: float) -> Sealed:
    header = what.header
    return Sealed(
        kind="plan" if isinstance(what, RoundPlan) else "update",
        run=header.run,
        stage=header.stage,
        round=header.round,
        site=header.site,
        digest=what.digest(),
        nonce=nonce,
        issued=issued,
        expires=expires,
    )


def _signed(sealed: Sealed, key: SigningKey) -> Seal:
    header = canonical_json(sealed)
    return Seal(header=header, signature=key.sign(_DOMAIN + header))


def _opened(seal: Seal | None, key: VerifyKey) -> Sealed:
    if seal is None:
        raise BadSignature("no seal")
    key.check(_DOMAIN + seal.header, seal.signature)
    try:
        return parse(Sealed, seal.header, name="seal")
    except BadMessage as error:
        # Signed by the right key, and still none of ours: another version's.
        raise BadSignature(f"a seal that does not read: {error}") from error


def _compare(found: Sealed, wanted: Sealed) -> None:
    problems = [
        Problem(name=f"seal: {name}", value=str(value), wanted=str(getattr(wanted, name)))
        for name, value in found
        if value != getattr(wanted, name)
    ]
    if problems:
        raise WrongAddress("\n".join(map(str, problems)))


def _check_time(sealed: Sealed, now: float) -> None:
    if now > sealed.expires + CLOCK_SLACK:
        raise Expired(f"a seal that expired {now - sealed.expires:.0f} s ago")
    if sealed.issued > now + CLOCK_SLACK:
        raise Expired(
            f"a seal from {sealed.issued - now:.0f} s in the future: one of the clocks is wrong"
        )
