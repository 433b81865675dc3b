from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from medsynth_common.labels import SEGMENTER_CLASSES, Region, Tissue, one_hot
from medsynth_common.learning.dice import region_dice
from medsynth_common.learning.losses import (
    critic_loss,
    fake_loss,
    fooling_loss,
    lesion_weights,
    lock_loss,
    real_loss,
    segmentation_loss,
    tissue_moments,
)
from medsynth_common.plan import Game
from medsynth_common.style import Style, stack
from tiny import volumes

CORE, OEDEMA, ENHANCING = (
    SEGMENTER_CLASSES.index(tissue) for tissue in (Tissue.CORE, Tissue.OEDEMA, Tissue.ENHANCING)
)


def test_tissue_moments_are_numpy_s() -> None:
    pair = volumes()[:2]
    image = torch.stack([volume.image for volume in pair])
    classes = one_hot(torch.stack([volume.labels for volume in pair]))
    mean, deviation, count = tissue_moments(image, classes)
    assert mean.shape == deviation.shape == (2, 9, 4)
    for n, volume in enumerate(pair):
        pixels, labels = volume.image.numpy().astype(np.float64), volume.labels.numpy()
        for tissue in Tissue:
            inside = pixels[:, labels == tissue]  # (contrast, voxel)
            assert int(count[n, tissue]) == inside.shape[1]
            if inside.shape[1]:
                assert mean[n, tissue].numpy() == pytest.approx(inside.mean(1), abs=1e-5)
                expected = np.sqrt(np.maximum(inside.var(1), 1e-6))
                assert deviation[n, tissue].numpy() == pytest.approx(expected, abs=2e-4)


def test_an_absent_tissue_has_moments_that_do_no_harm() -> None:
    image = torch.rand(1, 4, 4, 4, 4, requires_grad=True)
    mean, deviation, count = tissue_moments(image, one_hot(torch.full((1, 4, 4, 4), 3)))
    assert float(count[0, Tissue.CORE]) == 0
    assert not bool(mean[0, Tissue.CORE].any())
    (mean.sum() + deviation.sum()).backward()  # type: ignore[no-untyped-call]
    assert image.grad is not None
    assert bool(image.grad.isfinite().all())


def locked(*, offset: float = 0.0, gain: float = 0.0) -> float:
    """The lock's loss of a phantom against its own moments, moved by so much."""
    volume = volumes()[0]
    image, classes = volume.image.unsqueeze(0), one_hot(volume.labels.unsqueeze(0))
    mean, deviation, _ = tissue_moments(image, classes)
    exact = replace(stack([Style.neutral()]), offset=mean + offset, gain=deviation + gain)
    return float(lock_loss(image, classes, exact))


def test_the_lock_holds_means_and_deviations() -> None:
    assert locked() == 0
    assert locked(offset=0.1) == pytest.approx(0.1, rel=1e-4)
    assert locked(gain=-0.05) == pytest.approx(0.05, rel=1e-4)
    assert locked(offset=0.1, gain=-0.05) == pytest.approx(0.15, rel=1e-4)


def test_the_lock_looks_away_from_air_and_absent_tissue() -> None:
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    labels[0, 0] = Tissue.WHITE
    labels[0, 1, 0, 0] = Tissue.CORE  # one voxel is no measurement
    image = torch.rand(1, 4, 4, 4, 4)
    classes = one_hot(labels)
    mean, deviation, _ = tissue_moments(image, classes)
    offset = mean + 5.0
    offset[:, Tissue.WHITE] = mean[:, Tissue.WHITE]
    style = replace(stack([Style.neutral()]), offset=offset, gain=deviation)
    assert float(lock_loss(image, classes, style)) == 0
    nothing = one_hot(torch.zeros(1, 4, 4, 4))
    assert float(lock_loss(image, nothing, style)) == 0


def test_the_critic_is_paid_for_telling_real_from_fake() -> None:
    assert float(critic_loss(torch.tensor([2.0, 1.0]), torch.tensor([-1.0, -9.0]))) == 0
    assert float(critic_loss(torch.tensor([0.0]), torch.tensor([1.0]))) == 3


def test_the_segmenter_is_paid_for_the_right_class() -> None:
    target = torch.randint(4, (1, 6, 6, 6), generator=torch.Generator().manual_seed(1))
    right = torch.nn.functional.one_hot(target, 4).movedim(-1, 1) * 30.0
    assert float(segmentation_loss(right, target)) < 0.01
    assert float(segmentation_loss(right.flip(1), target)) > 1
    empty = torch.zeros_like(target)
    assert bool(segmentation_loss(right, empty).isfinite())


def test_dice_of_known_cases() -> None:
    target = torch.zeros(4, 4, 4, dtype=torch.int64)
    target[0, 0] = OEDEMA  # 4 voxels
    target[1, 0] = CORE  # 4
    assert region_dice(target, target) == {
        Region.WHOLE: 1.0,
        Region.CORE: 1.0,
        Region.ENHANCING: None,
    }
    found = torch.zeros_like(target)
    found[0, 0] = CORE  # tumour, but of the wrong class
    found[1, 0, :2] = CORE  # half of it
    scores = region_dice(found, target)
    assert scores[Region.WHOLE] == pytest.approx(2 * 6 / (6 + 8))
    assert scores[Region.CORE] == pytest.approx(2 * 2 / (6 + 4))
    assert scores[Region.ENHANCING] is None
    found[2, 0, 0] = ENHANCING
    assert region_dice(found, target)[Region.ENHANCING] is None  # a false alarm is no Dice


def patch_loss(
    labels: Tensor, distance: Tensor, patch: tuple[int, int, int], centres: Tensor
) -> float:
    """The seed paper's: the mean distance in a patch around every centre, pushed inside."""
    means = []
    for centre in centres.nonzero().tolist():
        box = []
        for middle, size, side in zip(centre, patch, labels.shape, strict=True):
            size = min(size, side)
            start = min(max(middle - size // 2, 0), side - size)
            box.append(slice(start, start + size))
        means.append(distance[tuple(box)].mean())
    return float(torch.stack(means).mean())


@pytest.mark.parametrize("patch", [(1, 1, 1), (3, 4, 2), (5, 5, 99)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_lesion_weights_are_the_mean_over_all_patches(
    patch: tuple[int, int, int], share: float
) -> None:
    draw = torch.Generator().manual_seed(2)
    labels = torch.zeros(9, 7, 6, dtype=torch.uint8)
    labels[1:8, 1:, 1:5] = Tissue.WHITE
    labels[6:8, 2:4, 1:3] = Tissue.OEDEMA
    labels[7, 3, 2] = Tissue.ENHANCING
    distance = torch.rand(9, 7, 6, generator=draw)
    brain = patch_loss(labels, distance, patch, labels > 0)
    lesion = patch_loss(labels, distance, patch, labels > Tissue.WHITE)
    (weights,) = lesion_weights(labels[None], share=share, patch=patch)
    found = float((weights * distance).mean())
    assert found == pytest.approx((1 - share) * brain + share * lesion, rel=1e-5)
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)


def test_a_small_lesion_is_not_lost_among_the_others() -> None:
    labels = torch.full((1, 32, 32, 32), int(Tissue.WHITE))
    labels[0, 10:13, 10:13, 10:13] = Tissue.OEDEMA  # less than one voxel in a thousand
    here = labels[0] == Tissue.OEDEMA
    (weights,) = lesion_weights(labels, share=0.5, patch=(6, 6, 6))
    assert float(here.float().mean()) < 1e-3
    assert float(weights[here].sum() / weights.sum()) > 0.04
    without = torch.full_like(labels, int(Tissue.WHITE))
    share, none = (lesion_weights(without, share=one, patch=(6, 6, 6)) for one in (0.5, 0.0))
    assert torch.equal(share, none)
    assert torch.equal(
        lesion_weights(torch.zeros_like(labels), share=0.5, patch=(6, 6, 6)),
        torch.ones(1, 32, 32, 32),
    )


def test_the_games_are_hinge_and_pix2pix() -> None:
    logits = torch.linspace(-3, 3, 13)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits

    def against(truth: float) -> Tensor:
        return entropy(logits, torch.full_like(logits, truth), reduction="none")

    torch.testing.assert_close(real_loss(logits, Game.CROSS_ENTROPY), against(1.0))
    torch.testing.assert_close(fake_loss(logits, Game.CROSS_ENTROPY), against(0.0))
    torch.testing.assert_close(fooling_loss(logits, Game.CROSS_ENTROPY), against(1.0))
    hinge = real_loss(logits, Game.HINGE).mean() + fake_loss(logits, Game.HINGE).mean()
    torch.testing.assert_close(hinge, critic_loss(logits, logits))
    torch.testing.assert_close(fooling_loss(logits, Game.HINGE), -logits)
