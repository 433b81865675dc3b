from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from medsynth_common.labels import TUMOUR, Tissue
from medsynth_common.learning.moments import (
    Prior,
    level_length,
    level_vector,
    measure,
    spread_length,
    spread_vector,
    style_from_level,
    style_from_spread,
)
from medsynth_common.learning.volumes import Volume
from medsynth_common.style import Style
from tiny import prior, volumes

BRAIN = slice(Tissue.CSF, None)
GREY = int(Tissue.GREY)
GRID = (12, 12, 12)


def patient(means: torch.Tensor, deviation: float, seed: int, *, tumour: bool = True) -> Volume:
    """A patient of nine slabs, each of one tissue, with these (tissue, contrast) means."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(12).clamp(max=8).view(12, 1, 1).expand(GRID).to(torch.uint8)
    if not tumour:
        labels = labels.clamp(max=int(Tissue.DEEP_GREY))
    image = means[labels.long()].movedim(-1, 0)  # (4, *grid)
    noise = deviation * torch.randn(image.shape, generator=draw)
    return Volume(image=image + noise, labels=labels)


def made_up_prior() -> Prior:
    table = torch.full((9, 4), 0.5)
    return Prior(
        level=table,
        level_scale=torch.full((9, 4), 0.2),
        log_gain=torch.full((9, 4), 0.05).log(),
        log_gain_scale=torch.full((9, 4), 0.4),
        spread=torch.full((9, 4), 0.03),
        level_clip=torch.tensor(5.0),
        spread_clip=torch.tensor(5.0),
    )


def mean_of(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(vectors)).mean(0)


def test_a_planted_scanner_is_recovered_without_noise() -> None:
    public, planted = made_up_prior(), torch.full((9, 4), 0.5)
    planted[GREY] += torch.tensor([0.1, -0.1, 0.2, 0.0])
    planted[Tissue.CORE] -= 0.15
    site = [patient(planted, 0.08, seed) for seed in range(4)]
    vector = mean_of([level_vector(one, public) for one in site])
    assert vector.shape == (level_length(public),)
    style = style_from_level(vector, public, noise=0.0)
    assert torch.allclose(style.offset[BRAIN], planted[BRAIN], atol=0.01)
    assert torch.allclose(style.gain[BRAIN], torch.tensor(0.08), rtol=0.1)
    assert torch.equal(style.spread, public.spread)
    assert float(style.gain[Tissue.BACKGROUND].abs().sum()) == 0


def test_the_more_noise_the_nearer_the_prior() -> None:
    public, planted = made_up_prior(), torch.full((9, 4), 0.7)
    vector = level_vector(patient(planted, 0.05, 1), public)
    offsets = [
        float(style_from_level(vector, public, noise=noise).offset[GREY, 0])
        for noise in (0.0, 0.5, 1.0, 3.0, 1e6)
    ]
    assert offsets == sorted(offsets, reverse=True)
    assert offsets[0] == pytest.approx(0.7, abs=0.01)
    assert offsets[2] == pytest.approx(0.6, abs=0.01)  # as sure of the site as of the prior
    assert offsets[4] == pytest.approx(0.5, abs=1e-4)


def test_a_tumour_that_half_the_patients_lack_is_measured_on_the_others() -> None:
    public, planted = made_up_prior(), torch.full((9, 4), 0.7)
    site = [patient(planted, 0.05, seed, tumour=seed % 2 == 0) for seed in range(4)]
    vector = mean_of([level_vector(one, public) for one in site])
    assert vector[-len(TUMOUR) :].tolist() == [0.5] * len(TUMOUR)
    style = style_from_level(vector, public, noise=0.0)
    assert torch.allclose(style.offset[BRAIN], torch.tensor(0.7), atol=0.01)
    # With noise, what half the patients say of a tumour counts for less than what all say.
    noisy = style_from_level(vector, public, noise=0.5)
    assert float(noisy.offset[Tissue.CORE, 0]) < float(noisy.offset[GREY, 0]) - 0.01


def test_a_tumour_that_nobody_has_leaves_the_prior() -> None:
    public = made_up_prior()
    site = [patient(torch.full((9, 4), 0.7), 0.05, seed, tumour=False) for seed in range(2)]
    style = style_from_level(
        mean_of([level_vector(one, public) for one in site]), public, noise=0.1
    )
    for tissue in TUMOUR:
        assert torch.allclose(style.offset[tissue], public.level[tissue])
    assert measure(site[0])[2].tolist() == [1] * 6 + [0] * 3


def test_an_offset_is_never_negative() -> None:
    public = made_up_prior()
    wild = torch.full((level_length(public),), -100.0)
    assert float(style_from_level(wild, public, noise=0.0).offset.min()) == 0


def test_a_planted_spread_is_recovered_without_noise() -> None:
    public, draw = made_up_prior(), torch.Generator().manual_seed(1)
    site_style = replace(Style.neutral(), offset=torch.full((9, 4), 0.5))
    site = [
        patient(0.5 + 0.045 * torch.randn(9, 4, generator=draw), 1e-3, seed) for seed in range(300)
    ]
    vectors = [spread_vector(one, public, site_style) for one in site]
    assert vectors[0].shape == (spread_length(public),)
    style = style_from_spread(mean_of(vectors), public, site_style, noise=0.0)
    # Squares above 9 priors are cut, which takes a little off; the mean over the table is steady.
    assert float(style.spread[BRAIN].mean()) == pytest.approx(0.045, rel=0.06)
    assert torch.equal(style.offset, site_style.offset)
    noisy = style_from_spread(mean_of(vectors), public, site_style, noise=10.0)
    assert float(noisy.spread[BRAIN].mean()) == pytest.approx(0.03, rel=0.02)


def test_a_released_spread_stays_sane() -> None:
    public = made_up_prior()
    style = replace(Style.neutral(), offset=public.level)
    wild = torch.full((spread_length(public),), -1e6)
    narrow = style_from_spread(wild, public, style, noise=0.0)
    wide = style_from_spread(-wild, public, style, noise=0.0)
    assert torch.allclose(narrow.spread[BRAIN], public.spread[BRAIN] * 0.1**0.5)
    assert torch.allclose(wide.spread[BRAIN], public.spread[BRAIN] * 6**0.5)


def test_the_prior_is_measured_on_public_scanners() -> None:
    fitted = prior()
    pools = [volumes(scanner, 500) for scanner in (1, 2)]
    means = torch.stack([measure(one)[0] for pool in pools for one in pool])
    assert torch.allclose(fitted.level[GREY], means[:, GREY].mean(0), atol=1e-5)
    assert bool((fitted.spread[GREY] < fitted.level_scale[GREY]).any())  # scanners differ more
    assert bool((fitted.level_scale > 0).all())
    assert bool((fitted.log_gain_scale > 0).all())
    norms = torch.stack([level_vector(one, fitted).norm() for pool in pools for one in pool])
    assert float(fitted.level_clip) == pytest.approx(float(norms.median()) * 1.1)
    assert float(fitted.spread_clip) > 0
    again = Prior.from_tensors(fitted.tensors())
    assert torch.equal(again.log_gain, fitted.log_gain)
    assert torch.equal(fitted.style().offset, fitted.level)
