from collections.abc import Iterable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medsynth_common.labels import one_hot
from medsynth_common.learning.label_bank import label_bank
from medsynth_common.learning.optimizer_state import load_optimizer, optimizer_tensors
from medsynth_common.learning.painting import paint
from medsynth_common.learning.volumes import (
    Volume,
    as_batch,
    draw_crops,
    from_batch,
    mirrored,
    over_volumes,
)
from medsynth_common.networks import Generator
from medsynth_common.privacy.randomness import SimulatedRandomness
from medsynth_common.style import Style, stack
from medsynth_common.tensors import under
from tiny import CROP, GRID, NETWORKS, Quiet, model, volumes

SIDES = (12, 10, 9)


class Given(Quiet):
    """Gives the numbers it was given, in turn."""

    def __init__(self, numbers: Iterable[float]) -> None:
        self._numbers = iter(numbers)

    def uniform(self, n: int) -> NDArray[np.float64]:
        return np.array([next(self._numbers) for _ in range(n)])


def numbered(*tumour: tuple[int, int, int]) -> Volume:
    """A patient whose every voxel tells its place, with tumour voxels here and there."""
    places = torch.arange(12 * 10 * 9, dtype=torch.float32).reshape(SIDES)
    labels = torch.ones(SIDES, dtype=torch.uint8)
    for where in tumour:
        labels[where] = 7
    return Volume(image=places.expand(4, *SIDES), labels=labels)


LAST = 1 - 2.0**-53  # the largest number that `uniform` gives


@pytest.mark.parametrize(
    ("numbers", "corner"),
    [((0, 0, 0), (0, 0, 0)), ((LAST,) * 3, (8, 5, 3)), ((0.5, 0.99, 0), (4, 5, 0))],
)
def test_crops_lie_where_chance_puts_them(
    numbers: tuple[float, ...], corner: tuple[int, ...]
) -> None:
    images, labels = draw_crops(
        numbered(), crop=(4, 5, 6), count=1, randomness=Given([float(one) for one in numbers])
    )
    assert images.shape == (1, 4, 4, 5, 6)
    assert labels.shape == (1, 4, 5, 6)
    x, y, z = corner
    assert float(images[0, 0, 0, 0, 0]) == x * 90 + y * 9 + z


def test_every_other_crop_holds_the_tumour() -> None:
    patient, draw = numbered((11, 0, 8)), SimulatedRandomness("crops")  # in the very corner
    _, labels = draw_crops(patient, crop=(4, 4, 4), count=40, randomness=draw)
    holds = (labels == 7).flatten(1).any(1)
    assert bool(holds[1::2].all())
    assert not bool(holds[0::2].all())


def test_a_patient_without_a_tumour_is_cropped_anywhere() -> None:
    images, _ = draw_crops(
        numbered(), crop=(2, 2, 2), count=40, randomness=SimulatedRandomness("crops")
    )
    assert len({float(image[0, 0, 0, 0]) for image in images}) > 20


def test_a_crop_may_be_the_whole_grid() -> None:
    images, labels = draw_crops(
        numbered((3, 3, 3)), crop=SIDES, count=2, randomness=SimulatedRandomness("crops")
    )
    assert torch.equal(images[0], images[1])
    assert torch.equal(labels[1], numbered((3, 3, 3)).labels)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_batch_is_taken_apart_as_it_was_put_together(dims: int) -> None:
    stacked = torch.rand(2, 3, *SIDES)
    batch = as_batch(stacked, dims)
    assert batch.shape == ((2, 3, *SIDES) if dims == 3 else (18, 3, 12, 10))
    assert torch.equal(from_batch(batch, dims, 2), stacked)


def test_slices_are_axial_and_keep_their_order() -> None:
    stacked = torch.rand(2, 3, *SIDES)
    batch = as_batch(stacked, 2)
    assert torch.equal(batch[9 + 4], stacked[1, :, :, :, 4])


@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_is_laid_over_whole_volumes(dims: int) -> None:
    conv = (nn.Conv3d if dims == 3 else nn.Conv2d)(4, 2, 3, padding=1)
    out = over_volumes(conv, torch.rand(2, 4, *SIDES), dims)
    assert out.shape == (2, 2, *SIDES)


@pytest.mark.parametrize("dims", [2, 3])
def test_painting_repeats_with_its_seed(dims: int) -> None:
    generator = Generator(NETWORKS.model_copy(update={"spatial_dims": dims}))
    if dims == 3:
        generator.load_state_dict(under("generator", model()))
    classes = one_hot(torch.stack([volume.labels for volume in volumes()[:2]]))
    styles = stack([Style.from_tensors(under("style", model()))] * 2)

    def painted(seed: int) -> Tensor:
        with torch.no_grad():
            return paint(generator, classes, styles, torch.Generator().manual_seed(seed))

    assert painted(1).shape == (2, 4, *GRID)
    assert torch.equal(painted(1), painted(1))
    assert not torch.equal(painted(1), painted(2))


def test_a_2d_generator_paints_each_volume_in_its_own_style() -> None:
    generator = Generator(NETWORKS.model_copy(update={"spatial_dims": 2}))
    classes = one_hot(torch.stack([volume.labels for volume in volumes()[:2]]))
    looks = [Style.neutral(), Style.from_tensors(under("style", model()))]
    with torch.no_grad():
        image = paint(generator, classes, stack(looks), torch.Generator())
    assert float(image[0].max()) == 0
    assert float(image[1].max()) > 0.3


def test_the_label_bank_is_its_seed_s() -> None:
    label_bank.cache_clear()
    first = label_bank(5, 2, GRID)
    label_bank.cache_clear()
    again, longer, other = label_bank(5, 2, GRID), label_bank(5, 3, GRID), label_bank(6, 2, GRID)
    assert first.shape == (2, *GRID)
    assert first.dtype == torch.uint8
    assert torch.equal(first, again)
    assert torch.equal(longer[:2], first)  # a larger bank goes on where the smaller ends
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, other)


def test_an_optimizer_goes_on_where_it_stopped() -> None:
    torch.manual_seed(0)
    network, whole = nn.Linear(3, 2), nn.Linear(3, 2)
    whole.load_state_dict(network.state_dict())
    one = torch.optim.Adam(network.parameters(), lr=0.1)
    two = torch.optim.Adam(whole.parameters(), lr=0.1)

    def step(module: nn.Linear, adam: torch.optim.Adam, scale: float) -> None:
        adam.zero_grad()
        module(torch.full((1, 3), scale)).square().sum().backward()
        adam.step()

    step(network, one, 1.0)
    step(whole, two, 1.0)
    kept = optimizer_tensors(one)
    assert all(not tensor.requires_grad for tensor in kept.values())
    assert kept.keys() == {
        f"{i}.{key}" for i in (0, 1) for key in ("step", "exp_avg", "exp_avg_sq")
    }
    restarted = torch.optim.Adam(network.parameters(), lr=0.1)
    load_optimizer(restarted, kept)
    step(network, restarted, 2.0)
    step(whole, two, 2.0)
    assert torch.equal(network.weight, whole.weight)

    step(network, restarted, 3.0)
    fresh = torch.optim.Adam(network.parameters(), lr=0.1)
    load_optimizer(fresh, {})
    assert optimizer_tensors(fresh) == {}
    assert float(kept["0.step"]) == 1.0  # what was kept is a copy


def test_crops_of_a_phantom_fit() -> None:
    images, labels = draw_crops(
        volumes()[0], crop=CROP, count=2, randomness=SimulatedRandomness("crops")
    )
    assert images.shape == (2, 4, *CROP)
    assert bool((labels[1] >= 6).any())


def test_left_and_right_change_places_every_other_time_in_images_and_labels_alike() -> None:
    images = torch.arange(2 * 4 * 3 * 2 * 2, dtype=torch.float32).reshape(2, 4, 3, 2, 2)
    labels = images[:, 0].clone()
    kept = mirrored(images, labels, Given([0.49]))
    assert torch.equal(kept[0], images)
    assert torch.equal(kept[1], labels)
    turned = mirrored(images, labels, Given([0.51]))
    assert torch.equal(turned[0][:, 0], turned[1])
    assert torch.equal(turned[0], images.flip(2))
