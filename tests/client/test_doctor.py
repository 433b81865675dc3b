"""`doctor` looks at one thing after the other, and says what to do about each."""

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from certificates import authority, server_context
from client.http_server import Saying, answering
from federation.hospital import make_hospital
from medsynth_client import doctor
from medsynth_client.audit import AuditLog
from medsynth_client.doctor import Finding, examine, exit_code
from medsynth_client.ledger import Ledger
from medsynth_client.spending import epsilon_of
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard

CA = authority()
KEY = SigningKey.generate().public.text


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process is started for this one, and others test it."""
    monkeypatch.setattr(doctor, "cannot_isolate", lambda: "")


def site(tmp_path: Path, address: str) -> Path:
    card = CoordinatorCard(federation="f", address=address, signing_key=KEY, ca=CA.pem)
    folder = make_hospital(tmp_path / "site", name="site-a", card=card).folder
    folder.chmod(0o700)
    return folder


def found(folder: Path) -> dict[str, Finding]:
    return {one.name: one for one in examine(folder)}


def test_all_is_well(tmp_path: Path) -> None:
    saying = Saying(403)  # what is asked about the key is refused, after the key was looked at
    with answering(saying, server_context(CA, tmp_path)) as address:
        findings = found(site(tmp_path, address))
    assert [one.name for one in findings.values() if one.verdict == "bad"] == []
    assert {"site.toml", "permissions", "disk", "gpu", "isolation", "data"} <= set(findings)
    assert {"dns", "tcp", "tls", "clock", "key"} <= set(findings)
    assert exit_code(list(findings.values())) == 0
    assert json.dumps([one.facts() for one in findings.values()])
    # It looks, and takes part in nothing.
    assert set(saying.asked) == {"/health", "/v1/fleet/get-run"}


def test_a_proxy_that_opens_tls_is_named(tmp_path: Path) -> None:
    proxy = authority("Hospital Web Gateway")
    with answering(Saying(), server_context(proxy, tmp_path)) as address:
        findings = found(site(tmp_path, address))
    tls = findings["tls"]
    assert (tls.verdict, exit_code(list(findings.values()))) == ("bad", 2)
    assert "issued by CN=Hospital Web Gateway" in tls.found
    assert "wanted: issued by CN=the coordinator's authority" in tls.found
    assert "extra_ca" in tls.mend
    assert "key" not in findings  # nobody to ask


@pytest.mark.parametrize(
    ("names", "life", "told"),
    [
        (("elsewhere.example",), timedelta(days=1), "for elsewhere.example"),
        (("127.0.0.1",), -timedelta(days=1), "has expired"),
    ],
)
def test_a_bad_certificate_is_shown(
    tmp_path: Path, names: tuple[str, ...], life: timedelta, told: str
) -> None:
    with answering(Saying(), server_context(CA, tmp_path, names=names, life=life)) as address:
        findings = found(site(tmp_path, address))
    assert told in findings["tls"].found
    assert "proxy that opens TLS" not in findings["tls"].mend
    assert exit_code(list(findings.values())) == 2


@pytest.mark.parametrize(
    ("saying", "name", "told"),
    [
        (lambda: Saying(403, date=time.time() - 60), "clock", "s ahead of the coordinator's"),
        (lambda: Saying(403, date=time.time() + 900), "clock", "s behind of the coordinator's"),
        (lambda: Saying(401, b'{"code": 2004}'), "key", "is site.card enrolled there?"),
    ],
)
def test_a_clock_or_a_key_that_is_not_taken(
    tmp_path: Path, saying: Callable[[], Saying], name: str, told: str
) -> None:
    with answering(saying(), server_context(CA, tmp_path)) as address:
        findings = found(site(tmp_path, address))
    assert findings[name].verdict == "bad"
    assert told in findings[name].found
    assert exit_code(list(findings.values())) == 2


def test_nobody_listens(tmp_path: Path) -> None:
    with answering(Saying()) as address:
        pass
    findings = found(site(tmp_path, address))
    assert "connection refused" in findings["tcp"].found
    assert "tls" not in findings
    assert exit_code(list(findings.values())) == 2


def test_the_site_s_own_faults_come_first(tmp_path: Path) -> None:
    with answering(Saying(403), server_context(CA, tmp_path)) as address:
        folder = site(tmp_path, address)
        (folder / "keys" / "node.key").chmod(0o644)
        folder.chmod(0o755)
        findings = found(folder)
    assert "chmod 600" in findings["keys/node.key"].found
    assert (findings["permissions"].verdict, findings["permissions"].mend) == (
        "warning",
        f"chmod 700 {folder}",
    )
    assert exit_code(list(findings.values())) == 4


@pytest.mark.parametrize("spoilt", ["ledger.db", "audit.jsonl"])
def test_damaged_records_are_told(tmp_path: Path, spoilt: str) -> None:
    folder = site(tmp_path, "127.0.0.1:9")
    assert found(folder)["records"].verdict == "ok"
    Ledger(folder / "ledger.db", cap=8.0, delta=1e-5, epsilon=epsilon_of).register_dataset(["a"])
    AuditLog(folder / "audit.jsonl")
    (folder / spoilt).write_bytes(b"not what it was\n")
    findings = found(folder)
    assert findings["records"].verdict == "bad"
    assert "privacy verify" in findings["records"].mend
    assert exit_code(list(findings.values())) == 4


def test_a_pinned_key_that_is_not_the_card_s(tmp_path: Path) -> None:
    folder = site(tmp_path, "127.0.0.1:9")
    file = folder / "site.toml"
    file.write_text(file.read_text().replace(KEY, SigningKey.generate().public.text))
    findings = found(folder)
    assert "by telephone" in findings["coordinator.card"].found
    assert "tcp" not in findings
    assert exit_code(list(findings.values())) == 4


def test_a_full_disk_and_a_missing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("usage", (), {"free": 2**29})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    findings = found(tmp_path / "nowhere")
    assert (findings["disk"].verdict, findings["disk"].found) == ("bad", "0.5 GiB free")
    assert findings["site.toml"].verdict == "bad"
    assert not os.access(tmp_path / "nowhere", os.F_OK)
