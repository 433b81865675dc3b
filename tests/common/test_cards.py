"""Cards are read back as they were written, and every change in one changes its fingerprint."""

from pathlib import Path

import pytest

from medsynth_common.errors import BadConfig
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard, SiteCard, read_card

KEY = SigningKey.generate().public.text
SITE = SiteCard(site="north", node_key="ecdsa-sha2-nistp384 AAAAE2Vj", signing_key=KEY)
COORDINATOR = CoordinatorCard(federation="glioma", address="fed.example:8443", signing_key=KEY)


def test_cards_read_back(tmp_path: Path) -> None:
    for card in (SITE, COORDINATOR):
        card.write(tmp_path / "card")
        again = read_card(tmp_path / "card", type(card))
        assert again == card
        assert again.fingerprint == card.fingerprint


def test_every_change_changes_the_fingerprint() -> None:
    other = SigningKey.generate().public.text
    changes = [
        SITE,
        SITE.model_copy(update={"site": "south"}),
        SITE.model_copy(update={"node_key": "ecdsa-sha2-nistp384 AAAAE2Vk"}),
        SITE.model_copy(update={"signing_key": other}),
    ]
    assert len({card.fingerprint for card in changes}) == len(changes)
    assert COORDINATOR.fingerprint != COORDINATOR.model_copy(update={"ca": "x"}).fingerprint


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"site": "x"}', b"\xff"])
def test_what_is_no_card_is_told(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "card"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadConfig, match="card"):
        read_card(path, SiteCard)


@pytest.mark.parametrize("address", ["fed.example:8443", "10.0.0.1:443", "[::1]:8443"])
def test_addresses(address: str) -> None:
    card = CoordinatorCard(federation="f", address=address, signing_key=KEY)
    assert card.address == address
