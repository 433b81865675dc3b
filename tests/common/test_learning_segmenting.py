import itertools

import torch
from torch import Tensor, nn

from medsynth_common.labels import SEGMENTER_CLASSES, Tissue
from medsynth_common.learning.segmenting import DOUBTFUL, segment, sure_finds

CORE, OEDEMA = SEGMENTER_CLASSES.index(Tissue.CORE), SEGMENTER_CLASSES.index(Tissue.OEDEMA)


def bright_in_flair() -> nn.Module:
    """A "segmenter" that calls what is bright in FLAIR oedema."""
    weights = torch.zeros(4, 4, 1, 1, 1)
    weights[OEDEMA, 3] = 10.0
    threshold = nn.Conv3d(4, 4, 1)
    threshold.load_state_dict({"weight": weights, "bias": torch.tensor([5.0, 0.0, 0.0, 0.0])})
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
    weights = 3 * torch.randn(uneven.weight.shape, generator=draw)
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
    """Of a row of voxels along x that are healthy but for some finds, each so sure of a tissue."""
    chances = torch.zeros(4, 12, 3, 3)
    chances[0] = 1.0
    for where, sure, tissue in finds:
        chances[0, where, 1, 1] = 1 - sure
        chances[tissue, where, 1, 1] = sure
    return chances


def test_a_find_is_kept_or_dropped_as_a_whole_by_its_mean() -> None:
    sure, doubtful = slice(0, 2), slice(6, 9)
    chances = probabilities((sure, DOUBTFUL + 0.01, OEDEMA), (doubtful, DOUBTFUL - 0.01, CORE))
    found = sure_finds(chances)
    assert found[sure, 1, 1].tolist() == [OEDEMA] * 2
    assert int((found > 0).sum()) == 2
    # What is doubtful in a find that is sure as a whole is part of it.
    edge = probabilities((slice(0, 3), 0.95, CORE), (slice(3, 4), 0.55, OEDEMA))
    assert sure_finds(edge)[:5, 1, 1].tolist() == [CORE] * 3 + [OEDEMA, 0]
    # And the other way round.
    tip = probabilities((slice(0, 3), 0.55, CORE), (slice(3, 4), 0.95, CORE))
    assert not bool(sure_finds(tip).any())


def test_tissues_of_a_tumour_speak_for_each_other() -> None:
    torn = probabilities((slice(0, 3), 0.5, CORE))
    torn[0, :3, 1, 1], torn[OEDEMA, :3, 1, 1] = 0.1, 0.4
    assert sure_finds(torn)[:3, 1, 1].tolist() == [CORE] * 3


def test_finds_that_touch_by_a_corner_are_one() -> None:
    chances = probabilities((slice(0, 2), 0.99, CORE))
    chances[:, 2, 2, 2] = torch.tensor([0.45, 0.55, 0.0, 0.0])
    assert int((sure_finds(chances) > 0).sum()) == 3


def test_nothing_found_is_nothing() -> None:
    assert not bool(sure_finds(probabilities()).any())
