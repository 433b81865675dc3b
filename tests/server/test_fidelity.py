"""Distances against closed forms and brute force; radiomics and likeness on shapes."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from medsynth_common.labels import Contrast, Tissue
from medsynth_common.learning.volumes import Volume
from medsynth_server.fidelity.distances import frechet, gaussian_frechet, kernel, manifold
from medsynth_server.fidelity.diversity import likeness
from medsynth_server.fidelity.features import Plane, features_of
from medsynth_server.fidelity.measure import Set, Standard, compare, halves
from medsynth_server.fidelity.radiomics import cooccurrence, first_order, radiomics, shape
from tiny_run import public_model, tiny_volume

Floats = NDArray[np.float64]


def cloud(seed: int, n: int = 40, width: int = 3, shift: float = 0.0) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, width)) + shift


def test_gaussians_are_as_far_as_the_formula_says() -> None:
    rng = np.random.default_rng(1)
    one, other = (m @ m.T + np.eye(4) for m in rng.normal(size=(2, 4, 4)))
    means = rng.normal(size=(2, 4))
    root = np.real(sqrtm(one @ other))
    wanted = ((means[0] - means[1]) ** 2).sum() + np.trace(one + other - 2 * root)
    assert gaussian_frechet(means[0], one, means[1], other) == pytest.approx(float(wanted))
    # In one dimension: (m - m')^2 + (s - s')^2.
    narrow = [np.array([[4.0]]), np.array([[9.0]])]
    found = gaussian_frechet(np.array([1.0]), narrow[0], np.array([4.0]), narrow[1])
    assert found == pytest.approx(9.0 + 1.0)


def test_the_frechet_distance_of_samples_is_that_of_their_gaussians() -> None:
    points = cloud(2)
    assert frechet(points, points) == pytest.approx(0.0, abs=1e-9)
    assert frechet(points, points + 2.0) == pytest.approx(3 * 4.0)
    # Few samples of one source are not at 0: the bias that the control shows.
    few, many = (frechet(cloud(3, n), cloud(4, n)) for n in (8, 4000))
    assert few > 10 * many


def brute_kernel(one: Floats, other: Floats) -> float:
    def k(x: Floats, y: Floats) -> float:
        return float((x @ y / len(x) + 1) ** 3)

    own = [k(x, y) for i, x in enumerate(one) for j, y in enumerate(one) if i != j]
    others = [k(x, y) for i, x in enumerate(other) for j, y in enumerate(other) if i != j]
    across = [k(x, y) for x in one for y in other]
    return float(np.mean(own) + np.mean(others) - 2 * np.mean(across))


def test_the_kernel_distance_is_its_definition_and_unbiased() -> None:
    assert kernel(cloud(1, 7), cloud(2, 5)) == pytest.approx(brute_kernel(cloud(1, 7), cloud(2, 5)))
    same = [kernel(cloud(2 * s, 6), cloud(2 * s + 1, 6)) for s in range(2000)]
    error = np.std(same) / len(same) ** 0.5
    assert abs(np.mean(same)) < 4 * error  # around 0, at six samples
    assert min(same) < 0
    assert kernel(cloud(1), cloud(2, shift=1.0)) > 10 * np.std(same) / 6


def test_manifolds_of_toy_clouds() -> None:
    real = cloud(1, 60, 2)
    alike = manifold(real, cloud(2, 60, 2))
    assert alike.precision > 0.8
    assert alike.recall > 0.8
    assert 0.5 < alike.density < 1.6
    far = manifold(real, cloud(3, 60, 2, shift=30.0))
    assert (far.precision, far.recall, far.density, far.coverage) == (0.0, 0.0, 0.0, 0.0)
    # One mode of two: everything made looks real, half of what is real was never made.
    modes = np.concatenate([cloud(4, 30, 2), cloud(5, 30, 2, shift=20.0)])
    collapsed = manifold(modes, cloud(6, 60, 2))
    assert collapsed.precision > 0.8
    assert collapsed.recall < 0.55
    assert collapsed.coverage <= 0.5
    # A single outlier covers itself alone in density's count, and spoils precision's.
    assert manifold(real, real).coverage == 1.0


def test_first_order_features_are_those_of_the_values() -> None:
    values = np.array([0.0, 0.5, 1.0, 0.5], dtype=np.float32)
    mean, sd, skewness, kurtosis, low, middle, high, entropy = first_order(values)
    assert (mean, middle) == (0.5, 0.5)
    assert sd == pytest.approx(0.125**0.5)
    assert (skewness, kurtosis) == (pytest.approx(0.0), pytest.approx(2.0))
    assert (low, high) == (pytest.approx(0.15), pytest.approx(0.85))
    assert entropy == pytest.approx(1.5)


def test_neighbours_are_counted_inside_the_mask() -> None:
    levels = np.zeros((2, 2, 1), dtype=np.int64)
    levels[1] = 3
    mask = np.ones((2, 2, 1), dtype=bool)
    joint = cooccurrence(levels, mask)
    # Along x: two pairs (0, 3); along y: one (0, 0) and one (3, 3); each both ways.
    assert (joint[0, 3], joint[3, 0]) == (pytest.approx(0.25), pytest.approx(0.25))
    assert (joint[0, 0], joint[3, 3]) == (pytest.approx(0.25), pytest.approx(0.25))
    mask[1, 1] = False
    assert cooccurrence(levels, mask)[3, 3] == 0.0


def test_shapes_are_told_apart() -> None:
    cube, bar = np.zeros((2, 20, 20, 20), dtype=bool)
    cube[4:12, 4:12, 4:12] = True
    bar[2:18, 8:12, 8:12] = True
    volume, surface, elongation, flatness = shape(cube)
    assert volume == pytest.approx(np.log(512))
    assert surface == pytest.approx(6 * 64 / 512)
    assert (elongation, flatness) == (pytest.approx(1.0), pytest.approx(1.0))
    assert shape(bar)[2] < 0.5


def test_what_a_volume_has_not_is_nan_and_counts_as_the_middle() -> None:
    volume = tiny_volume()
    healthy = volume.labels.clone()
    healthy[healthy >= Tissue.CORE] = Tissue.WHITE
    ill, well = (radiomics(volume.image.numpy(), m.numpy()) for m in (volume.labels, healthy))
    assert ill.shape == well.shape
    assert np.isfinite(ill[: len(ill) * 2 // 3]).all()
    assert np.isnan(well[len(well) * 2 // 3 :]).all()
    standard = Standard.fit(np.stack([ill, well]))
    assert np.isfinite(standard(np.stack([ill, well]))).all()
    assert not standard(well[None])[0, len(well) * 2 // 3 :].any()


def test_a_volume_is_like_itself_and_less_like_others() -> None:
    one, other = tiny_volume(1), tiny_volume(2)
    assert likeness(one, one) == pytest.approx(1.0, abs=1e-5)
    assert likeness(one, other) < 0.95


def test_halves_are_alike_in_sites_however_many_pairs_are_kept() -> None:
    sites = ["a"] * 5 + ["b"] * 4 + ["c"]
    pairs = halves(sites, 1)
    assert len(pairs) == 5
    assert len({index for pair in pairs for index in pair}) == 10
    for one, other in pairs[:4]:
        assert sites[one] == sites[other]
    assert {sites[index] for index in pairs[4]} == {"a", "c"}
    assert {sites[pair[0]] for pair in pairs[:2]} == {"a", "b"}


def test_sets_are_compared_in_every_way() -> None:
    critic = public_model().critic(torch.device("cpu")).eval()

    def looked(seeds: range, gain: float = 1.0) -> Set:
        volumes = [tiny_volume(seed) for seed in seeds]
        changed = [Volume(image=gain * v.image, labels=v.labels) for v in volumes]
        features = [features_of(v, critic, 3) for v in changed]
        return Set(features=features, sites=["a", "b"] * (len(seeds) // 2), likeness=0.5)

    real, control, brighter = looked(range(8)), looked(range(8, 16)), looked(range(16, 24), 1.5)
    every = [*real.features, *control.features]
    near, far = (compare(real, other, all_real=every) for other in (control, brighter))
    assert far.intensity > 2 * near.intensity
    assert far.radiomic > near.radiomic
    for plane in Plane:
        assert far.planes[plane].frechet > near.planes[plane].frechet
        assert far.planes[plane].kernel > near.planes[plane].kernel
    assert far.critic.kernel > near.critic.kernel
    assert far.precision <= near.precision
    assert set(near.sites) == {"a", "b"}
    assert {one.contrast for one in near.tissues} == set(Contrast)
    mine = compare(real, real, all_real=every)
    assert (mine.precision, mine.recall, mine.intensity) == (1.0, 1.0, 0.0)
