"""Label maps: shapes, tissues, folds, and the rules no tumour breaks."""

import numpy as np
import pytest
from scipy import ndimage

from medsynth_common.errors import BadInput
from medsynth_common.labels import TUMOUR, Tissue
from medsynth_common.phantom import draw_labels
from medsynth_common.phantom.anatomy import Head
from medsynth_common.phantom.cortex import Folds, Voxel
from medsynth_common.phantom.tumour import Lesion, count

SEEDS = range(30)
EDGE = 40


@pytest.fixture(scope="module")
def maps() -> list[np.ndarray]:
    return [draw_labels(np.random.default_rng(seed), (EDGE, EDGE, EDGE)) for seed in SEEDS]


@pytest.fixture(scope="module")
def healthy() -> list[np.ndarray]:
    shape = (48, 48, 48)
    return [draw_labels(np.random.default_rng(seed), shape, tumours=0) for seed in range(8)]


def touches(mask: np.ndarray, other: np.ndarray) -> bool:
    return bool((ndimage.binary_dilation(mask) & other).any())


@pytest.mark.parametrize("shape", [(32, 32, 32), (48, 48, 32), (24, 40, 64), (96, 96, 96)])
def test_any_grid_is_filled_by_the_brain(shape: tuple[int, int, int]) -> None:
    labels = draw_labels(np.random.default_rng(3), shape)
    assert labels.shape == shape
    assert labels.dtype == np.uint8
    for axis, edge in enumerate(shape):
        others = tuple(other for other in range(3) if other != axis)
        held = np.flatnonzero((labels > 0).any(axis=others))
        assert 0.82 <= (held[-1] - held[0] + 1) / edge <= 0.97
        assert held[0] > 0
        assert held[-1] < edge - 1


def test_equal_generators_draw_equal_maps_and_others_do_not() -> None:
    first, again, other = (
        draw_labels(np.random.default_rng(seed), (32, 32, 32)) for seed in (5, 5, 6)
    )
    assert first.tobytes() == again.tobytes()
    assert (first != other).mean() > 0.05


def test_healthy_brains_hold_every_healthy_tissue_in_plausible_shares(
    healthy: list[np.ndarray],
) -> None:
    for labels in healthy:
        share = np.bincount(labels.ravel(), minlength=9) / (labels > 0).sum()
        assert 0.08 < share[Tissue.CSF] < 0.32
        assert 0.004 < share[Tissue.VENTRICLE] < 0.05
        assert 0.30 < share[Tissue.GREY] < 0.55
        assert 0.25 < share[Tissue.WHITE] < 0.50
        assert 0.008 < share[Tissue.DEEP_GREY] < 0.04
        assert share[list(TUMOUR)].sum() == 0


def test_cortex_is_folded(healthy: list[np.ndarray]) -> None:
    for labels in healthy:
        brain = labels > 0
        depth = ndimage.distance_transform_edt(brain)
        fluid = labels == Tissue.CSF
        # A bare ellipsoid has fluid at its surface alone; sulci carry it 3 voxels (10 mm) down.
        assert fluid[(depth > 3) & (depth < 5)].mean() > 0.05
        # And the border between white matter and cortex is far longer than a ball's of its volume.
        white = labels == Tissue.WHITE
        border = white & ndimage.binary_dilation(labels == Tissue.GREY)
        ball = (36 * np.pi) ** (1 / 3) * white.sum() ** (2 / 3)
        assert border.sum() > 1.8 * ball


def test_ventricles_lie_inside_and_in_both_halves(healthy: list[np.ndarray]) -> None:
    for labels in healthy:
        ventricle = labels == Tissue.VENTRICLE
        assert not touches(ventricle, labels == Tissue.BACKGROUND)
        left, right = ventricle[:24].sum(), ventricle[24:].sum()
        assert min(left, right) > 0.2 * max(left, right)


def test_people_differ_in_size_of_ventricles_and_halves(healthy: list[np.ndarray]) -> None:
    volumes = [(labels == Tissue.VENTRICLE).sum() for labels in healthy]
    assert max(volumes) > 1.3 * min(volumes)
    mirrored = [(labels != labels[::-1]).mean() for labels in healthy]
    assert min(mirrored) > 0.05


def test_core_is_walled_in_by_tumour(maps: list[np.ndarray]) -> None:
    for labels in maps:
        assert not touches(labels == Tissue.CORE, ~np.isin(labels, TUMOUR))


def test_every_piece_of_oedema_surrounds_a_solid_tumour(maps: list[np.ndarray]) -> None:
    solid_classes = (Tissue.CORE, Tissue.ENHANCING)
    for labels in maps:
        pieces, found = ndimage.label(np.isin(labels, TUMOUR))
        for piece in range(1, found + 1):
            assert np.isin(labels[pieces == piece], solid_classes).any()


@pytest.mark.parametrize("seed", range(6))
def test_carving_leaves_ventricles_and_air_as_they_were(seed: int) -> None:
    axis = np.linspace(-100, 100, 40, dtype=np.float32)
    rng = np.random.default_rng(seed)
    voxel = Voxel(x=5.1, y=5.1, z=5.1)
    head = Head.draw(rng)
    folds = Folds.draw(rng, voxel=voxel, atrophy=0.3)
    brain = head.brain(head.points((axis, axis, axis)), voxel, folds)
    before = brain.labels.copy()
    # Beside the ventricles, then at the rim of the brain: where it would be easiest to spill over.
    for centre in ((20.0, -10.0, 18.0), (45.0, 20.0, 30.0)):
        lesion = Lesion.draw(rng, centre=centre, scale=1.5, finest=5.1)
        lesion.carve(brain, (axis, axis, axis))
    changed = brain.labels != before
    assert np.isin(brain.labels[changed], TUMOUR).all()
    assert changed.sum() > 30
    for kept in (Tissue.VENTRICLE, Tissue.BACKGROUND):
        assert not changed[before == kept].any()


def test_maps_hold_only_tissues(maps: list[np.ndarray]) -> None:
    for labels in maps:
        assert set(np.unique(labels)) <= set(Tissue)
        assert set(np.unique(labels)) >= {t for t in Tissue if t not in TUMOUR}


def test_counts_run_from_none_to_several_and_sizes_from_small_to_large(
    maps: list[np.ndarray],
) -> None:
    sizes = np.array([np.isin(labels, TUMOUR).sum() / (labels > 0).sum() for labels in maps])
    assert (sizes == 0).any()
    assert sizes.max() > 5 * sizes[sizes > 0].min()
    assert sizes.max() < 0.45
    rng = np.random.default_rng(0)
    counts = np.bincount([count(rng) for _ in range(2000)])
    assert 0.10 < counts[0] / 2000 < 0.15
    assert counts.argmax() == 1
    assert len(counts) == 4


@pytest.mark.parametrize("wanted", [1, 2, 3])
def test_tumours_are_drawn_when_asked_for_with_all_three_parts(wanted: int) -> None:
    for seed in range(4):
        labels = draw_labels(np.random.default_rng(seed), (40, 40, 40), tumours=wanted)
        for tissue in TUMOUR:
            assert (labels == tissue).any()


@pytest.mark.parametrize("shape", [(16, 48, 48), (48, 48, 300), (48, 48)])
def test_a_grid_out_of_range_is_refused_by_name(shape: tuple[int, int, int]) -> None:
    with pytest.raises(BadInput, match="phantom shape") as caught:
        draw_labels(np.random.default_rng(0), shape)
    assert caught.value.problems[0].name == "phantom shape"


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        draw_labels(np.random.default_rng(0), (8, 8, 8), tumours=-1)
    assert [problem.name for problem in caught.value.problems] == ["phantom shape", "tumours"]
