import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from made_up_run import DICE, EPSILON, events, statement, write_run, write_samples
from medsynth_common.errors import BadConfig, BadData, BadInput
from medsynth_common.labels import Region
from medsynth_server.record import (
    BEFORE_TRAINING,
    FEDERATED,
    Arm,
    ArmPrivacy,
    EvaluationEvent,
    Event,
    PrivacyStatement,
    RunLog,
    epsilon_words,
    write_privacy,
)
from medsynth_server.report import build_report
from medsynth_server.report.contents import SECTIONS


class Page(HTMLParser):
    """What a test looks at in a page: its words, its elements, what it would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(html)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(folder: Path) -> Page:
    return Page(build_report(folder).read_text(encoding="utf-8"))


def write_events(folder: Path, told: Sequence[Event]) -> None:
    log = RunLog(folder / "metrics.jsonl")
    for event in told:
        log.append(event)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a whole run; drawing all its charts takes seconds, so once for all tests."""
    return build_report(write_run(tmp_path_factory.mktemp("whole") / "demo"))


@pytest.fixture(scope="module")
def whole(report: Path) -> Page:
    return Page(report.read_text(encoding="utf-8"))


def test_the_report_asks_nothing_of_the_network(whole: Page) -> None:
    for tag in ("script", "link", "iframe", "object"):
        assert not whole.all(tag)
    for image in whole.all("img"):
        assert (image["src"] or "").startswith("data:image/")
    for anchor in whole.all("a"):
        assert (anchor["href"] or "").startswith("#")
    (style,) = whole.all("style")
    assert not style.get("src")


def test_no_style_reaches_outside(report: Path) -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", report.read_text(), re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style


def test_every_picture_is_told_in_words(whole: Page) -> None:
    images = whole.all("img")
    # three planes of the first patient, one of two others: 1 label and 3 rows of 4 contrasts each
    assert len(images) >= 5 * (1 + 3 * 4)
    assert all(len(image["alt"] or "") > 10 for image in images)


def test_every_anchor_has_its_section(whole: Page) -> None:
    sections = [section["id"] for section in whole.all("section")]
    assert len(sections) == len(SECTIONS) == len(set(sections))
    assert {f"#{name}" for name in sections} >= {anchor["href"] for anchor in whole.all("a")}


def test_every_epsilon_stands_with_delta_unit_and_mechanisms(whole: Page) -> None:
    for epsilon in set(EPSILON.values()):
        assert (
            f"ε = {epsilon_words(epsilon)} (δ = 1e-05; unit: one patient; "
            "mechanisms: moments, segmenter, critic features)"
        ) in whole.words
    assert epsilon_words(EPSILON["site-c"]) == "7.91"


def test_every_dice_of_the_record_is_in_the_table(whole: Page) -> None:
    for event in events():
        if isinstance(event, EvaluationEvent):
            assert event.dice_mean is not None
            assert f"{event.dice_mean:.2f} ± {event.dice_sd:.2f} n = 12" in whole.words


def test_what_had_no_privacy_is_red(whole: Page) -> None:
    red = [a for _, a in whole.elements if a.get("class") == "unprotected"]
    assert red
    assert "privacy = off" in whole.words
    assert "Synthetic only, no privacy" in whole.words


def test_a_seeded_run_is_called_a_rehearsal(whole: Page, tmp_path: Path) -> None:
    assert "A rehearsal, not a release" in whole.words
    write_privacy(tmp_path / "privacy.json", statement(seeded=False))
    assert "rehearsal" not in page_of(tmp_path).words


def test_the_word_anonymous_is_never_used(whole: Page) -> None:
    assert "anonym" not in whole.words.lower()


def test_notes_settings_versions_and_words_are_there(whole: Page) -> None:
    for words in (
        "site-c holds few enhancing lesions",
        "learning_rate 0.002",
        "privacy share 0.6 clip 1.0",
        "torch",
        "Noise multiplier",
        "site-c: TimedOut (2 rounds)",
    ):
        assert words in whole.words


def test_text_of_the_record_cannot_become_markup(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('title = "<script>alert(1)</script>"')
    page = page_of(tmp_path)
    assert not page.all("script")
    assert "<script>alert(1)</script>" in page.words


def test_an_empty_run_says_what_is_missing(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "This record is not complete" in page.words
    for words in (
        "not recorded anything yet",
        "No sample volumes",
        "No segmenter has been evaluated",
        "No privacy statement",
        "No intensity histograms",
        "No round has been finished",
        "no config.toml",
    ):
        assert words in page.words


@pytest.mark.parametrize(
    ("lost", "missing"),
    [
        ("metrics.jsonl", "No round has been finished yet."),
        ("privacy.json", "No privacy statement has been written yet."),
        ("samples.safetensors", "No sample volumes have been written yet."),
        ("config.toml", "There is no config.toml."),
    ],
)
def test_a_lost_file_costs_its_sections_only(tmp_path: Path, lost: str, missing: str) -> None:
    write_run(tmp_path, patients=1, told=events()[20:22])
    (tmp_path / lost).unlink()
    page = page_of(tmp_path)
    assert missing in page.words
    assert "Glossary" in page.words


def test_a_run_half_way_is_reported(tmp_path: Path) -> None:
    write_events(tmp_path, events()[:25])
    assert "4 rounds of training the segmenter" in page_of(tmp_path).words


def test_a_main_arm_without_privacy_gets_a_banner(tmp_path: Path) -> None:
    off = statement().arms[Arm.REFERENCE]
    write_events(tmp_path, scored(DICE))
    write_privacy(
        tmp_path / "privacy.json", PrivacyStatement(seeded=False, arms={Arm.PRIVATE: off})
    )
    page = page_of(tmp_path)
    assert "This training has no privacy." in page.words
    assert "Privacy was switched off" in page.words
    assert "Federated, private" not in page.words
    assert "The privacy bound covers" not in page.words


def test_a_site_past_its_cap_is_told(tmp_path: Path) -> None:
    write_privacy(tmp_path / "privacy.json", statement(epsilon={"site-a": 8.001, "site-b": 1.0}))
    page = page_of(tmp_path)
    assert "site-a is past its cap" in page.words
    assert "ε = 8.01" in page.words
    assert "stayed within" not in page.words


def scored(means: Mapping[tuple[str, Arm], float], chance: float | None = None) -> list[Event]:
    return [
        EvaluationEvent(
            arm=arm,
            model=model,
            trained_on="patients",
            region=Region.WHOLE,
            dice_mean=mean,
            dice_sd=0.1,
            patients=5,
            chance=None if model == BEFORE_TRAINING else chance,
        )
        for (model, arm), mean in means.items()
    ]


@pytest.mark.parametrize(
    ("after", "chance", "verdict"),
    [
        (0.52, 0.049, "helped"),
        (0.52, 0.05, "showed no change beyond chance"),
        (0.9, None, "was not tested against chance"),
        (0.3, 0.6, "showed no change beyond chance"),
        (0.3, 0.01, "did harm"),
    ],
)
def test_the_report_says_whether_private_training_helped(
    tmp_path: Path, after: float, chance: float | None, verdict: str
) -> None:
    means = {(BEFORE_TRAINING, Arm.PRIVATE): 0.5, (FEDERATED, Arm.PRIVATE): after}
    write_events(tmp_path, scored(means, chance))
    write_privacy(tmp_path / "privacy.json", statement())
    words = page_of(tmp_path).words
    assert f"Private federated training {verdict}. Whole-tumour Dice went from 0.500" in words
    assert chance is None or f"p = {chance:.2g}." in words


def test_the_shared_start_of_both_arms_is_one_row(tmp_path: Path) -> None:
    both = {(BEFORE_TRAINING, arm): DICE[BEFORE_TRAINING, arm] for arm in Arm}
    write_events(tmp_path, scored(both))
    assert page_of(tmp_path).words.count("0.41 ± 0.10 n = 5") == 1


def test_a_region_that_no_patient_has_is_not_measured(tmp_path: Path) -> None:
    event = EvaluationEvent(
        arm=Arm.PRIVATE,
        model="local only",
        trained_on="one hospital",
        region=Region.ENHANCING,
        dice_mean=None,
        dice_sd=None,
        patients=0,
    )
    write_events(tmp_path, [event])
    assert "Local only, no privacy one hospital not measured" in page_of(tmp_path).words


def test_real_patients_images_are_warned_of(tmp_path: Path, whole: Page) -> None:
    write_samples(tmp_path / "samples.safetensors", patients=1, source="real")
    assert "This page shows real patients' images" in page_of(tmp_path).words
    assert "The patients are phantoms" in whole.words


def test_a_protected_arm_without_sites_is_reported(tmp_path: Path) -> None:
    empty = PrivacyStatement(seeded=False, arms={Arm.PRIVATE: ArmPrivacy(protected=True, sites={})})
    write_privacy(tmp_path / "privacy.json", empty)
    assert "stayed within" not in page_of(tmp_path).words


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("metrics.jsonl", '{"event": "dance"}\n', BadData),
        ("privacy.json", "{}", BadData),
        ("config.toml", "not toml", BadConfig),
        ("samples.safetensors", "not tensors", BadData),
    ],
)
def test_a_file_that_does_not_check_is_told_and_nothing_is_written(
    tmp_path: Path, name: str, content: str, error: type[BadInput]
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=name.split(".", maxsplit=1)[0]):
        build_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="wanted an existing folder"):
        build_report(tmp_path / "nowhere")


def test_many_sites_are_counted_where_they_are_not_shown(tmp_path: Path) -> None:
    histograms = [event for event in events() if event.event == "intensity"][:4]
    many = [
        event.model_copy(update={"site": f"site-{number}"})
        for number in range(6)
        for event in histograms
    ]
    write_events(tmp_path, many)
    assert "The first 4 of 6 hospitals are shown" in page_of(tmp_path).words
