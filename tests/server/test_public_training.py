"""What is trained without patients: pools of phantoms, augmentation, the public stages."""

from itertools import repeat

import numpy as np
import pytest
import torch

from medsynth_common.phantom import random_scanner
from medsynth_common.tensors import state_of
from medsynth_server import augment as augment_file
from medsynth_server.augment import Change, augment
from medsynth_server.model import Model
from medsynth_server.public_pool import draw_pools, scanner_code
from medsynth_server.segmenter_training import train_on
from medsynth_server.stages.pretrain import PretrainStage
from tiny_run import SEED, public_model, same_tensors, tiny_config, tiny_pools, tiny_volume

CPU = torch.device("cpu")
CROP = tiny_config().crop


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    volumes = [tiny_volume(seed) for seed in (1, 2, 3, 4)]
    images = torch.stack([volume.image for volume in volumes])
    return images, torch.stack([volume.labels for volume in volumes])


def test_augmentation_can_be_replayed_and_keeps_air_black() -> None:
    images, labels = _batch()
    one, same, other = (
        augment(images, labels, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])
    changed, moved = one
    assert changed.shape == images.shape
    assert moved.dtype == labels.dtype
    assert bool((changed >= 0).all())
    assert not changed[:, :, 0, 0, 0].any()


def test_mirroring_moves_image_and_labels_together() -> None:
    images, labels = _batch()
    change = Change.draw(4, 4, torch.Generator().manual_seed(1), moved=0.0)
    assert 0 < int(change.mirror.sum()) < 4
    changed, moved = augment(images, labels, torch.Generator().manual_seed(1))
    for index, mirrored in enumerate(change.mirror.tolist()):
        wanted = labels[index].flip(0) if mirrored else labels[index]
        assert torch.equal(moved[index], wanted)
        brain = (images[index] > 0).any(0)
        assert not changed[index][:, ~(brain.flip(0) if mirrored else brain)].any()


def test_moved_tissues_differ_by_their_labels_and_nothing_else_is_moved() -> None:
    _, labels = _batch()
    draw = torch.Generator().manual_seed(1)
    still = Change.draw(4, 4, draw, moved=0.0)
    assert not still.moved.any()
    moved = Change.draw(4, 4, draw, moved=1.0).moved
    assert bool((moved[:, :, 1:] != 0).all())
    assert not moved[:, :, 0].any()
    table = torch.arange(9.0).view(1, 1, 9).expand(4, 4, 9)
    assert torch.equal(augment_file._by_tissue(table, labels)[:, 2], labels.float())


def test_training_on_pairs_can_be_replayed_and_learns() -> None:
    images, labels = _batch()
    model = public_model()

    def train(steps: int, seed: int = 1) -> tuple[dict[str, torch.Tensor], float]:
        return train_on(
            repeat((images, labels)), model.segmenter(CPU), steps=steps, spatial_dims=3, seed=seed
        )

    first, loss = train(2)
    assert same_tensors(first, train(2)[0])
    assert not same_tensors(first, train(2, seed=2)[0])
    assert train(40)[1] < loss
    untouched, none = train(0)
    assert same_tensors(untouched, state_of(model.segmenter(CPU)))
    assert none == 0


def test_scanner_codes_are_bounded_and_tell_scanners_apart() -> None:
    codes = [scanner_code(random_scanner(np.random.default_rng(seed))) for seed in range(20)]
    stacked = torch.stack(codes)
    assert float(stacked.abs().max()) <= 3
    assert bool((stacked.std(0) > 0.3).all())


def test_pools_are_scanners_with_phantoms_that_all_differ() -> None:
    first, second = draw_pools(seed=1, scanners=2, phantoms=2, grid=(24, 24, 24), workers=1)
    assert len(first.volumes) == len(second.volumes) == 2
    volumes = [*first.volumes, *second.volumes]
    assert len({float(volume.image.sum()) for volume in volumes}) == 4
    assert not torch.equal(first.code, second.code)


def _pretrain(rounds: int, *, interrupted: bool = False) -> Model:
    settings = tiny_config({"pretrain": {"rounds": rounds}}).pretrain
    model = Model.fresh(tiny_config().networks, seed=SEED)
    pools = tiny_pools()
    stage = PretrainStage(settings, pools, crop=CROP, seed=SEED, device=CPU)
    for number in range(1, rounds + 1):
        if interrupted:
            stage = PretrainStage(settings, pools, crop=CROP, seed=SEED, device=CPU)
        model, losses = stage.after(model, number)
        assert losses.keys() == {"generator", "segmenter", "critic"}
    return model


def test_pre_training_resumed_after_every_round_is_pre_training_uninterrupted() -> None:
    assert same_tensors(_pretrain(2).tensors, _pretrain(2, interrupted=True).tensors)


def test_pre_training_leaves_networks_prior_and_features_and_no_optimizer() -> None:
    model = public_model()
    parts = {name.partition(".")[0] for name in model.tensors}
    assert parts == {"generator", "segmenter", "critic", "prior", "variation", "features", "clips"}
    start = Model.fresh(tiny_config().networks, seed=SEED)
    for part in ("generator", "segmenter", "critic"):
        assert not same_tensors(model.part(part), start.part(part))


def test_pre_training_asks_no_site() -> None:
    stage = PretrainStage(tiny_config().pretrain, tiny_pools(), crop=CROP, seed=SEED, device=CPU)
    assert stage.plan(public_model(), "site-1", 1) is None
    with pytest.raises(NotImplementedError):
        stage.combine(public_model(), 1, [])
