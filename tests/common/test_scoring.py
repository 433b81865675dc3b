"""HD95 against shapes and MONAI; lesion-wise scores on cases made by hand, as BraTS 2023 counts."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from numpy.typing import NDArray

from medsynth_common.labels import Region, Tissue, segmenter_target
from medsynth_common.scoring import score_patient
from medsynth_common.scoring.hausdorff import PENALTY_MM, hd95
from medsynth_common.scoring.lesionwise import score_lesions

Mask = NDArray[np.bool_]


def mm(side: float) -> tuple[float, float, float]:
    return (side, side, side)


def box(*corners: tuple[int, int]) -> Mask:
    mask = np.zeros((24, 24, 24), dtype=bool)
    mask[tuple(slice(first, last) for first, last in corners)] = True
    return mask


def cube(at: int, side: int = 4, height: int = 4) -> Mask:
    return box((at, at + side), (4, 4 + side), (height, height + side))


def test_a_shifted_cube_is_as_far_as_it_was_shifted() -> None:
    assert hd95(cube(4), cube(4), voxel=mm(2.0)) == 0.0
    assert hd95(cube(4), cube(7), voxel=mm(2.0)) == 6.0
    # A plate over a plate, three voxels away: every surface voxel is as far.
    high, low = box((2, 20), (2, 20), (8, 9)), box((2, 20), (2, 20), (5, 6))
    assert hd95(high, low, voxel=mm(1.5)) == 4.5


def test_thick_slices_are_as_far_apart_as_they_are_thick() -> None:
    upper, lower = cube(4, height=10), cube(4, height=7)
    assert hd95(upper, lower, voxel=(1.0, 1.0, 4.0)) == 12.0
    assert hd95(upper, lower, voxel=(4.0, 4.0, 1.0)) == 3.0


def test_what_one_side_lacks_costs_the_penalty() -> None:
    nothing = np.zeros((24, 24, 24), dtype=bool)
    assert hd95(nothing, cube(4), voxel=mm(1.0)) == PENALTY_MM
    assert hd95(cube(4), nothing, voxel=mm(1.0)) == PENALTY_MM
    assert hd95(nothing, nothing, voxel=mm(1.0)) == 0.0


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")  # MONAI warns of itself
@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_distance_that_monai_measures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    blobs = [
        np.logical_or.reduce([cube(*map(int, rng.integers(0, 18, 1))) for _ in range(3)])
        | (rng.random((24, 24, 24)) < 0.001)
        for _ in range(2)
    ]
    found, there = (torch.from_numpy(blob)[None, None].float() for blob in blobs)
    theirs = compute_hausdorff_distance(
        found, there, include_background=True, percentile=95, spacing=2.5
    )
    assert hd95(*blobs, voxel=mm(2.5)) == pytest.approx(float(theirs), abs=1e-4)


def test_a_lesion_found_and_a_lesion_missed() -> None:
    there = cube(2) | cube(16)
    scores = score_lesions(cube(2), there, voxel=mm(1.0))
    assert (scores.lesions, scores.missed, scores.false) == (2, 1, 0)
    assert scores.dice == 0.5
    assert scores.hd95 == PENALTY_MM / 2


def test_a_false_find_counts_as_a_lesion_of_nothing() -> None:
    scores = score_lesions(cube(2) | cube(16), cube(2), voxel=mm(1.0))
    assert (scores.lesions, scores.missed, scores.false) == (1, 0, 1)
    assert (scores.dice, scores.hd95) == (0.5, PENALTY_MM / 2)


def test_a_healthy_patient_is_found_healthy_or_not() -> None:
    nothing = np.zeros((24, 24, 24), dtype=bool)
    right, wrong = (score_lesions(found, nothing, voxel=mm(1.0)) for found in (nothing, cube(4)))
    assert (right.dice, right.hd95, right.false) == (1.0, 0.0, 0)
    assert (wrong.dice, wrong.hd95, wrong.false) == (0.0, PENALTY_MM, 1)


def test_lesions_whose_dilations_meet_are_one() -> None:
    near, far = cube(2) | cube(9), cube(2) | cube(16)  # gaps of 3 and 10 voxels
    assert score_lesions(near, near, voxel=mm(1.0)).lesions == 1
    assert score_lesions(far, far, voxel=mm(1.0)).lesions == 2
    # Voxels of 3 mm: the dilation is one of them, and three between are too far.
    assert score_lesions(near, near, voxel=mm(3.0)).lesions == 2


def test_a_find_near_a_lesion_is_the_lesions_own() -> None:
    beside = cube(8)  # two voxels from the lesion, within its dilation
    scores = score_lesions(beside, cube(2), voxel=mm(1.0))
    assert (scores.missed, scores.false, scores.dice) == (0, 0, 0.0)
    assert scores.hd95 == hd95(beside, cube(2), voxel=mm(1.0))


def test_lesions_of_fifty_cubic_millimetres_do_not_count() -> None:
    small = box((4, 9), (4, 9), (4, 6))  # 50 voxels
    assert score_lesions(np.zeros_like(small), small, voxel=mm(1.0)).lesions == 0
    assert score_lesions(small, small, voxel=mm(1.0)).dice == 1.0
    assert score_lesions(small, small, voxel=mm(1.01)).lesions == 1


def test_a_patient_has_scores_for_every_region() -> None:
    labels = torch.full((24, 24, 24), int(Tissue.WHITE), dtype=torch.uint8)
    labels[4:12, 4:12, 4:12] = Tissue.OEDEMA
    labels[6:10, 6:10, 6:10] = Tissue.CORE
    target = segmenter_target(labels)
    found = target.clone()
    found[target == 1] = 2  # the core taken for oedema: only the whole tumour is right
    scores = score_patient(found, target, voxel=mm(2.0))
    assert (scores[Region.WHOLE].dice, scores[Region.WHOLE].hd95) == (1.0, 0.0)
    assert (scores[Region.CORE].dice, scores[Region.CORE].hd95) == (0.0, PENALTY_MM)
    assert scores[Region.CORE].missed == 1
    enhancing = scores[Region.ENHANCING]  # there is none, and none was found
    assert (enhancing.dice, enhancing.hd95, enhancing.lesion_dice) == (None, None, 1.0)
