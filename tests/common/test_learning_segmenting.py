import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from medsynth_common.labels import SEGMENTER_CLASSES, Tissue
from medsynth_common.learning.segmenting import SPECK, segment, without_specks
from medsynth_common.phantom import draw_labels

CORE, OEDEMA = SEGMENTER_CLASSES.index(Tissue.CORE), SEGMENTER_CLASSES.index(Tissue.OEDEMA)


def bright_in_flair() -> nn.Module:
    """A "segmenter" that calls what is bright in FLAIR oedema."""
    weights = torch.zeros(4, 4, 1, 1, 1)
    weights[OEDEMA, 3] = 1.0
    threshold = nn.Conv3d(4, 4, 1)
    threshold.load_state_dict({"weight": weights, "bias": torch.tensor([0.5, 0.0, 0.0, 0.0])})
    return threshold


def test_a_whole_volume_is_segmented() -> None:
    image = torch.zeros(4, 24, 20, 28)
    image[3, 2:9, 3:8, 20:27] = 1.0  # windows of 16^3 cut it
    found = segment(bright_in_flair(), image, crop=(16, 16, 16), spatial_dims=3)
    assert torch.equal(found == OEDEMA, image[3] > 0.5)
    assert bool((found[found != OEDEMA] == 0).all())


def find(voxels: int) -> Tensor:
    """A find of so many voxels, each touching the next by a corner."""
    found = torch.zeros(SPECK + 1, SPECK + 1, SPECK + 1, dtype=torch.int64)
    diagonal = torch.arange(voxels)
    found[diagonal, diagonal, diagonal] = OEDEMA
    return found


@pytest.mark.parametrize(("voxels", "kept"), [(SPECK, True), (SPECK - 1, False), (0, True)])
def test_a_speck_is_no_lesion(voxels: int, kept: bool) -> None:
    found = find(voxels)
    assert torch.equal(without_specks(found), found if kept else torch.zeros_like(found))


def test_what_is_small_in_a_large_lesion_stays() -> None:
    found = find(SPECK)
    found[3, 3, 3] = CORE
    speck = found.clone()
    speck[-1, 0, 0] = CORE
    assert torch.equal(without_specks(speck), found)


def test_no_lesion_of_public_training_is_a_speck() -> None:
    # The rule stands on this: what training never shows cannot be found for good reason.
    for seed in range(8):
        labels = draw_labels(np.random.default_rng(seed), (24, 24, 24), tumours=2)
        lesions, _ = ndimage.label(labels >= Tissue.CORE, structure=np.ones((3, 3, 3)))
        assert np.bincount(lesions.ravel()).min() > 2 * SPECK
