"""Who takes part: one card a site in `sites/`, read anew whenever it is asked."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medsynth_common.errors import BadConfig, BadSignature, Problem
from medsynth_common.identity.cards import SiteCard, read_card
from medsynth_server.flower.link import pem_of

log = logging.getLogger(__name__)


@dataclass
class Enrolment:
    """The federation's sites, as their cards lie in a folder now.

    A card that is put there or taken away counts from the next look: a site joins, or is out, while
    a run goes on. One that cannot be read leaves the others as they were.
    """

    folder: Path
    _last: Mapping[str, SiteCard] = field(default_factory=dict)
    _stamp: object = None

    def cards(self) -> Mapping[str, SiteCard]:
        """Every enrolled site's card, by name, in order. Raises `BadConfig` at the first look."""
        stamp = sorted((p.name, p.stat().st_mtime_ns) for p in self.folder.glob("*.card"))
        if stamp != self._stamp:
            try:
                self._last = read_cards(self.folder)
            except (BadConfig, OSError) as error:
                if self._stamp is None:
                    raise
                log.warning("sites/ was not read anew: %s", error)
            self._stamp = stamp
        return self._last


def read_cards(folder: Path) -> dict[str, SiteCard]:
    """Read every card. Raises `BadConfig` with every problem of every card."""
    problems: list[Problem] = []
    cards: dict[str, SiteCard] = {}
    for path in sorted(folder.glob("*.card")):
        try:
            card = read_card(path, SiteCard)
            _check_key(card, path)
        except BadConfig as error:
            problems += error.problems
            continue
        if card.site != path.stem:
            wanted = f"site {path.stem}'s"
            problems.append(Problem(name=str(path), value=f"site {card.site}'s", wanted=wanted))
        cards[card.site] = card
    if problems:
        raise BadConfig(problems)
    return cards


def add_site(folder: Path, name: str, card: Path, *, fingerprint: str | None) -> SiteCard:
    """Enrol a site by its card.

    Args:
        folder: the federation's `sites`.
        name: what the site is called here; the card must say the same.
        card: the file that the hospital sent.
        fingerprint: what the hospital read from its screen; None to compare it later.

    Raises:
        BadConfig: no card, another site's, or one whose keys are enrolled already.
        BadSignature: its fingerprint is another one.

    """
    sent = read_card(card, SiteCard)
    _check_key(sent, card)
    if fingerprint is not None and "".join(fingerprint.split()).lower() != _digits(sent):
        raise BadSignature(
            f"the card's fingerprint is {sent.fingerprint}, not {fingerprint}: "
            "ask the hospital to send its card again, and do not enrol this one"
        )
    problems = []
    if sent.site != name:
        problems.append(Problem(name=str(card), value=f"site {sent.site}'s", wanted=f"{name}'s"))
    for other in read_cards(folder).values():
        if other.site == name:
            mend = f"medsynth-server sites remove DIR {name}"
            wanted = "a name that is not enrolled"
            problems.append(Problem(name="NAME", value=f"{name}", wanted=wanted, mend=mend))
        elif other.node_key == sent.node_key or other.signing_key == sent.signing_key:
            value = f"keys that are {other.site}'s"
            problems.append(Problem(name=str(card), value=value, wanted="keys of its own"))
    if problems:
        raise BadConfig(problems)
    sent.write(folder / f"{name}.card")
    return sent


def remove_site(folder: Path, name: str) -> None:
    """Take a site out; a running coordinator turns it away at once. Raises `BadConfig`."""
    enrolled = {path.stem: path for path in folder.glob("*.card")}
    if name not in enrolled:
        wanted = f"one of {', '.join(sorted(enrolled)) or 'none: no site is enrolled'}"
        raise BadConfig(Problem(name="NAME", value=name, wanted=wanted))
    enrolled[name].unlink()


def _digits(card: SiteCard) -> str:
    return "".join(card.fingerprint.split())


def _check_key(card: SiteCard, path: Path) -> None:
    try:
        pem_of(card.node_key)
    except ValueError as error:
        wanted = "an OpenSSH public key of kind ecdsa-sha2-nistp384"
        raise BadConfig(Problem(name=f"{path}: node_key", value="no key", wanted=wanted)) from error
