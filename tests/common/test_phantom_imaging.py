"""Images of phantoms: contrast as a radiologist knows it, scale, noise, and differing scanners."""

import numpy as np
import pytest

from medsynth_common.errors import BadInput
from medsynth_common.labels import CONTRASTS, Contrast, Tissue
from medsynth_common.phantom import SITE_SCANNERS, Phantom, Scanner, image, make_phantom

SHAPE = (40, 40, 40)


@pytest.fixture(scope="module")
def phantoms() -> dict[str, Phantom]:
    return {s.name: make_phantom(11, SHAPE, s, tumours=1) for s in SITE_SCANNERS}


def means(phantom: Phantom, contrast: Contrast) -> dict[Tissue, float]:
    channel = phantom.image[CONTRASTS.index(contrast)]
    return {tissue: float(np.median(channel[phantom.labels == tissue])) for tissue in Tissue}


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again, other = (make_phantom(s, (32, 32, 32), SITE_SCANNERS[0]) for s in (1, 1, 2))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert first.image.tobytes() != other.image.tobytes()


def test_one_patient_on_two_scanners_has_one_anatomy(phantoms: dict[str, Phantom]) -> None:
    first, *rest = phantoms.values()
    for other in rest:
        np.testing.assert_array_equal(first.labels, other.labels)
        assert np.abs(first.image - other.image).mean() > 0.01


@pytest.mark.parametrize("name", [scanner.name for scanner in SITE_SCANNERS])
def test_images_read_as_their_contrasts(phantoms: dict[str, Phantom], name: str) -> None:
    phantom = phantoms[name]
    t1, t1gd = means(phantom, Contrast.T1), means(phantom, Contrast.T1GD)
    t2, flair = means(phantom, Contrast.T2), means(phantom, Contrast.FLAIR)
    assert t1[Tissue.WHITE] > t1[Tissue.GREY] > t1[Tissue.VENTRICLE]
    assert t1[Tissue.WHITE] > t1[Tissue.OEDEMA]
    assert t1gd[Tissue.ENHANCING] > t1gd[Tissue.WHITE] > t1gd[Tissue.CORE]
    assert t2[Tissue.VENTRICLE] > t2[Tissue.GREY] > t2[Tissue.WHITE]
    assert t2[Tissue.OEDEMA] > 1.2 * t2[Tissue.WHITE]
    assert flair[Tissue.OEDEMA] > flair[Tissue.GREY] > flair[Tissue.VENTRICLE]
    assert flair[Tissue.WHITE] > 1.5 * flair[Tissue.VENTRICLE]


@pytest.mark.parametrize("name", [scanner.name for scanner in SITE_SCANNERS])
def test_images_are_scaled_and_empty_outside_the_brain(
    phantoms: dict[str, Phantom], name: str
) -> None:
    phantom = phantoms[name]
    brain = phantom.labels > 0
    assert phantom.image.shape == (len(CONTRASTS), *SHAPE)
    assert phantom.image.dtype == np.float32
    assert np.isfinite(phantom.image).all()
    assert phantom.image.min() == 0
    assert phantom.image.max() <= 1.25
    assert not phantom.image[:, ~brain].any()
    np.testing.assert_allclose(np.percentile(phantom.image[:, brain], 99, axis=1), 1, atol=1e-4)


def quiet(**changes: object) -> Scanner:
    still = {"noise": 0.0, "bias": 0.0, "texture": 0.0, "resolution": (0.0, 0.0, 0.0)}
    return Scanner.model_validate(SITE_SCANNERS[0].model_dump() | still | changes)


def contrast_sd(scanner: Scanner, labels: np.ndarray) -> float:
    """Relative SD of T1 within white matter."""
    channel = image(labels, scanner, np.random.default_rng(0))[0]
    white = channel[labels == Tissue.WHITE]
    return float(white.std() / white.mean())


@pytest.mark.parametrize(
    ("setting", "value", "size"), [("noise", 0.1, 0.1), ("bias", 0.2, 0.2), ("texture", 0.1, 0.1)]
)
def test_each_imperfection_is_about_as_large_as_its_setting(
    phantoms: dict[str, Phantom], setting: str, value: float, size: float
) -> None:
    labels = phantoms[SITE_SCANNERS[0].name].labels
    clean = contrast_sd(quiet(), labels)
    spoilt = contrast_sd(quiet(**{setting: value}), labels)
    assert 0.4 * size < np.sqrt(max(spoilt**2 - clean**2, 0)) < 1.7 * size


def test_blur_mixes_tissues_along_the_axis_it_is_set_for(phantoms: dict[str, Phantom]) -> None:
    labels = phantoms[SITE_SCANNERS[0].name].labels
    sharp, thick = (
        image(labels, quiet(resolution=(0, 0, width)), np.random.default_rng(0))[2]
        for width in (0, 3)
    )
    loss = [
        np.abs(np.diff(thick, axis=a)).sum() / np.abs(np.diff(sharp, axis=a)).sum() for a in (0, 2)
    ]
    assert loss[1] < 0.8 * loss[0] < 0.8


def test_scanners_differ_more_than_patients_do(phantoms: dict[str, Phantom]) -> None:
    labels = phantoms[SITE_SCANNERS[0].name].labels
    grey, white = labels == Tissue.GREY, labels == Tissue.WHITE

    def signature(seed: int, scanner: Scanner) -> list[float]:
        """Contrast of white matter to grey, and roughness, in T1 and FLAIR."""
        taken = image(labels, scanner, np.random.default_rng(seed))[[0, 3]]
        contrasts = [np.median(channel[white]) / np.median(channel[grey]) for channel in taken]
        rough = [
            np.abs(np.diff(channel, axis=0))[white[1:] & white[:-1]].mean() for channel in taken
        ]
        return [*map(float, contrasts), *map(float, rough)]

    table = np.array([[signature(seed, s) for seed in range(5)] for s in SITE_SCANNERS])
    between = table.mean(axis=1).std(axis=0)  # (feature,), over scanners
    within = table.std(axis=1).mean(axis=0)  # (feature,), over patients
    assert (between > 1.5 * within).any()
    # Every pair of sites is told apart by some feature.
    for first in range(len(table)):
        for second in range(first):
            gap = np.abs(table[first].mean(axis=0) - table[second].mean(axis=0))
            assert (gap > within).any()


def test_randomise_widens_what_patients_look_like(phantoms: dict[str, Phantom]) -> None:
    labels = phantoms[SITE_SCANNERS[0].name].labels

    def spread(randomise: float) -> float:
        ratios = []
        for seed in range(12):
            t2 = image(labels, quiet(), np.random.default_rng(seed), randomise=randomise)[2]
            ratios.append(
                np.median(t2[labels == Tissue.GREY]) / np.median(t2[labels == Tissue.WHITE])
            )
        return float(np.std(ratios))

    assert spread(1.0) > 3 * spread(0.0) > 0


def test_randomise_out_of_range_is_refused(phantoms: dict[str, Phantom]) -> None:
    labels = phantoms[SITE_SCANNERS[0].name].labels
    with pytest.raises(BadInput, match="randomise"):
        image(labels, quiet(), np.random.default_rng(0), randomise=1.5)


def test_a_map_without_a_brain_is_refused() -> None:
    with pytest.raises(BadInput, match="brain"):
        image(np.zeros((32, 32, 32), np.uint8), quiet(), np.random.default_rng(0))
