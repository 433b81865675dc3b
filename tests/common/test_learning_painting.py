"""What holds a painted image to its style, against a loop over tissues in float64."""

import pytest
import torch
from torch import Tensor

from medsynth_common.labels import CONTRASTS, TISSUES, Tissue, one_hot
from medsynth_common.learning.losses import tissue_moments
from medsynth_common.learning.painting import held, paint
from medsynth_common.networks import Generator
from medsynth_common.style import Style, stack
from medsynth_common.tensors import under
from tiny import NETWORKS, model, volumes


def styled(offset: Tensor, gain: Tensor) -> Style:
    return stack(
        [Style.from_tensors({**Style.neutral().tensors(), "offset": offset, "gain": gain})]
    )


def head() -> tuple[Tensor, Tensor]:
    """A label map with three voxels of rim, and an image that is off in mean and spread."""
    labels = volumes()[0].labels.clone()
    rim = (labels == Tissue.ENHANCING).nonzero()
    assert len(rim) > 3
    for x, y, z in rim[3:].tolist():
        labels[x, y, z] = int(Tissue.OEDEMA)
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(1, len(CONTRASTS), *labels.shape, generator=draw)
    image = (0.5 + 0.05 * noise) * (labels != Tissue.BACKGROUND)
    return labels, image


def by_hand(image: Tensor, labels: Tensor, style: Style) -> Tensor:
    result = image.double().clone()
    for tissue in list(Tissue)[1:]:
        there = labels == tissue
        if int(there.sum()) < 8:
            continue
        for contrast in range(len(CONTRASTS)):
            values = image[0, contrast][there].double()
            stretch = float(style.gain[0, tissue, contrast]) / float(values.std(correction=0))
            stretch = min(max(stretch, 0.5), 2.0)
            moved = (values - values.mean()) * stretch + float(style.offset[0, tissue, contrast])
            result[0, contrast][there] = moved
    return result.clamp(min=0)


@pytest.mark.parametrize("gain", [0.06, 0.04, 0.5, 0.001])
def test_it_is_what_a_loop_over_tissues_makes(gain: float) -> None:
    labels, image = head()
    draw = torch.Generator().manual_seed(2)
    offset = 0.3 + 0.7 * torch.rand(len(TISSUES), len(CONTRASTS), generator=draw)
    style = styled(offset, torch.full_like(offset, gain))
    found = held(image, one_hot(labels[None]), style)
    assert float((found.double() - by_hand(image, labels, style)).abs().max()) < 2e-4


def test_tissues_get_mean_and_deviation_and_air_stays_air() -> None:
    labels, image = head()
    classes = one_hot(labels[None])
    offset = torch.linspace(0.4, 0.9, len(TISSUES) * len(CONTRASTS)).view(len(TISSUES), -1)
    style = styled(offset, torch.full_like(offset, 0.03))
    found = held(image, classes, style)
    mean, deviation, count = tissue_moments(found, classes)
    there = (count[0] >= 8) & (torch.arange(len(TISSUES)) > 0)
    assert int(there.sum()) == len(TISSUES) - 2  # all but air and the three voxels of rim
    assert torch.allclose(mean[0][there], offset[there], atol=1e-4)
    assert torch.allclose(deviation[0][there], style.gain[0][there], atol=1e-4)
    rim, air = labels == Tissue.ENHANCING, labels == Tissue.BACKGROUND
    assert torch.equal(found[0][:, rim], image[0][:, rim])
    assert float(found[0][:, air].abs().max()) == 0


def test_nothing_is_darker_than_air() -> None:
    labels, image = head()
    dark = torch.zeros(len(TISSUES), len(CONTRASTS))
    found = held(image, one_hot(labels[None]), styled(dark, torch.full_like(dark, 0.1)))
    assert float(found.min()) == 0


@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_painted_is_held_as_a_volume(dims: int) -> None:
    """In 2D too: a slice has too little of a tissue to be measured."""
    generator = Generator(NETWORKS.model_copy(update={"spatial_dims": dims}))
    if dims == 3:
        generator.load_state_dict(under("generator", model()))
    classes = one_hot(torch.stack([volume.labels for volume in volumes()[:2]]))
    style = stack([Style.from_tensors(under("style", model()))] * 2)
    image = paint(generator, classes, style, torch.Generator().manual_seed(1))
    mean, _, count = tissue_moments(image, classes)
    there = (count >= 8).clone()
    there[:, Tissue.BACKGROUND] = False
    # What is cut off at air moves a mean a little.
    assert float((mean.detach() - style.offset).abs()[there].max()) < 0.03
    # Any sum of a tissue is the style's alone by now; what it has of its own is where it is bright.
    weight = torch.rand(image.shape, generator=torch.Generator().manual_seed(3))
    (image * weight).sum().backward()  # type: ignore[no-untyped-call] # torch's stub
    assert any(bool(p.grad is not None and p.grad.any()) for p in generator.parameters())


def test_a_critic_in_bfloat16_does_not_change_what_is_painted() -> None:
    labels, _ = head()
    offset = torch.full((len(TISSUES), len(CONTRASTS)), 0.5)
    style = styled(offset, torch.full_like(offset, 0.05))
    generator = Generator(NETWORKS)

    def painted() -> Tensor:
        draw = torch.Generator().manual_seed(3)
        return paint(generator, one_hot(labels[None]), style, draw)

    with torch.autocast("cpu", torch.bfloat16):
        within = painted()
    assert torch.equal(within, painted())
