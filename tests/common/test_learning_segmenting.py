import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from medsynth_common.labels import SEGMENTER_CLASSES, Tissue
from medsynth_common.learning.segmenting import BEHIND, SPECK, segment, sure_finds
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
    wanted = sure_finds((one + other) / 2)
    assert bool((wanted > 0).any())
    assert not torch.equal(wanted, sure_finds(one))
    assert torch.equal(segment(uneven, image, crop=(16, 16, 16), spatial_dims=3), wanted)


def probabilities(*finds: tuple[slice, float, int]) -> Tensor:
    """Of columns of nine voxels along x, healthy but for finds that are so sure of a tissue."""
    chances = torch.zeros(4, 20, 3, 3)
    chances[0] = 1.0
    for where, sure, tissue in finds:
        chances[0, where] = 1 - sure
        chances[1:, where] = 0
        chances[tissue, where] = sure
    return chances


def columns(probabilities: Tensor) -> list[int]:
    """What is found along x, in columns that hold one tissue each."""
    found = sure_finds(probabilities)
    assert bool((found == found[:, :1, :1]).all())
    return found[:, 0, 0].tolist()


def test_a_find_is_dropped_as_a_whole_that_is_much_less_sure_than_the_surest() -> None:
    for sure in (0.95, 0.65):  # on a scanner that it knows, and on another
        for behind, kept in ((BEHIND - 0.01, True), (BEHIND + 0.01, False)):
            chances = probabilities((slice(0, 3), sure, OEDEMA), (slice(6, 9), sure - behind, CORE))
            other = [CORE if kept else 0] * 3
            assert columns(chances) == [OEDEMA] * 3 + [0] * 3 + other + [0] * 11


def test_a_find_is_as_sure_as_its_voxels_are_on_average() -> None:
    surest, edge = (slice(0, 3), 0.9, OEDEMA), (slice(9, 10), 0.55, OEDEMA)
    kept = probabilities(surest, (slice(6, 9), 0.95, CORE), edge)
    assert columns(kept)[6:11] == [CORE] * 3 + [OEDEMA, 0]
    tip = (slice(9, 10), 0.95, CORE)
    assert columns(probabilities(surest, (slice(6, 9), 0.55, CORE), tip))[6:11] == [0] * 5


def test_tissues_of_a_tumour_speak_for_each_other() -> None:
    torn = probabilities((slice(0, 3), 0.9, OEDEMA), (slice(6, 9), 0.5, CORE))
    torn[0, 6:9], torn[OEDEMA, 6:9] = 0.1, 0.4
    assert columns(torn)[6:9] == [CORE] * 3


def diagonal(voxels: int) -> Tensor:
    """A find of so many voxels, each touching the next by a corner."""
    chances = torch.zeros(4, SPECK + 1, SPECK + 1, SPECK + 1)
    chances[0] = 1.0
    line = torch.arange(voxels)
    chances[0, line, line, line] = 0.2
    chances[OEDEMA, line, line, line] = 0.8
    return chances


@pytest.mark.parametrize(("voxels", "kept"), [(SPECK, SPECK), (SPECK - 1, 0), (0, 0)])
def test_a_speck_is_no_lesion(voxels: int, kept: int) -> None:
    assert int((sure_finds(diagonal(voxels)) > 0).sum()) == kept


def test_no_find_is_measured_by_a_speck() -> None:
    chances = diagonal(SPECK)
    chances[:, -1, 0, 0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    found = sure_finds(chances)
    assert int((found > 0).sum()) == SPECK
    assert not bool(found[-1, 0, 0])


def test_no_lesion_of_public_training_is_a_speck() -> None:
    # The rule stands on this: what training never shows cannot be found for good reason.
    for seed in range(8):
        labels = draw_labels(np.random.default_rng(seed), (24, 24, 24), tumours=2)
        lesions, _ = ndimage.label(labels >= Tissue.CORE, structure=np.ones((3, 3, 3)))
        assert np.bincount(lesions.ravel()).min() > 2 * SPECK
