"""Founding a federation, enrolling hospitals, and what of it can be wrong."""

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from typer.testing import CliRunner

from medsynth_common.errors import BadConfig, BadInput, BadSignature
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard, SiteCard, read_card
from medsynth_server.cli import app
from medsynth_server.coordinator.enrolment import Enrolment, add_site, read_cards, remove_site
from medsynth_server.coordinator.folder import FederationFolder
from medsynth_server.coordinator.founding import found
from medsynth_server.coordinator.pki import (
    check_server,
    ends,
    make_authority,
    make_server,
    split_address,
)
from medsynth_server.coordinator.renewal import ends_soon, renew
from medsynth_server.coordinator.run import ask_to_stop, run_federation
from medsynth_server.coordinator.status import read_status, status_text


@pytest.fixture
def study(tmp_path: Path) -> FederationFolder:
    path = tmp_path / "study"
    return found(
        path, address="coordinator.example.org:8443", name=None, certificate=None, key=None
    )


def a_card(site: str = "site-a") -> SiteCard:
    public = ec.generate_private_key(ec.SECP384R1()).public_key()
    line = public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return SiteCard(site=site, node_key=line, signing_key=SigningKey.generate().public.text)


def sent(folder: Path, card: SiteCard) -> Path:
    path = folder / "site.card"
    card.write(path)
    return path


def test_a_new_federation_has_settings_keys_that_are_its_own_and_a_card(
    study: FederationFolder,
) -> None:
    settings = study.load()
    assert settings.coordinator.name == "study"
    assert settings.coordinator.listen == "0.0.0.0:8443"
    assert settings.run.name == "study"
    assert stat.S_IMODE(study.signing_key.parent.stat().st_mode) == 0o700
    for key in (study.signing_key, study.server_key, study.authority_key):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    card = read_card(study.card, CoordinatorCard)
    assert card.signing_key == SigningKey.load(study.signing_key).public.text
    assert card.ca == study.authority_certificate.read_text()
    assert card.fingerprint in study.sheet.read_text()
    assert card.address == "coordinator.example.org:8443"


def test_a_client_that_believes_the_card_takes_the_certificate_for_its_host_alone(
    study: FederationFolder,
) -> None:
    authority = x509.load_pem_x509_certificate(study.authority_certificate.read_bytes())
    server = x509.load_pem_x509_certificate(study.server_certificate.read_bytes())
    server.verify_directly_issued_by(authority)
    now = datetime.now(UTC)
    check_server(study.server(), "coordinator.example.org", name="server.crt", now=now)
    with pytest.raises(BadConfig, match=r"for other\.example\.org"):
        check_server(study.server(), "other.example.org", name="server.crt", now=now)
    later = now + timedelta(days=400)
    with pytest.raises(BadConfig, match="valid on"):
        check_server(study.server(), "coordinator.example.org", name="server.crt", now=later)
    # OpenSSL's own reading of both.
    ssl.create_default_context(cadata=study.authority_certificate.read_text())


def test_a_certificate_is_renewed_under_the_key_and_the_authority_that_hospitals_know(
    study: FederationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, before = study.authority_certificate.read_bytes(), study.server()
    assert ends_soon(study) == ""
    monkeypatch.setattr("medsynth_server.coordinator.renewal._SOON", timedelta(days=398))
    assert str(study.path) in ends_soon(study)
    shown = CliRunner().invoke(app, ["renew", str(study.path)])
    assert shown.exit_code == 0
    after = study.server()
    assert after.key == before.key
    assert after.certificate != before.certificate
    assert f"{ends(after):%Y-%m-%d}" in shown.stdout
    x509.load_pem_x509_certificate(after.certificate).verify_directly_issued_by(
        x509.load_pem_x509_certificate(authority)
    )
    digits = x509.load_pem_x509_certificate(after.certificate).fingerprint(hashes.SHA256()).hex()
    assert digits[:4] + " " + digits[4:8] in study.sheet.read_text()


def test_an_operator_s_certificate_is_the_operator_s_to_renew(study: FederationFolder) -> None:
    study.authority_key.unlink()
    before = study.server_certificate.read_bytes()
    with pytest.raises(BadConfig, match=r"put your own authority's new certificate"):
        renew(study)
    assert study.server_certificate.read_bytes() == before


def test_nothing_is_overwritten(study: FederationFolder) -> None:
    before = {p: p.read_bytes() for p in study.path.rglob("*") if p.is_file()}
    with pytest.raises(BadConfig, match="not empty"):
        found(study.path, address="a:1", name=None, certificate=None, key=None)
    assert {p: p.read_bytes() for p in study.path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("host", "named", "right"),
    [
        ("a.example.org", "a.example.org", True),
        ("A.example.org", "a.example.org", True),
        ("a.example.org", "*.example.org", True),
        ("a.b.example.org", "*.example.org", False),
        ("example.org", "*.example.org", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("::1", "::1", True),
    ],
)
def test_an_operator_s_certificate_must_be_for_the_address(
    tmp_path: Path, host: str, named: str, right: bool
) -> None:
    made = make_server(make_authority("x"), named)
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate.write_bytes(made.certificate)
    key.write_bytes(made.key)
    address = f"[{host}]:1" if ":" in host else f"{host}:1"
    given = {"address": address, "name": "x", "certificate": certificate, "key": key}
    if right:
        folder = found(tmp_path / "study", **given)  # type: ignore[arg-type] # of one test's
        assert read_card(folder.card, CoordinatorCard).ca is None
        assert not folder.authority_key.exists()
    else:
        with pytest.raises(BadConfig, match=f"wanted for {host}"):
            found(tmp_path / "study", **given)  # type: ignore[arg-type] # of one test's
        assert not (tmp_path / "study").exists()


def test_a_certificate_of_another_key_is_told(tmp_path: Path) -> None:
    authority = make_authority("x")
    one, other = make_server(authority, "a"), make_server(authority, "a")
    (tmp_path / "c.pem").write_bytes(one.certificate)
    (tmp_path / "k.pem").write_bytes(other.key)
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    with pytest.raises(BadConfig, match="another key's"):
        found(tmp_path / "s", address="a:1", name=None, certificate=certificate, key=key)
    with pytest.raises(BadConfig, match="--certificate-key"):
        found(tmp_path / "s", address="a:1", name=None, certificate=certificate, key=None)


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "host:x", "host:65536", "https://host:1", "bad host:1"]
)
def test_an_address_that_is_none_is_told(address: str) -> None:
    with pytest.raises(BadConfig, match="HOST:PORT"):
        split_address(address)


def test_settings_are_strict_and_all_problems_are_told(study: FederationFolder) -> None:
    text = study.settings.read_text()
    text = text.replace("quorum = 2", "quorum = 0\nquorun = 3") + "\n[more]\n"
    study.settings.write_text(text.replace("epsilon = 8.0", 'epsilon = "much"'))
    with pytest.raises(BadConfig) as told:
        study.load()
    for name in ("coordinator: quorum", "quorun", "more", "privacy.epsilon"):
        assert name in str(told.value)


def test_a_site_is_enrolled_by_its_card_and_its_fingerprint(
    study: FederationFolder, tmp_path: Path
) -> None:
    card = a_card()
    add_site(study.sites, "site-a", sent(tmp_path, card), fingerprint=card.fingerprint.upper())
    assert read_cards(study.sites) == {"site-a": card}
    with pytest.raises(BadConfig, match="not enrolled"):
        add_site(study.sites, "site-a", sent(tmp_path, a_card()), fingerprint=None)
    stranger = a_card("site-b")
    with pytest.raises(BadSignature, match="do not enrol"):
        add_site(study.sites, "site-b", sent(tmp_path, stranger), fingerprint=card.fingerprint)
    with pytest.raises(BadConfig, match="site site-b's"):
        add_site(study.sites, "site-c", sent(tmp_path, stranger), fingerprint=None)
    twin = card.model_copy(update={"site": "site-b"})
    with pytest.raises(BadConfig, match="keys that are site-a's"):
        add_site(study.sites, "site-b", sent(tmp_path, twin), fingerprint=None)
    assert list(read_cards(study.sites)) == ["site-a"]
    remove_site(study.sites, "site-a")
    assert read_cards(study.sites) == {}
    with pytest.raises(BadConfig, match="no site is enrolled"):
        remove_site(study.sites, "site-a")


def test_cards_are_read_anew_and_a_spoilt_one_does_not_end_a_run(
    study: FederationFolder, tmp_path: Path
) -> None:
    enrolment = Enrolment(study.sites)
    assert enrolment.cards() == {}
    add_site(study.sites, "site-a", sent(tmp_path, a_card()), fingerprint=None)
    assert list(enrolment.cards()) == ["site-a"]
    (study.sites / "site-b.card").write_text("{")
    assert list(enrolment.cards()) == ["site-a"]
    with pytest.raises(BadConfig, match=r"site-b\.card"):
        Enrolment(study.sites).cards()
    (study.sites / "site-b.card").unlink()
    remove_site(study.sites, "site-a")
    assert enrolment.cards() == {}


def test_a_folder_is_served_once(study: FederationFolder) -> None:
    assert not study.running
    assert not ask_to_stop(study)
    with study.serving():
        assert study.running
        assert ask_to_stop(study)
        assert study.stop.exists()
        with pytest.raises(BadInput, match="running coordinator"):
            run_federation(study.path)
    assert not study.running


def test_status_of_a_federation_that_never_ran(study: FederationFolder) -> None:
    assert status_text(read_status(study), now=0.0).startswith("never run")


def test_a_port_that_is_taken_is_told_with_the_exit_code_of_a_connection(
    study: FederationFolder,
) -> None:
    text = study.settings.read_text()
    study.settings.write_text(text.replace("0.0.0.0:8443", "203.0.113.1:8443"))
    with pytest.raises(Exception, match=r"listen 203\.0\.113\.1:8443") as told:
        run_federation(study.path)
    assert getattr(told.value, "exit_code", None) == 2


def test_the_commands_speak_of_what_they_did(tmp_path: Path) -> None:
    study, run = str(tmp_path / "study"), CliRunner().invoke
    assert run(app, ["init", study, "--address", "127.0.0.1:8443"]).exit_code == 0
    card = a_card()
    path = str(sent(tmp_path, card))
    added = run(app, ["sites", "add", study, "site-a", "--card", path])
    assert card.fingerprint in added.output
    assert "telephone" in added.output
    assert card.fingerprint in run(app, ["sites", "list", study]).output
    assert run(app, ["sites", "remove", study, "site-a"]).exit_code == 0
    assert run(app, ["sites", "list", study, "--format", "json"]).output == "{}\n"
    assert "never run" in run(app, ["status", study]).output
    assert "no coordinator" in run(app, ["stop", study]).output
