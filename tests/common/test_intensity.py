"""One scale for every image."""

import numpy as np
import pytest

from medsynth_common.errors import BadData
from medsynth_common.intensity import normalise


def test_the_brains_99th_percentile_becomes_one_and_spikes_are_cut() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 700, (4, 12, 12, 12)) * np.array([1, 2, 30, 0.01]).reshape(4, 1, 1, 1)
    mask = np.zeros((12, 12, 12), dtype=bool)
    mask[2:10, 2:10, 2:10] = True
    image[0, 5, 5, 5] = 1e6
    scaled = normalise(image, mask)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(np.percentile(scaled[:, mask], 99, axis=1), 1, atol=1e-3)
    assert scaled[0, 5, 5, 5] == np.float32(1.25)


def test_the_unit_of_the_image_does_not_matter_and_negatives_become_zero() -> None:
    image = np.random.default_rng(1).normal(5, 2, (4, 8, 8, 8))
    mask = np.ones((8, 8, 8), dtype=bool)
    np.testing.assert_allclose(normalise(image, mask), normalise(image * 250, mask), rtol=1e-5)
    assert normalise(image - 5, mask).min() == 0


def test_every_unusable_contrast_is_told() -> None:
    image = np.ones((4, 8, 8, 8))
    image[1] = 0
    image[3, 4, 4, 4] = np.nan
    with pytest.raises(BadData) as caught:
        normalise(image, np.ones((8, 8, 8), dtype=bool))
    assert [problem.name.split(":")[0] for problem in caught.value.problems] == ["t1gd", "flair"]


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(BadData, match="brain mask"):
        normalise(np.ones((4, 8, 8, 8)), np.zeros((8, 8, 8), dtype=bool))
