"""A set appears after its check, whole; a failed one only when a person says why."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medsynth_common.errors import BadConfig
from medsynth_common.learning.volumes import Volume
from medsynth_common.release_check import Verdict
from medsynth_common.release_check import check as check_module
from medsynth_common.release_check.decision import checked_reason
from medsynth_common.release_check.result import read_release_check
from medsynth_common.release_check.signature import describe
from medsynth_common.synthetic_set import write_synthetic
from medsynth_server import release as release_module
from medsynth_server.config import RunConfig
from medsynth_server.progress import Progress, make_progress
from medsynth_server.release import release_set
from medsynth_server.run_folder import RunFolder
from medsynth_server.simulated_sites import SimulatedSite, phantom_sites
from tiny_run import tiny_config, tiny_volume

COPIED, CLEAN = True, False


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return tiny_config({"federation": {"patients": 3, "test_patients": 1}})


@pytest.fixture(scope="module")
def sites(config: RunConfig) -> list[SimulatedSite]:
    return phantom_sites(config, seed=3)


@pytest.fixture
def progress() -> Progress:
    return make_progress(accounting="")


@pytest.fixture
def made(
    tmp_path: Path, config: RunConfig, sites: list[SimulatedSite]
) -> Callable[[bool], RunFolder]:
    """A run whose set was just made: of strangers, or with a noisy copy of a patient in it."""

    def make(copied: bool) -> RunFolder:
        folder = RunFolder(tmp_path)
        volumes = [tiny_volume(seed) for seed in (31, 32, 33)]
        if copied:
            cache = folder.sites("private") / sites[0].name / "prepared"
            patient = sites[0].load_training(config, cache=cache)[1]
            noise = torch.randn(patient.image.shape, generator=torch.Generator().manual_seed(1))
            image = (patient.image + 0.05 * noise) * (patient.labels > 0)
            volumes[1] = Volume(image=image, labels=volumes[1].labels)
        names = [f"synthetic-{index:03d}" for index in range(len(volumes))]
        for name, volume in zip(names, volumes, strict=True):
            write_synthetic(folder.unchecked, name, volume)
        table = {"training": [{"name": name, "style": "site-1"} for name in names]}
        (folder.unchecked / "dataset.json").write_text(json.dumps(table))
        return folder

    return make


@pytest.fixture
def step(config: RunConfig, sites: list[SimulatedSite], progress: Progress) -> Callable[..., None]:
    def run(folder: RunFolder, anyway: str = "") -> None:
        release_set(folder, sites, config, seed=5, anyway=anyway, progress=progress)

    return run


def about(folder: Path) -> dict[str, object]:
    facts: dict[str, object] = json.loads((folder / "dataset.json").read_text())["release_check"]
    return facts


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_set_of_too_few_patients_appears_and_says_what_is_not_known(
    made: Callable[[bool], RunFolder], step: Callable[..., None]
) -> None:
    folder = made(CLEAN)
    step(folder)
    assert not folder.unchecked.exists()
    assert not folder.withheld.exists()
    facts = about(folder.synthetic)
    assert facts["verdict"] == "not decidable"
    assert "GAN-Leaks could not be tried" in str(facts["reasons"])
    check = read_release_check(folder.release_check)
    assert check is not None
    assert (check.training, check.held_out, check.synthetic) == (6, 2, 3)
    before = contents(folder.path)
    step(folder, anyway="nobody asked")  # there is nothing to release against
    assert contents(folder.path) == before


def test_a_set_with_a_copy_is_withheld_until_a_person_says_why(
    made: Callable[[bool], RunFolder], step: Callable[..., None]
) -> None:
    folder = made(COPIED)
    step(folder)
    step(folder)  # the same command again
    assert folder.withheld.exists()
    assert not folder.synthetic.exists()
    assert not folder.unchecked.exists()
    assert about(folder.withheld)["verdict"] == "failed"
    assert "released_anyway" not in about(folder.withheld)
    check = read_release_check(folder.release_check)
    assert check is not None
    assert check.nearness[0].copies == ("synthetic-001",)
    step(folder, anyway="a phantom's copy harms nobody")
    assert folder.synthetic.exists()
    assert not folder.withheld.exists()
    released = about(folder.synthetic)["released_anyway"]
    assert isinstance(released, dict)
    assert released["reason"] == "a phantom's copy harms nobody"
    assert released["who"]
    after = read_release_check(folder.release_check)
    assert after is not None
    assert after.verdict is Verdict.FAILED
    assert after.model_copy(update={"override": None}) == check
    before = contents(folder.path)
    step(folder)
    assert contents(folder.path) == before


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("copied", [CLEAN, COPIED])
@pytest.mark.parametrize("moment", ["_write", "add_to_dataset", "rename"])
@pytest.mark.parametrize("late", [False, True])
def test_a_run_that_dies_anywhere_ends_as_if_it_had_not(
    made: Callable[[bool], RunFolder],
    step: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    copied: bool,
    moment: str,
    late: bool,
) -> None:
    """Dies before or after the write, the entry or the move; then the same command goes on."""
    folder = made(copied)
    where, name = (Path, moment) if moment == "rename" else (release_module, moment)
    works = getattr(where, name)

    def dies(*arguments: object) -> None:
        if late:
            works(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(where, name, dies)
        with pytest.raises(Killed):
            step(folder, anyway="known")
    assert not (folder.synthetic.exists() and not folder.release_check.exists())
    step(folder, anyway="known")
    assert folder.synthetic.exists()
    assert not folder.withheld.exists()
    assert not folder.unchecked.exists()
    assert ("released_anyway" in about(folder.synthetic)) is copied
    check = read_release_check(folder.release_check)
    assert check is not None
    assert (check.override is not None) is copied


def test_a_decision_that_was_recorded_is_carried_out_later(
    made: Callable[[bool], RunFolder], step: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason was given, the process died before the set moved, and nobody gives it again."""
    folder = made(COPIED)
    step(folder)

    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies)
        with pytest.raises(Killed):
            step(folder, anyway="known")
    assert folder.withheld.exists()
    step(folder)
    assert folder.synthetic.exists()


def test_every_training_patient_of_every_site_is_compared(
    made: Callable[[bool], RunFolder],
    step: Callable[..., None],
    sites: list[SimulatedSite],
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[float]] = []

    def spy(volumes: list[Volume]) -> object:
        taken = list(volumes)
        seen.append([float(volume.image.sum()) for volume in taken])
        return describe(taken)

    monkeypatch.setattr(check_module, "describe", spy)
    folder = made(CLEAN)
    step(folder)
    held_out = [float(v.image.sum()) for site in sites for v in site.load_held_out(config)]
    prepared = folder.sites("private")
    training = [
        float(volume.image.sum())
        for site in sites
        for volume in site.load_training(config, cache=prepared / site.name / "prepared")
    ]
    assert [len(group) for group in seen] == [3, 6, 2, 0]
    assert seen[1:3] == [training, held_out]
    assert not set(training) & set(held_out)


@pytest.mark.parametrize("reason", ["  ", "x" * 201, "two\nlines", "a\x1b[31mred"])
def test_a_reason_that_says_nothing_or_too_much_is_refused(reason: str) -> None:
    with pytest.raises(BadConfig, match="--release-anyway: got a reason of"):
        checked_reason(reason, flag="--release-anyway")


def test_a_reason_is_recorded_without_blanks_around_it() -> None:
    assert checked_reason("", flag="--release-anyway") == ""
    assert checked_reason(" known ", flag="--release-anyway") == "known"
