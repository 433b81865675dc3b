import numpy as np
import pytest
from numpy.typing import NDArray

from medsynth_common.dataset.frame import fit_frame, voxel_form
from medsynth_common.labels import Tissue
from small_patients import small_labels

MILLIMETRE = np.eye(4)


def ball(size: int, radius: float) -> NDArray[np.bool_]:
    axis = np.arange(size) - (size - 1) / 2
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.asarray(x**2 + y**2 + z**2 < radius**2)


@pytest.mark.parametrize("shape", [(32, 32, 32), (20, 24, 16), (9, 40, 12)])
@pytest.mark.parametrize("grid", [(60, 40, 50), (12, 10, 8)])
def test_the_grid_fits_centred_with_voxels_of_its_form(
    grid: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = 5, 6, 7
    frame = fit_frame(grid, affine, shape)
    sizes = np.linalg.norm(frame.affine[:3, :3], axis=0)
    np.testing.assert_allclose(sizes, sizes[0] * voxel_form(shape))
    new_centre = frame.affine @ [*(np.asarray(shape) - 1) / 2, 1]
    old_centre = affine @ [*(np.asarray(grid) - 1) / 2, 1]
    np.testing.assert_allclose(new_centre, old_centre)
    filled = np.asarray(grid) * [1, 2, 3] / sizes
    assert (filled <= np.asarray(shape) - 2 + 1e-9).all()
    assert np.isclose(filled, np.asarray(shape) - 2).any()


def test_a_flat_grid_has_thick_slices_and_others_have_cubes() -> None:
    for cubic in ((48, 48, 48), (96, 112, 96), (128, 128, 128), (16, 40, 40)):
        np.testing.assert_array_equal(voxel_form(cubic), 1)
    np.testing.assert_allclose(voxel_form((128, 128, 54)), [1, 1, 1.88], atol=0.01)
    # A head of 150 x 180 x 140 mm: no thinner than it must be, and filled from top to bottom.
    frame = fit_frame((150, 180, 140), MILLIMETRE, (128, 128, 54))
    x, y, z = np.linalg.norm(frame.affine[:3, :3], axis=0)
    assert x == pytest.approx(y) == pytest.approx(180 / 126)
    assert 140 / z > 0.98 * 52


@pytest.mark.parametrize("size", [12, 24, 70])
def test_a_ramp_stays_a_ramp_in_millimetres(size: int) -> None:
    """Linear interpolation and averaging both keep a linear image, to a tenth of a voxel."""
    frame = fit_frame((24, 24, 24), MILLIMETRE, (size, size, size))
    x, y, z = np.meshgrid(*[np.arange(24.0)] * 3, indexing="ij")
    resampled = frame.resample((x + 2 * y - z).astype(np.float32))
    middle = slice(size // 3, size - size // 3)
    index = np.stack(np.meshgrid(*[np.arange(size)[middle]] * 3, indexing="ij"), axis=-1)
    place = index @ frame.affine[:3, :3].T + frame.affine[:3, 3]
    np.testing.assert_allclose(resampled[middle, middle, middle], place @ [1, 2, -1], atol=0.3)


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((60, 60, 60), dtype=np.float32)
    stripes[::2] = 1.0  # a pattern too fine for the new grid must become its mean
    frame = fit_frame((60, 60, 60), MILLIMETRE, (14, 14, 14))
    assert np.abs(frame.resample(stripes)[4:-4, 4:-4, 4:-4] - 0.5).max() < 0.03


def test_shrinking_keeps_the_amount() -> None:
    frame = fit_frame((40, 40, 40), MILLIMETRE, (12, 12, 12))
    volume = ball(40, 12).astype(np.float32)
    voxel = np.linalg.det(frame.affine[:3, :3])
    assert frame.resample(volume).sum() * voxel == pytest.approx(volume.sum(), rel=0.01)


def test_labels_on_their_own_grid_come_back() -> None:
    labels = small_labels((26, 26, 26))
    frame = fit_frame((26, 26, 26), MILLIMETRE, (28, 28, 28))
    np.testing.assert_array_equal(frame.resample_labels(labels)[1:-1, 1:-1, 1:-1], labels)


def test_small_and_thin_lesions_keep_their_volume_when_shrunk() -> None:
    labels = np.zeros((60, 60, 60), dtype=np.uint8)
    labels[ball(60, 29)] = Tissue.WHITE
    labels[ball(60, 9)] = Tissue.ENHANCING  # a rim one millimetre thick
    labels[ball(60, 8)] = Tissue.CORE
    for x, y, z in ((30, 45, 30), (15, 30, 30), (45, 20, 24)):
        labels[x : x + 2, y : y + 2, z : z + 2] = Tissue.OEDEMA
    frame = fit_frame((60, 60, 60), MILLIMETRE, (22, 22, 22))
    shrunk = frame.resample_labels(labels)
    voxel = np.linalg.det(frame.affine[:3, :3])
    for tissue in (Tissue.CORE, Tissue.ENHANCING, Tissue.OEDEMA):
        kept = (shrunk == tissue).sum() * voxel
        assert kept == pytest.approx((labels == tissue).sum(), abs=voxel), tissue


def test_one_voxel_of_tumour_is_never_lost() -> None:
    labels = ball(60, 29).astype(np.uint8) * np.uint8(Tissue.WHITE)
    labels[20, 30, 30] = Tissue.ENHANCING
    shrunk = fit_frame((60, 60, 60), MILLIMETRE, (10, 10, 10)).resample_labels(labels)
    assert (shrunk == Tissue.ENHANCING).sum() == 1


def test_a_brain_full_of_tumour_and_an_empty_map_are_resampled_too() -> None:
    frame = fit_frame((20, 20, 20), MILLIMETRE, (10, 10, 10))
    full = ball(20, 9).astype(np.uint8) * np.uint8(Tissue.CORE)
    shrunk = frame.resample_labels(full)
    assert set(np.unique(shrunk)) == {Tissue.BACKGROUND, Tissue.CORE}
    assert not frame.resample_labels(np.zeros((20, 20, 20), dtype=np.uint8)).any()


def test_labels_never_hold_a_class_that_was_not_there() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        grid = tuple(int(size) for size in rng.integers(6, 30, size=3))
        labels = rng.choice([0, 1, 4, 6, 8], size=grid).astype(np.uint8)
        frame = fit_frame((grid[0], grid[1], grid[2]), MILLIMETRE, (12, 10, 14))
        assert set(np.unique(frame.resample_labels(labels))) <= {0, 1, 4, 6, 8}
