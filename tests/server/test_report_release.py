"""The report says what the release check found, in words that a clinician reads."""

from pathlib import Path

import pytest

from made_up_run import release_check, write_run
from medsynth_common.errors import BadData
from medsynth_common.release_check import ReleaseCheck, Verdict
from medsynth_common.release_check.decision import override
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.sections.release import release
from medsynth_server.report.sections.trust import trust
from server.test_report import Page, page_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "demo", told=[])


def put(run: Path, check: ReleaseCheck) -> Path:
    (run / "release-check.json").write_bytes(check.encoded())
    return run


def sign(run: Path) -> tuple[str, str]:
    """The first check of “Can I trust this?” that is about the set."""
    [found] = [
        check
        for check in trust(RunFolder.read(run)).facts["checks"]  # type: ignore[attr-defined]
        if "release check" in check.title or "withheld" in check.title
    ]
    return found.verdict, found.title


def test_a_set_that_passed(run: Path) -> None:
    page = page_of(run)
    assert "The set passed" in page.words
    assert "compared with the 180 patients it was learnt from and with 18 patients" in page.words
    assert "GAN-Leaks 0.47 (0.30 to 0.88) 0.66 25% (18% to 33%) 5.6%" in page.words
    assert "Images 0 of 36 0% (0% to 10%) 0 0% 0.52" in page.words
    assert sign(run) == ("good", "The synthetic set passed its release check")
    assert "anonym" not in page.words.lower()


def test_the_figure_is_told_in_words(run: Path) -> None:
    (image,) = [i for i in page_of(run).all("img") if "nearest" in (i["alt"] or "")]
    for group in ("synthetic volume to its nearest training", "held-out patient to the nearest"):
        assert group in (image["alt"] or "")


def test_a_set_that_failed_names_the_copies(run: Path) -> None:
    page = page_of(put(run, release_check(Verdict.FAILED)))
    assert "The set failed and was withheld." in page.words
    assert "synthetic-004, synthetic-017" in page.words
    assert "2 of 36 synthetic images are copies" in page.words
    assert sign(run) == ("bad", "The synthetic set was withheld")


def test_a_set_that_was_released_anyway_says_who_and_why(run: Path) -> None:
    check = override(release_check(Verdict.FAILED), "<b>phantoms</b> only")
    page = page_of(put(run, check))
    assert "released it anyway" in page.words
    assert check.override is not None
    assert f"Released against the check by {check.override.who}" in page.words
    assert "<b>phantoms</b> only" in page.words  # as text: it is nobody's markup
    assert sign(run)[0] == "bad"


def test_a_set_of_too_few_patients(run: Path) -> None:
    page = page_of(put(run, release_check(Verdict.NOT_DECIDABLE)))
    assert "part of the check could not be made" in page.words
    assert "and with no patients that nothing was trained on" in page.words
    assert sign(run)[0] == "care"


def test_a_run_that_was_not_checked_says_so(run: Path) -> None:
    (run / "release-check.json").unlink()
    assert "has not been compared" in release(RunFolder.read(run)).missing
    assert "release check" in page_of(run).words.split("Missing:")[1][:400]


def test_a_result_that_was_edited_is_told(run: Path) -> None:
    path = run / "release-check.json"
    path.write_text(path.read_text().replace('"share": 0.0', '"share": 7.0'))
    with pytest.raises(BadData, match=r"release-check\.json: nearness\.0\.share"):
        RunFolder.read(run)


def test_the_page_of_a_checked_set_is_well_formed(run: Path) -> None:
    assert isinstance(page_of(run), Page)
    assert page_of(run).open == []
