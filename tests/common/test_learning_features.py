import pytest
import torch
from torch import Tensor, nn

from medsynth_common.labels import Tissue, one_hot
from medsynth_common.learning.features import (
    FeatureScale,
    fit_scale,
    patient_features,
    raw_features,
    standard_features,
    texture_presence,
    texture_statistics,
)
from medsynth_common.networks import build_critic
from medsynth_common.tensors import under
from tiny import NETWORKS, model, volumes

TEXTURES = 2 * 8 * 4  # scales, tissues, contrasts


def trunk(dims: int = 3) -> nn.Module:
    critic = build_critic(NETWORKS.model_copy(update={"spatial_dims": dims}))
    if dims == 3:
        critic.load_state_dict(under("critic", model()))
    return critic.eval().requires_grad_(False)


def batch(count: int = 2) -> tuple[Tensor, Tensor]:
    chosen = volumes()[:count]
    classes = one_hot(torch.stack([volume.labels for volume in chosen]))
    return classes, torch.stack([volume.image for volume in chosen])


def scale() -> FeatureScale:
    return FeatureScale.from_tensors(under("features", model()))


def slabs(*, tumour: bool) -> Tensor:
    """One label map of slabs of grey and white matter, with or without a core: one-hot."""
    labels = torch.full((1, 12, 12, 12), int(Tissue.GREY))
    labels[0, 4:8] = Tissue.WHITE
    if tumour:
        labels[0, 8:] = Tissue.CORE
    return one_hot(labels)


def statistics(image: Tensor, *, tumour: bool = True) -> Tensor:
    """Texture statistics as (scale, tissue, contrast), the first tissue being CSF."""
    return texture_statistics(slabs(tumour=tumour), image).view(2, 8, 4)


def noise(deviation: float) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return 0.5 + deviation * torch.randn(1, 4, 12, 12, 12, generator=draw)


def test_texture_follows_the_noise() -> None:
    grey = Tissue.GREY - Tissue.CSF
    found = [statistics(noise(sd))[0, grey, 0] for sd in (0.02, 0.04, 0.08)]
    assert float(found[1] - found[0]) == pytest.approx(float(torch.tensor(2.0).log()), abs=0.02)
    assert float(found[2] - found[1]) == pytest.approx(float(torch.tensor(2.0).log()), abs=0.02)
    # White noise less its mean over 27 voxels keeps 26 of 27 parts of its variance.
    assert float(found[0].exp()) == pytest.approx(0.02, rel=0.1)


def test_an_absent_tissue_says_nothing() -> None:
    core = Tissue.CORE - Tissue.CSF
    assert float(statistics(noise(0.05), tumour=False)[:, core].abs().max()) == 0
    assert float(statistics(noise(0.05))[:, core].abs().min()) > 0
    presence = texture_presence(slabs(tumour=False)).view(2, 8, 4)
    here = {tissue for tissue in Tissue if tissue and presence[0, tissue - 1].all()}
    assert here == {Tissue.GREY, Tissue.WHITE}
    assert torch.equal(presence[0], presence[1])


@pytest.mark.parametrize("dims", [2, 3])
def test_each_volume_has_one_row(dims: int) -> None:
    classes, image = batch()
    both = raw_features(trunk(dims), classes, image, dims)
    alone = raw_features(trunk(dims), classes[:1], image[:1], dims)
    assert both.shape[0] == 2
    if dims == 3:  # the flat trunk is not the same one twice
        assert torch.allclose(both[:1], alone, atol=1e-5)
    pooled = both.shape[1] - TEXTURES
    assert pooled > 0
    assert torch.allclose(both[:, pooled:], texture_statistics(classes, image))


def test_the_gradient_reaches_the_image() -> None:
    classes, image = batch()
    image.requires_grad_()
    features = standard_features(trunk(), classes, image, scale(), 3)
    features.square().mean().backward()  # type: ignore[no-untyped-call]
    assert image.grad is not None
    assert bool(image.grad.isfinite().all())
    per_volume = image.grad.flatten(1).norm(dim=1)
    assert bool((per_volume > 0).all())


def test_a_flat_image_has_a_finite_gradient() -> None:
    image = torch.full((1, 4, 12, 12, 12), 0.5, requires_grad=True)
    texture_statistics(slabs(tumour=True), image).sum().backward()  # type: ignore[no-untyped-call]
    assert image.grad is not None
    assert bool(image.grad.isfinite().all())


def test_the_public_pool_has_mean_zero_and_scale_one() -> None:
    pool = volumes(1, 500)
    fitted = fit_scale(trunk(), pool, 3)
    rows = torch.stack([patient_features(trunk(), v, fitted, 3, torch.device("cpu")) for v in pool])
    whole = [k for k in range(rows.shape[1]) if bool((rows[:, k] != 0).all())]
    assert len(whole) > 10
    assert torch.allclose(rows[:, whole].mean(0), torch.zeros(len(whole)), atol=1e-3)
    varied = (rows[:, whole].std(0, correction=0) - 1).abs() < 1e-2
    assert float(varied.float().mean()) > 0.8  # others are held at the least scale
    assert float(fitted.clip) == pytest.approx(float(rows.norm(dim=1).median()) * 1.3, rel=1e-4)


def test_what_a_patient_lacks_is_the_centre() -> None:
    fitted = scale()
    image = noise(0.05)
    features = standard_features(trunk(), slabs(tumour=False), image, fitted, 3)
    textures = features[0, -TEXTURES:].view(2, 8, 4)
    assert float(textures[:, Tissue.CORE - Tissue.CSF].abs().max()) == 0
    assert float(textures[:, Tissue.GREY - Tissue.CSF].abs().min()) > 0
    assert FeatureScale.from_tensors(fitted.tensors()).clip == fitted.clip
