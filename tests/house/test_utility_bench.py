"""The bench of utility: its patients, what it measures, and that every row can be made."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from benchmarks.utility.bench import goals
from benchmarks.utility.federation import Patients
from benchmarks.utility.kept import Kept
from benchmarks.utility.measures import dice_of, frechet_distance, image_errors
from benchmarks.utility.other_renderer import OtherScanner, draw_patient
from benchmarks.utility.presets import Preset
from benchmarks.utility.real import folds
from benchmarks.utility.rows import Comparison

from medsynth_client.stages import WORK
from medsynth_common.intensity import CEILING
from medsynth_common.labels import SEGMENTER_CLASSES, Tissue
from medsynth_common.learning.volumes import Volume
from medsynth_common.plan import Stage
from medsynth_server.shipped import shipped_model
from medsynth_server.synthesis import Painter

TINY = Preset(
    name="tiny",
    seeds=(1,),
    side=24,
    crop=16,
    sites=2,
    each=3,
    held_out=1,
    unseen=1,
    rounds=1,
    steps=1,
    sampling_rate=0.5,
    free_steps=1,
    adversarial_rounds=1,
    generator_steps=1,
    synthetic=2,
    synthetic_steps=1,
)


def comparison(folder: Path) -> Comparison:
    return Comparison(TINY, 1, TINY.patients(1), shipped_model(), Kept(folder))


def test_patients_are_repeatable_heads_on_the_scale_of_all_images() -> None:
    scanner = OtherScanner.draw(np.random.default_rng(1))
    one, same = (draw_patient((1, 2), scanner, 24) for _ in range(2))
    assert torch.equal(one.image, same.image)
    assert torch.equal(one.labels, same.labels)
    assert one.image.dtype == torch.float32
    assert float(one.image.min()) >= 0
    assert float(one.image.max()) <= CEILING
    assert not one.image[:, one.labels == Tissue.BACKGROUND].any()
    maps = torch.stack([draw_patient((seed,), scanner, 24).labels for seed in range(8)])
    assert set(maps.flatten().tolist()) == set(range(9))


def test_no_patient_is_both_trained_on_and_held_out() -> None:
    patients = Patients(1, 24, 2, 3, 2, 2)
    cohorts = (patients.training, patients.same, patients.other)
    sums = [float(v.image.sum()) for c in cohorts for volumes in c.values() for v in volumes]
    assert len(set(sums)) == len(sums) == 2 * 3 + 2 * 2 + 2
    assert patients.training.keys() == patients.same.keys() == {"site-1", "site-2"}
    assert patients.other.keys() == {"site-3"}


def test_twins_are_the_unseen_scanner_s_heads_in_scanners_of_the_sites() -> None:
    patients = Patients(1, 24, 2, 1, 1, 3)
    assert {site: len(volumes) for site, volumes in patients.twins.items()} == {
        "site-1": 2,
        "site-2": 1,
    }
    [unseen] = patients.other.values()
    for site, index, number in (("site-1", 0, 0), ("site-2", 0, 1), ("site-1", 1, 2)):
        twin = patients.twins[site][index]
        assert torch.equal(twin.labels, unseen[number].labels)
        assert not torch.equal(twin.image, unseen[number].image)


def test_larger_federations_keep_the_small_one_and_leave_the_unseen_scanner_out() -> None:
    patients = Patients(1, 24, 2, 3, 2, 2)
    assert patients.hospitals(1).keys() == {"site-1"}
    assert patients.hospitals(2) == patients.training
    four = patients.hospitals(4)
    assert four.keys() == {"site-1", "site-2", "site-4", "site-5"}
    sums = [float(v.image.sum()) for volumes in four.values() for v in volumes]
    assert len(set(sums)) == 4 * 3


def test_slices_are_nearer_to_other_patients_than_to_patients_out_of_focus() -> None:
    patients = Patients(1, 24, 1, 6, 6, 1)
    real, other = patients.training["site-1"], patients.same["site-1"]
    blurred = [
        Volume(
            image=torch.nn.functional.avg_pool3d(v.image[None], 3, 1, 1)[0] * (v.labels > 0),
            labels=v.labels,
        )
        for v in other
    ]
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(other, real) < 0.5 * frechet_distance(blurred, real)


class Pointing(torch.nn.Module):
    """Finds a tumour where the first contrast says so."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        none, core = torch.zeros_like(images[:, :1]), 2 * images[:, :1] - 1
        return torch.cat([none, core, *([none - 9] * (len(SEGMENTER_CLASSES) - 2))], dim=1)


def test_lesions_count_alike_and_false_ones_as_nothing() -> None:
    there, found = torch.zeros(2, 24, 24, 24)
    for seen in (there, found):
        seen[6:12, 6:12, 6:12] = 1
    labels = (there * Tissue.CORE + (1 - there) * Tissue.WHITE).to(torch.uint8)

    def measured(seen: torch.Tensor) -> tuple[float, float]:
        patient = Volume(image=seen.expand(4, -1, -1, -1), labels=labels)
        dice = dice_of(Pointing(), {"site": [patient]}, crop=24)
        return dice["tumour"], dice["lesion"]

    assert measured(found) == (1.0, 1.0)
    found[20:23, 20:23, 20:23] = 1  # what is no tumour, far from the one that is
    tumour, lesion = measured(found)
    assert tumour == pytest.approx(2 * 216 / (2 * 216 + 27))
    assert lesion == pytest.approx(0.5)


def test_a_healthy_head_is_spared_or_counts_as_nothing() -> None:
    ill, found = torch.zeros(2, 24, 24, 24)
    for seen in (ill, found):
        seen[6:12, 6:12, 6:12] = 1
    nothing = torch.zeros_like(ill)
    cohort = [
        Volume(
            image=seen.expand(4, -1, -1, -1),
            labels=(there * Tissue.CORE + (1 - there) * Tissue.WHITE).to(torch.uint8),
        )
        for there, seen in ((ill, found), (nothing, nothing), (nothing, nothing), (nothing, found))
    ]
    dice = dice_of(Pointing(), {"site": cohort}, crop=24)
    assert dice["lesion, ill"] == 1
    assert dice["spared"] == pytest.approx(2 / 3)
    assert dice["lesion"] == pytest.approx(3 / 4)
    assert dice_of(Pointing(), {"site": cohort[:1]}, crop=24).keys() == {
        "tumour",
        "lesion",
        "lesion, ill",
    }


def test_images_of_the_wrong_brightness_and_texture_have_errors() -> None:
    model = shipped_model()
    painter = Painter(model, ["site-1"], grid=(24, 24, 24), device=torch.device("cpu"))
    patients = TINY.patients(1).same["site-1"]
    draw = torch.Generator().manual_seed(5)
    labels = patients[0].labels
    own = Volume(image=painter.paint(labels[None], ["site-1"], draw)[0], labels=labels)
    exact = image_errors(painter, {"site-1": [own]}, seed=5)
    assert exact == {"intensity": pytest.approx(0, abs=1e-6), "texture": pytest.approx(0, abs=1e-4)}
    brighter = Volume(image=own.image + 0.1 * (own.image > 0), labels=labels)
    found = image_errors(painter, {"site-1": [brighter]}, seed=5)
    assert found["intensity"] == pytest.approx(0.1, abs=0.02)
    assert image_errors(painter, {"site-1": list(patients)}, seed=5)["texture"] > 0.05


def test_a_row_is_measured_once_and_models_are_shared(tmp_path: Path) -> None:
    bench = comparison(tmp_path)
    rows = bench.rows
    about = bench.kept.about(bench.public, "tiny")
    measured = bench.kept.row("FedAvg", about, rows["FedAvg"])
    assert measured.keys() - {"spared"} == {  # one healthy head of a few there may not be
        "tumour",
        "lesion",
        "lesion, ill",
        "tumour, unseen",
        "lesion, unseen",
        "tumour, twins",
    }
    kept = sorted(tmp_path.iterdir())
    assert bench.kept.row("FedAvg", about, pytest.fail) == measured
    again = bench.kept.row(
        "synthetic: + consistency + mean-features",
        about,
        rows["synthetic: + consistency + mean-features"],
    )
    assert again.keys() == measured.keys() | {"intensity", "texture", "frechet"}
    assert set(kept) < set(tmp_path.iterdir())


def test_of_real_patients_each_is_held_out_once_and_never_trained_on_then() -> None:
    draw = torch.Generator().manual_seed(1)
    volumes = [
        Volume(image=torch.rand(4, 2, 2, 2, generator=draw), labels=torch.zeros(2, 2, 2))
        for _ in range(5)
    ]
    patients = {
        "a": {"a-1": volumes[0], "a-2": volumes[1], "a-3": volumes[2]},
        "b": {"b-1": volumes[3], "b-2": volumes[4]},
    }
    held_out = []
    for name, fold in folds(patients):
        ((site, (out,)),) = fold.same.items()
        assert patients[site][name] is out
        trained = [id(volume) for here in fold.training.values() for volume in here]
        assert {*trained} == {id(volume) for volume in volumes} - {id(out)}
        held_out.append(id(out))
    assert sorted(held_out) == sorted(id(volume) for volume in volumes)


class AskedForStepsError(Exception):
    """A patient was asked for a step."""


def ask(_: object) -> None:
    raise AskedForStepsError


def test_before_private_steps_no_patient_was_asked_for_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cast(dict[Stage, object], WORK), Stage.SEGMENT, ask)
    bench = comparison(tmp_path)
    before = bench.rows["before private steps, epsilon 8"]()
    assert before != bench.rows["public weights"]()  # free training took place
    with pytest.raises(AskedForStepsError):
        bench.rows["FedAvg, epsilon 8"]()


def figures(**values: float) -> dict[str, float]:
    columns = ("tumour", "lesion", "texture", "tumour, unseen", "tumour, twins")
    return dict.fromkeys(columns, 0.5) | values


def test_every_goal_has_its_rows() -> None:
    names = comparison(Path("nowhere")).rows
    told = goals({name: [figures()] for name in names})
    assert [goal.met for goal in told] == [True] * len(told)


@pytest.mark.parametrize(("gains", "met"), [((0.1, 0.1, 0.1), True), ((0.4, 0.0, -0.1), False)])
def test_a_gain_counts_beyond_what_seeds_differ_by(gains: tuple[float, ...], met: bool) -> None:
    found = {name: [figures()] * len(gains) for name in comparison(Path("nowhere")).rows}
    after = "synthetic: + consistency + mean-features, epsilon 8"
    found[after] = [figures(tumour=0.5 + gain, texture=0.5 - gain) for gain in gains]
    dice, texture = (
        goal for goal in goals(found) if "adversarial stage" in goal.what and goal.least
    )
    assert (dice.met, texture.met) == (met, met)
