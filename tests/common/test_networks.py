from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medsynth_common.errors import BadInput
from medsynth_common.labels import CONTRASTS, SEGMENTER_CLASSES, TISSUES, one_hot
from medsynth_common.networks import (
    PRESETS,
    Generator,
    NetworkSettings,
    build_critic,
    build_segmenter,
    load_network,
)
from medsynth_common.privacy.patients import require_private_ready
from medsynth_common.style import CODE_LENGTH, TABLE, Style, stack
from tiny import NETWORKS

FLAT = NETWORKS.model_copy(update={"spatial_dims": 2})
BOTH = pytest.mark.parametrize("networks", [NETWORKS, FLAT], ids=["3D", "2D"])


def labels(networks: NetworkSettings, count: int = 2) -> Tensor:
    """Label maps of stripes, the outermost of air."""
    grid = (16,) * networks.spatial_dims
    stripes = torch.arange(16).clamp(max=8).view(-1, *(1,) * (len(grid) - 1))
    return stripes.expand(count, *grid)


def style(count: int = 2, *, gain: float = 0.1) -> Style:
    draw = torch.Generator().manual_seed(3)
    one = replace(
        Style.neutral(),
        offset=torch.rand(TABLE, generator=draw) + 0.5,
        gain=torch.full(TABLE, gain),
    )
    return stack([one] * count)


def generator(networks: NetworkSettings, *, trained: bool) -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        made = Generator(networks)
        if trained:
            nn.init.normal_(made.paint.weight, std=0.05)
    return made


def made_image(networks: NetworkSettings, look: Style, *, trained: bool = True) -> Tensor:
    network = generator(networks, trained=trained)
    classes = one_hot(labels(networks))
    noise = network.draw_noise(classes, torch.Generator().manual_seed(1))
    with torch.no_grad():
        image: Tensor = network(classes, look, noise)
    return image


@BOTH
def test_an_image_has_four_contrasts_and_air_stays_air(networks: NetworkSettings) -> None:
    image = made_image(networks, style())
    assert image.shape == (2, len(CONTRASTS), *(16,) * networks.spatial_dims)
    assert float(image.min()) >= 0
    air = (labels(networks) == 0).unsqueeze(1).expand_as(image)
    assert float(image[air].abs().max()) == 0
    assert float(image[~air].mean()) > 0.3


@BOTH
def test_an_untrained_generator_paints_the_calibration(networks: NetworkSettings) -> None:
    look = style(gain=0.0)
    image = made_image(networks, look, trained=False)
    for tissue in TISSUES[1:]:
        inside = labels(networks)[0] == tissue
        for channel in range(len(CONTRASTS)):
            painted = image[0, channel][inside]
            assert torch.allclose(painted, look.offset[0, tissue, channel].expand_as(painted))


@BOTH
def test_the_gain_is_the_deviation_inside_a_tissue(networks: NetworkSettings) -> None:
    image = made_image(networks, style(gain=0.05), trained=False)
    inside = labels(networks)[0] == 8  # half of the grid
    assert float(image[0, 0][inside].std()) == pytest.approx(0.05, rel=0.15)


@BOTH
@pytest.mark.parametrize("part", ["offset", "gain", "code"])
def test_every_part_of_the_style_changes_the_image(networks: NetworkSettings, part: str) -> None:
    look = style()
    moved = replace(look, **{part: getattr(look, part) + 0.3})
    assert (made_image(networks, look) - made_image(networks, moved)).abs().max() > 1e-3


def test_noise_repeats_with_its_seed_and_differs_between_items() -> None:
    network, classes = generator(FLAT, trained=True), one_hot(labels(FLAT))
    first, again = (network.draw_noise(classes, torch.Generator().manual_seed(1)) for _ in "ab")
    assert first.shape == (2, 2 * len(CONTRASTS), 16, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


@BOTH
def test_critic_and_segmenter_fit_what_they_are_for(networks: NetworkSettings) -> None:
    grid = (16,) * networks.spatial_dims
    maps = build_critic(networks)(torch.rand(2, len(TISSUES) + 4, *grid))
    assert maps[-1].shape[:2] == (2, 1)
    assert len(maps) == networks.critic_layers + 2
    logits = build_segmenter(networks)(torch.rand(2, 4, *grid))
    assert logits.shape == (2, len(SEGMENTER_CLASSES), *grid)


EVERY = {
    "tiny": NETWORKS,
    "flat": FLAT,
    **PRESETS,
    "flat gpu": PRESETS["gpu"].model_copy(update={"spatial_dims": 2}),
}


@pytest.mark.parametrize("name", EVERY)
def test_private_gradients_can_pass_every_network(name: str) -> None:
    with torch.device("meta"):  # no numbers: the sizes are a GPU's
        networks = [
            Generator(EVERY[name]),
            build_critic(EVERY[name]),
            build_segmenter(EVERY[name]),
        ]
    for network in networks:
        require_private_ready(network)
        for part in network.modules():
            assert not isinstance(part, nn.modules.batchnorm._BatchNorm)
            assert not getattr(part, "inplace", False)
            assert not list(part.buffers(recurse=False))


def test_a_network_that_mixes_patients_is_told() -> None:
    with pytest.raises(BadInput, match="BatchNorm2d"):
        require_private_ready(nn.Sequential(build_critic(FLAT), nn.BatchNorm2d(1)))


@BOTH
def test_patients_stay_apart(networks: NetworkSettings) -> None:
    """What a network says of one patient does not depend on who else is in the batch."""
    grid = (16,) * networks.spatial_dims
    images = torch.rand(3, 4, *grid, generator=torch.Generator().manual_seed(1))
    segmenter = build_segmenter(networks).train()
    with torch.no_grad():
        assert torch.allclose(segmenter(images)[:1], segmenter(images[:1]), atol=1e-5)


def test_the_gpu_preset_runs_on_a_small_grid() -> None:
    networks = PRESETS["gpu"].model_copy(update={"spatial_dims": 2})
    classes = one_hot(labels(networks, 1))
    network = generator(networks, trained=False)
    with torch.no_grad():
        image = network(classes, style(1), network.draw_noise(classes, torch.Generator()))
        assert build_segmenter(networks)(image).shape == (1, len(SEGMENTER_CLASSES), 16, 16)
    assert image.shape == (1, 4, 16, 16)


DEEP = NETWORKS.model_copy(
    update={"generator_channels": (4, 4, 8), "segmenter_channels": (8, 8, 8)}
)


@pytest.mark.parametrize("grid", [(18, 21, 13), (17, 16, 19), (16, 16, 16)])
@pytest.mark.parametrize("segmenter", ["unet", "segresnet"])
def test_a_grid_need_not_be_a_multiple_of_the_depth(
    segmenter: Literal["unet", "segresnet"], grid: tuple[int, int, int]
) -> None:
    """Each network says on a padded grid what it says there when a person pads it: air is zero."""
    networks = DEEP.model_copy(update={"segmenter": segmenter})
    images = torch.rand(1, 4, *grid, generator=torch.Generator().manual_seed(1))
    air = [end for side in reversed(grid) for end in (0, -side % 4)]
    network = build_segmenter(networks)
    with torch.no_grad():
        logits, by_hand = network(images), network(nn.functional.pad(images, air))
    assert logits.shape == (1, len(SEGMENTER_CLASSES), *grid)
    assert torch.equal(logits, by_hand[:, :, : grid[0], : grid[1], : grid[2]])
    classes = one_hot(torch.full((1, *grid), 4))
    made = generator(networks, trained=True)
    image = made(classes, style(1), made.draw_noise(classes, torch.Generator()))
    assert image.shape == (1, len(CONTRASTS), *grid)
    (gradient,) = torch.autograd.grad(image.sum(), [next(made.context.parameters())])
    assert bool(gradient.abs().max() > 0)


def test_a_segresnet_that_cannot_be_built_is_told() -> None:
    with pytest.raises(ValidationError, match="multiple of 8, got 4"):
        NetworkSettings(segmenter="segresnet", segmenter_channels=(4, 8))
    build_segmenter(NetworkSettings(segmenter="segresnet", segmenter_channels=(8, 16)))


def test_the_style_code_has_its_length() -> None:
    assert Style.neutral().code.shape == (CODE_LENGTH,)


@pytest.mark.parametrize("build", [Generator, build_critic, build_segmenter])
def test_a_loaded_network_has_the_weights_and_shares_none(
    build: Callable[[NetworkSettings], nn.Module],
) -> None:
    weights = build(NETWORKS).state_dict()
    before = torch.get_rng_state()
    network = load_network(build, NETWORKS, weights, device=torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before), "weights were drawn only to be replaced"
    found = network.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    # All that a network holds is in its weights: nothing is left of uninitialised memory.
    assert set(found) == {
        name for name, _ in [*network.named_parameters(), *network.named_buffers()]
    }
    copies = {name: tensor.clone() for name, tensor in weights.items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(copies[name], weights[name]) for name in weights)
    again = load_network(build, NETWORKS, weights, device=torch.device("cpu"))
    assert all(torch.equal(found, weights[name]) for name, found in again.state_dict().items())
    changed = network.state_dict()  # the one before stays as it was made
    assert all(torch.equal(changed[name], weights[name] + 1) for name in weights)
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert again.training


def test_weights_of_another_network_are_refused() -> None:
    weights = dict(build_segmenter(NETWORKS).state_dict())
    weights.popitem()
    with pytest.raises(RuntimeError, match="Missing key"):
        load_network(build_segmenter, NETWORKS, weights, device=torch.device("cpu"))
