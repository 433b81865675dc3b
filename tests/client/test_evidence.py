"""The evidence pack: all of it from the record, one page, and nothing else is overwritten."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.verify import Kind, write_site

from medsynth_client.audit import AuditEvent, AuditLog
from medsynth_client.evidence import make_evidence
from medsynth_client.site_record import read_site
from medsynth_common import __version__
from medsynth_common.durable import write_bytes
from medsynth_common.errors import BadConfig, BadInput, BadRecord

KINDS = (
    Kind(noise_multiplier=8.0, sampling_rate=1.0, steps=1),
    Kind(noise_multiplier=2.0, sampling_rate=0.1, steps=20),
)
REFUSED = {
    "project": "<script>alert(1)</script>",
    "stage": "adversarial",
    "round": 7,
    "outcome": "refused",
    "error": "BudgetExhausted",
    "bytes": 0,
    "sha256": "",
    "plan_digest": "c" * 64,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evidence") / "site-a"
    write_site(folder, KINDS, releases=4, patients=3)
    AuditLog(folder / "audit.jsonl").append(AuditEvent.model_validate(REFUSED))
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "site-a")


@pytest.fixture
def page(folder: Path) -> Path:
    return folder.parent / "reports" / "site-a.html"


def told(page: Path) -> tuple[str, dict[str, Any]]:
    """The page's words, spaces made one, and the facts beside it."""
    words = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text(), flags=re.DOTALL)
    return " ".join(words.split()), json.loads(page.with_suffix(".json").read_text())


def test_it_says_what_left_what_was_refused_and_what_it_cost(folder: Path, page: Path) -> None:
    assert make_evidence(folder, page).sound
    words, facts = told(page)
    events = read_site(folder).events
    assert [one["sha256"] for one in facts["releases"]] == [one.sha256 for one in events[:4]]
    assert all(one["charged"] == ["segmenter"] for one in facts["releases"])
    assert [one["error"] for one in facts["refusals"]] == ["BudgetExhausted"]
    spent = facts["spent"]
    assert spent["epsilon"] + spent["left"] == pytest.approx(spent["cap"])
    assert (spent["delta"], spent["unit"]) == (1e-5, "patient")
    for one in events[:4]:
        assert one.sha256 in words
        assert f"{one.when:%Y-%m-%d %H:%M:%S}" in words
    for said in (
        "The record holds.",
        "4 releases left (4 MB in all)",
        "1 request was refused",
        f"{spent['epsilon']:.3f} epsilon spent by the patient",
        "one in 100,000",
        "BudgetExhausted It would take a site past its lifetime privacy cap.",
        facts["policy_sha256"],
        f"medsynth {__version__}",
        "they agree",
        facts["witness"]["ledger_digest"],
    ):
        assert said in words


def test_it_needs_nothing_else_and_claims_nothing_more(folder: Path, page: Path) -> None:
    make_evidence(folder, page)
    for text in (page.read_text(), page.with_suffix(".json").read_text()):
        assert "anonym" not in text.lower()
        assert "phantom-" not in text  # no patient's name
    html = page.read_text()
    assert not re.search(r"<script|<link|<img|\bsrc=|\bhref=|https?://|@import|url\(", html)
    assert "&lt;script&gt;alert(1)" in html  # another's words stay words


def test_the_same_record_gives_the_same_facts(folder: Path, page: Path) -> None:
    make_evidence(folder, page)
    _, first = told(page)
    make_evidence(folder, page)  # an earlier pack is replaced
    _, second = told(page)
    assert {**first, "made": ""} == {**second, "made": ""}


@pytest.mark.parametrize("setting", [None, "simulation_seed = 5\n"])
def test_a_rehearsal_says_that_it_protects_nobody(
    folder: Path, page: Path, setting: str | None
) -> None:
    if setting:
        site = folder / "site.toml"
        site.write_text(setting + site.read_text())
    make_evidence(folder, page)
    assert ("This was a rehearsal" in told(page)[0]) == bool(setting)


def test_a_record_that_does_not_hold_is_said_at_the_top(folder: Path, page: Path) -> None:
    AuditLog(folder / "audit.jsonl").append(
        AuditEvent.model_validate(
            REFUSED | {"outcome": "released", "error": "", "sha256": "f" * 64, "bytes": 5}
        )
    )
    assert not make_evidence(folder, page).sound
    words, facts = told(page)
    assert "The record does not hold." in words
    assert "audit.jsonl line 6: got a release without a receipt" in words
    assert "The record holds." not in words
    assert not facts["checks"]["sound"]


def test_of_a_site_that_never_trained(folder: Path, page: Path) -> None:
    for pattern in ("ledger.db*", "audit.jsonl*"):
        for path in folder.glob(pattern):
            path.unlink()
    assert make_evidence(folder, page).sound
    words, facts = told(page)
    assert "nothing has left" in words
    assert facts["spent"]["epsilon"] == 0


def cut_ledger(folder: Path) -> None:
    (folder / "ledger.db").write_bytes(b"")


def cut_audit(folder: Path) -> None:
    (folder / "audit.jsonl").write_bytes(b"")


@pytest.mark.parametrize("harm", [cut_ledger, cut_audit])
def test_of_records_that_do_not_read_nothing_is_stated(
    folder: Path, page: Path, harm: Callable[[Path], None]
) -> None:
    harm(folder)
    with pytest.raises(BadRecord):
        make_evidence(folder, page)
    assert not page.exists()


OTHERS: dict[str, Callable[[Path], object]] = {
    "a page": lambda page: page.write_text("<html>My thesis</html>"),
    "its JSON": lambda page: page.with_suffix(".json").write_text('{"my": "thesis"}'),
    "no JSON": lambda page: page.with_suffix(".json").write_bytes(b"\xff"),
    "a folder": lambda page: page.mkdir(),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_earlier_pack_is_not_overwritten(folder: Path, page: Path, what: str) -> None:
    page.parent.mkdir()
    OTHERS[what](page)
    before = {path: path.is_file() and path.read_bytes() for path in page.parent.iterdir()}
    with pytest.raises(BadInput, match="something that is no evidence pack"):
        make_evidence(folder, page)
    assert {path: path.is_file() and path.read_bytes() for path in page.parent.iterdir()} == before


@pytest.mark.parametrize("name", ["site-a.json", "site-a", "site.toml"])
def test_a_page_that_is_named_otherwise_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(BadInput, match=r"ends in \.html"):
        make_evidence(folder, folder / name)


def test_a_disk_without_room_leaves_the_earlier_page(
    folder: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_evidence(folder, page)
    before = page.read_bytes()

    def full(path: Path, content: bytes) -> None:
        if path.suffix == ".html":
            raise OSError(28, "No space left on device")
        write_bytes(path, content)

    monkeypatch.setattr("medsynth_client.evidence.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        make_evidence(folder, page)
    assert page.read_bytes() == before


def test_where_there_is_no_site_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadConfig):
        make_evidence(tmp_path, tmp_path / "evidence.html")
    assert list(tmp_path.iterdir()) == []
