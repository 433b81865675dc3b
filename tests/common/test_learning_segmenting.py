import itertools

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


class Watch(nn.Module):
    """Notes which axes each window is mirrored along; knows them by an image of coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, ...]] = []

    def forward(self, windows: Tensor) -> Tensor:
        for x, y, z, _ in windows:
            falls = (x[0, 0, 0] > x[-1, 0, 0], y[0, 0, 0] > y[0, -1, 0], z[0, 0, 0] > z[0, 0, -1])
            self.seen.append(tuple(map(bool, falls)))
        return torch.zeros(len(windows), 4, *windows.shape[2:])


def test_four_windows_are_seen_all_eight_ways() -> None:
    axes = torch.meshgrid(*(torch.arange(24.0),) * 3, indexing="ij")
    watch = Watch()
    segment(watch, torch.stack([*axes, axes[0]]), crop=(16, 16, 16), spatial_dims=3)
    ways = set(itertools.product((False, True), repeat=3))
    assert len(watch.seen) == 16  # eight windows, twice each
    first, opposite = watch.seen[:4], watch.seen[4:8]
    assert set(first) | set(opposite) == ways
    assert [tuple(not along for along in one) for one in first] == opposite


def test_what_is_found_is_the_mean_of_both_views() -> None:
    draw = torch.Generator().manual_seed(1)
    uneven = nn.Conv3d(4, 4, 3, padding=1)  # sees left and right differently
    weights = torch.randn(uneven.weight.shape, generator=draw)
    uneven.load_state_dict({"weight": weights, "bias": torch.zeros(4)})
    image = torch.randn(4, 16, 16, 16, generator=draw)
    with torch.no_grad():
        whole = (1, 2, 3)
        one = uneven(image).softmax(0)
        other = uneven(image.flip(whole)).softmax(0).flip(whole)
    wanted = without_specks(((one + other) / 2).argmax(0))
    assert not torch.equal(wanted, without_specks(one.argmax(0)))
    assert torch.equal(segment(uneven, image, crop=(16, 16, 16), spatial_dims=3), wanted)


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
