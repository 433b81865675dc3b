"""Planted copies, duplicates and overfitting are found; clean sets of the same scanners pass."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsynth_common.labels import TUMOUR
from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom import SITE_SCANNERS, make_phantom
from medsynth_common.release_check import ReleaseCheck, Verdict, check_release
from medsynth_common.release_check import check as check_module
from medsynth_common.release_check.reference import public_reference

GRID: Final = (24, 24, 24)
TRAINING, HELD_OUT, SYNTHETIC = 30, 10, 10
LAST: Final = f"synthetic-{SYNTHETIC - 1:03d}"
Image = NDArray[np.floating]


def volumes(count: int, *, first: int) -> list[Volume]:
    """Phantoms of two hospitals' scanners, taking turns."""
    made = []
    for index in range(count):
        phantom = make_phantom(first + index, GRID, SITE_SCANNERS[index % 2])
        made.append(
            Volume(image=torch.from_numpy(phantom.image), labels=torch.from_numpy(phantom.labels))
        )
    return made


@cache
def training() -> list[Volume]:
    return volumes(TRAINING, first=0)


@cache
def held_out() -> list[Volume]:
    return volumes(HELD_OUT, first=1000)


@cache
def clean() -> list[Volume]:
    return volumes(SYNTHETIC, first=2000)


def named(made: Sequence[Volume]) -> dict[str, Volume]:
    return {f"synthetic-{index:03d}": volume for index, volume in enumerate(made)}


@pytest.fixture(autouse=True)
def _one_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing it takes longer than all the rest."""
    monkeypatch.setattr(check_module, "public_reference", reference)


@cache
def reference(grid: tuple[int, ...], *, seed: int) -> list[Volume]:
    return list(public_reference(grid, seed=seed % 2))


def check(made: Sequence[Volume], *, seed: int = 1) -> ReleaseCheck:
    return check_release(named(made), training=training(), held_out=held_out(), seed=seed)


def with_image(volume: Volume, image: Image, labels: Volume | None = None) -> Volume:
    """Another image, by default on the volume's own label map."""
    ready = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))
    return Volume(image=ready, labels=(labels or volume).labels)


def noisy(volume: Volume, sd: float = 0.05, seed: int = 0) -> Volume:
    noise = np.random.default_rng(seed).normal(0, sd, volume.image.shape)
    return with_image(volume, (volume.image.numpy() + noise) * (volume.labels.numpy() > 0))


def mirrored(volume: Volume) -> Volume:
    return Volume(image=volume.image.flip(1), labels=volume.labels.flip(0))


def blended(volume: Volume, other: Volume) -> Volume:
    return with_image(volume, 0.7 * volume.image.numpy() + 0.3 * other.image.numpy())


def brightened(volume: Volume) -> Volume:
    gains = np.array([0.7, 1.2, 0.9, 1.1]).reshape(4, 1, 1, 1)
    return with_image(volume, (volume.image.numpy() * gains + 0.1) * (volume.labels.numpy() > 0))


def noisy_everywhere(volume: Volume) -> Volume:
    noise = np.random.default_rng(0).normal(0, 0.05, volume.image.shape)
    return with_image(volume, volume.image.numpy() + noise)


def nudged(volume: Volume) -> Volume:
    """By half a voxel of a 24-voxel grid, 4 mm of a head."""
    shifted = ndimage.shift(volume.image.numpy(), (0, 0.5, 0, 0), order=1)
    return with_image(volume, shifted)


COPIES: Mapping[str, Callable[[Volume], Volume]] = {
    "exact": lambda volume: volume,
    "noisy": noisy,
    "noisier": lambda volume: noisy(volume, 0.15),
    "mirrored": mirrored,
    "mirrored and noisy": lambda volume: noisy(mirrored(volume)),
    "other brightness and contrast": brightened,
    "nudged": nudged,
    "with noise around the brain as well": noisy_everywhere,
    "70 % of one patient, 30 % of another": lambda volume: blended(volume, training()[7]),
}


def test_a_clean_set_passes_in_every_part() -> None:
    found = check(clean())
    assert found.verdict is Verdict.PASSED
    assert [part.verdict for part in found.findings] == [Verdict.PASSED] * 6
    assert (found.training, found.held_out, found.synthetic) == (TRAINING, HELD_OUT, SYNTHETIC)
    images = found.nearness[0]
    assert (images.share, images.near_held_out) == (0.0, 0)
    assert images.share_interval.high == pytest.approx(1 - 0.025 ** (1 / SYNTHETIC))
    assert len(images.to_training) == len(images.to_held_out) == SYNTHETIC
    assert len(images.held_out_to_training) == HELD_OUT
    assert "anonym" not in found.model_dump_json().lower()


@pytest.mark.parametrize("name", COPIES)
def test_one_copy_among_clean_volumes_is_found(name: str) -> None:
    found = check([*clean()[1:], COPIES[name](training()[4])])
    assert found.verdict is Verdict.FAILED
    images = found.nearness[0]
    assert images.copies == (LAST,)
    assert images.share == 1 / SYNTHETIC
    assert images.near_held_out == 0
    assert images.reason in found.reasons


@pytest.mark.parametrize("name", ["exact", "noisy", "noisier", "mirrored", "mirrored and noisy"])
def test_a_copied_image_is_found_on_another_label_map(name: str) -> None:
    copy, labels = COPIES[name](training()[4]).image.numpy(), clean()[0].labels.numpy()
    for image in (copy, copy * (labels > 0)):  # also cut to the map
        found = check([*clean()[1:], with_image(clean()[0], image)])
        images, anatomy, tumour = found.nearness
        assert images.copies == (LAST,)
        assert (anatomy.copies, tumour.copies) == ((), ())


def test_a_set_of_even_blends_fails_as_a_whole() -> None:
    """Each half of one patient, half of the next of the same scanner: no copy of either."""
    pairs = [(training()[i], training()[i + 2]) for i in range(SYNTHETIC)]
    blends = [
        with_image(a, (a.image.numpy() + b.image.numpy()) / 2, labels)
        for (a, b), labels in zip(pairs, clean(), strict=True)
    ]
    images = check(blends).nearness[0]
    assert images.verdict is Verdict.FAILED
    assert images.unusual > 0.5 or images.copies


def test_a_copied_label_map_is_found_whatever_was_painted_on_it() -> None:
    patient = training()[3]
    assert np.isin(patient.labels.numpy(), TUMOUR).any()
    for copied in (patient, mirrored(patient)):
        painted = Volume(image=clean()[0].image, labels=copied.labels)
        _, anatomy, tumour = check([*clean()[1:], painted]).nearness
        for maps in (anatomy, tumour):
            assert maps.verdict is Verdict.FAILED
            assert maps.copies == (LAST,)


def test_a_nearly_copied_tumour_in_another_brain_is_found() -> None:
    patient, other = training()[3].labels.numpy(), clean()[0].labels.numpy()
    tumour = np.isin(patient, TUMOUR)
    spoilt = tumour & (np.random.default_rng(0).random(tumour.shape) < 0.9)
    labels = torch.from_numpy(np.where(spoilt, patient, np.where(other > 5, 4, other)))
    found = check([*clean()[1:], Volume(image=clean()[0].image, labels=labels)])
    assert found.nearness[2].copies == (LAST,)
    assert found.nearness[1].copies == ()


@pytest.mark.parametrize("again", [lambda v: v, noisy, mirrored])
def test_volumes_that_are_copies_of_one_another_are_found(
    again: Callable[[Volume], Volume],
) -> None:
    found = check([*clean(), again(clean()[2])])
    assert found.verdict is Verdict.FAILED
    assert found.duplicates.pairs == (("synthetic-002", f"synthetic-{SYNTHETIC:03d}"),)
    assert [part for part in found.findings if part.verdict is Verdict.FAILED] == [found.duplicates]


def test_an_overfitted_generator_tells_who_was_trained_on() -> None:
    """It gives back its training set with noise, on other label maps."""
    made = [noisy(volume, 0.1, seed) for seed, volume in enumerate(training())]
    found = check(made)
    assert found.verdict is Verdict.FAILED
    for attack in found.attacks:
        assert attack.verdict is Verdict.FAILED, attack
        assert attack.auc is not None
        assert attack.auc_interval is not None
        assert attack.control is not None
        assert attack.auc_interval.low > attack.control > 0.5
        assert attack.true_positive_rate is not None
        assert attack.false_positive_rate == pytest.approx(1 / HELD_OUT)
    gan_leaks = found.attacks[0]
    assert gan_leaks.true_positive_rate is not None
    assert gan_leaks.true_positive_rate > 0.9


def test_the_held_out_patients_decide_whether_it_is_memorised() -> None:
    """The same set against patients it never saw: what was a leak is none."""
    made = named([noisy(volume) for volume in training()[:SYNTHETIC]])
    strangers = volumes(TRAINING, first=5000)
    found = check_release(made, training=strangers, held_out=held_out(), seed=1)
    assert found.verdict is Verdict.PASSED


def test_a_copy_of_a_held_out_patient_is_no_copy_of_a_training_patient() -> None:
    images = check([*clean()[1:], noisy(held_out()[0])]).nearness[0]
    assert images.copies == ()
    assert images.near_held_out == 1


@pytest.mark.parametrize("seed", range(3))
def test_clean_sets_pass_whatever_the_draw(seed: int) -> None:
    first = 10_000 * (seed + 1)
    found = check_release(
        named(volumes(SYNTHETIC, first=first + 2000)),
        training=volumes(TRAINING, first=first),
        held_out=volumes(HELD_OUT, first=first + 1000),
        seed=seed,
    )
    assert found.verdict is Verdict.PASSED, found.reasons


def test_the_same_seed_gives_the_same_result() -> None:
    one, same, other = check(clean(), seed=7), check(clean(), seed=7), check(clean(), seed=8)
    assert one == same
    assert one.attacks != other.attacks
    assert ReleaseCheck.model_validate_json(one.model_dump_json()) == one


@pytest.mark.parametrize("patients", [1, 2, 3])
def test_with_few_patients_copies_are_still_found_and_the_rest_is_not_decidable(
    patients: int,
) -> None:
    few = training()[:patients]
    found = check_release(named(clean()), training=few, held_out=[], seed=1)
    assert found.verdict is Verdict.NOT_DECIDABLE
    assert all("could not be tried" in attack.reason for attack in found.attacks)
    assert all(attack.auc is None for attack in found.attacks)
    assert found.duplicates.verdict is Verdict.PASSED
    expected = Verdict.PASSED if patients >= 3 else Verdict.NOT_DECIDABLE
    assert found.nearness[0].verdict is expected
    for copy in (few[0], noisy(few[-1]), mirrored(few[0])):
        made = named([*clean()[1:], copy])
        caught = check_release(made, training=few, held_out=[], seed=1)
        assert caught.verdict is Verdict.FAILED
        assert caught.nearness[0].copies == (LAST,)


def test_volumes_that_hold_nothing_are_copies_of_one_another() -> None:
    """What a generator that diverged paints: the set must not leave, and the check must not end."""
    nothing = with_image(clean()[0], np.full((4, *GRID), np.nan))
    found = check([*clean(), nothing, with_image(clean()[1], np.zeros((4, *GRID)))])
    assert found.verdict is Verdict.FAILED
    assert found.duplicates.pairs == (
        (f"synthetic-{SYNTHETIC:03d}", f"synthetic-{SYNTHETIC + 1:03d}"),
    )
    assert found.nearness[0].copies == ()
