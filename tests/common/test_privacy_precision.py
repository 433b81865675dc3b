"""A patient's gradient is of that patient alone, in either precision: not of what lay in memory."""

from collections.abc import Callable, Sequence

import pytest
import torch
from monai.networks.nets import PatchDiscriminator, SegResNet
from torch import Tensor, nn
from torch.nn import functional as F

from medsynth_common.networks import PRESETS, build_critic, build_segmenter
from medsynth_common.privacy.patients import loss_gradient

Convolve = Callable[[Tensor, Tensor], Tensor]


def fill_memory() -> None:
    """Leave NaN in the blocks of memory that are given out next."""
    blocks = [torch.full((2**k,), torch.nan) for k in range(4, 19) for _ in range(20)]
    del blocks


def gradients(
    loss: Callable[[], Tensor], weights: Sequence[Tensor], *, bfloat16: bool
) -> list[Tensor]:
    fill_memory()
    return list(loss_gradient(weights, loss, bfloat16=bfloat16))


#: A convolution, and the sides of images; where a side is shorter than the kernel, oneDNN's
#: gradient of the kernel in bfloat16 was found to be partly what lay in memory.
CONVOLUTIONS: dict[str, tuple[Convolve, tuple[int, ...], tuple[int, ...]]] = {
    "kernel of 3 on 2": (lambda x, w: F.conv3d(x, w, padding=1), (16, 16, 3, 3, 3), (2, 2, 2)),
    "on 6 x 6 x 2": (lambda x, w: F.conv3d(x, w, padding=1), (16, 16, 3, 3, 3), (6, 6, 2)),
    "of 4 on 3": (lambda x, w: F.conv3d(x, w, padding=1), (1, 16, 4, 4, 4), (3, 3, 3)),
    "dilated": (
        lambda x, w: F.conv3d(x, w, padding=2, dilation=2),
        (16, 16, 3, 3, 3),
        (4, 4, 4),
    ),
    "dilated, as modules call it": (
        lambda x, w: F.conv3d(x, w, None, 1, 2, 2),
        (16, 16, 3, 3, 3),
        (4, 4, 4),
    ),
    "flat": (lambda x, w: F.conv2d(x, w, padding=1, stride=2), (16, 16, 3, 3), (1, 1)),
    "transposed": (
        lambda x, w: F.conv_transpose3d(x, w, padding=1),
        (16, 16, 3, 3, 3),
        (2, 2, 2),
    ),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_kernel_longer_than_the_image_has_its_own_gradient(name: str) -> None:
    convolve, shape, sides = CONVOLUTIONS[name]
    draw = torch.Generator().manual_seed(1)
    weight = (0.1 * torch.randn(shape, generator=draw)).requires_grad_()
    image = torch.randn(2, 16, *sides, generator=draw)
    seen: list[torch.dtype] = []

    def loss() -> Tensor:
        result = convolve(image, weight)
        seen.append(result.dtype)
        wave = torch.arange(result.numel(), dtype=torch.float32).sin().view_as(result)
        return (result * wave).sum()

    [exact] = gradients(loss, [weight], bfloat16=False)
    for _ in range(3):
        [found] = gradients(loss, [weight], bfloat16=True)
        torch.testing.assert_close(found, exact)
    assert set(seen) == {torch.float32}


def test_other_convolutions_are_computed_in_bfloat16() -> None:
    seen: list[torch.dtype] = []

    def loss() -> Tensor:
        result = F.conv3d(torch.ones(1, 4, 6, 6, 6), weight, padding=1)
        upwards = F.conv_transpose3d(result, weight, padding=1, stride=2)
        seen.extend((result.dtype, upwards.dtype))
        return upwards.sum()

    weight = torch.ones(4, 4, 3, 3, 3, requires_grad=True)
    gradients(loss, [weight], bfloat16=True)
    assert seen == [torch.bfloat16, torch.bfloat16]


SETTINGS = PRESETS["cpu"]
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "segmenter": lambda: build_segmenter(SETTINGS),
    "segmenter, flat": lambda: build_segmenter(SETTINGS.model_copy(update={"spatial_dims": 2})),
    "segresnet": lambda: SegResNet(init_filters=8, in_channels=4, out_channels=4),
    "critic": lambda: build_critic(SETTINGS),
    "another critic": lambda: PatchDiscriminator(3, 16, in_channels=4, norm="INSTANCE"),
}


#: Of each network, the smallest crop that it takes, and larger ones.
SIDES = {
    "segmenter": (8, 16),
    "segmenter, flat": (8, 16),
    "segresnet": (8, 16, 24),
    "critic": (16, 24),
    "another critic": (24, 32),
}


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "side"), [(n, side) for n, sides in SIDES.items() for side in sides]
)
def test_a_gradient_is_the_same_whatever_lay_in_memory(
    name: str, bfloat16: bool, side: int
) -> None:
    torch.manual_seed(1)
    network = NETWORKS[name]()
    first = next(one for one in network.modules() if isinstance(one, nn.Conv2d | nn.Conv3d))
    crops = torch.randn(2, first.in_channels, *[side] * len(first.kernel_size))

    def loss() -> Tensor:
        result = network(crops)
        last: Tensor = result[-1] if isinstance(result, list) else result
        return last.square().mean()

    weights = list(network.parameters())
    one = gradients(loss, weights, bfloat16=bfloat16)
    assert all(bool(part.isfinite().all()) for part in one)
    for _ in range(2):
        other = gradients(loss, weights, bfloat16=bfloat16)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
