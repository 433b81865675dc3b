"""Training one cell: random weights, as many steps as every other cell, Dice + cross-entropy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch
from torch import Tensor, nn

from medsynth_common.labels import Tissue
from medsynth_common.learning.losses import segmenter_loss
from medsynth_common.learning.volumes import Volume
from medsynth_common.networks import NetworkSettings, build_segmenter
from medsynth_server.config import RunConfig, Table
from medsynth_server.record import Arm
from medsynth_server.table.cells import Column, Training
from medsynth_server.table.warp import Warp, cut

_CROPS = 2  # of each volume of a batch, the second around a tumour voxel


@dataclass(frozen=True, kw_only=True)
class Material:
    """What segmenters are trained on: the sites' training patients, and synthetic volumes."""

    real: Mapping[str, Sequence[Volume]]
    synthetic: Mapping[Arm, Sequence[Volume]]


def train(training: Training, material: Material, config: RunConfig, settings: Table) -> nn.Module:
    """Train a segmenter of its own random weights; gives it in its eval mode."""
    networks = networks_of(training, config)
    draw = torch.Generator().manual_seed(training.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        segmenter = build_segmenter(networks)
    for parts, rate in _phases(training, material, settings, draw):
        batches = chain.from_iterable(
            islice(
                _batches(part.pools, config.crop, draw, augmented=training.cell.augmented),
                part.steps,
            )
            for part in parts
        )
        steps = sum(part.steps for part in parts)
        _train(segmenter, batches, steps=steps, rate=rate, spatial_dims=networks.spatial_dims)
    return segmenter.eval()


def networks_of(training: Training, config: RunConfig) -> NetworkSettings:
    """The run's network sizes, with this training's architecture."""
    return config.networks.model_copy(update={"segmenter": training.cell.architecture})


@dataclass(frozen=True)
class _Part:
    """So many steps, whose batches take one volume of each pool."""

    pools: Sequence[Sequence[Volume]]
    steps: int


def _phases(
    training: Training, material: Material, settings: Table, draw: torch.Generator
) -> Iterator[tuple[Sequence[_Part], float]]:
    """Give the phases, each with a learning rate that falls from there to 0.

    Whatever sees both kinds ends on real patients: so what synthetic volumes have of their own is
    unlearned, and what they have in common is kept.
    """
    cell = training.cell
    real = [volume for volumes in material.real.values() for volume in volumes]
    made = material.synthetic[cell.generator] if cell.generator is not None else []
    rate, steps = settings.learning_rate, settings.steps
    last = round(settings.tuning_share * steps)
    match cell.column:
        case Column.REAL:
            yield [_Part((real, real), steps)], rate
        case Column.BOTH:
            yield [_Part((real, made), steps - last), _Part((real, real), last)], rate
        case Column.SYNTHETIC:
            yield [_Part((made, made), steps)], rate
        case Column.TUNED:
            some = [v for vs in material.real.values() for v in few(vs, settings.real_share, draw)]
            yield [_Part((made, made), steps - last)], rate
            yield [_Part((some, some), last)], rate * settings.tuning_rate


def few(volumes: Sequence[Volume], share: float, draw: torch.Generator) -> list[Volume]:
    """Draw a share of a site's patients, at least one."""
    count = max(1, round(share * len(volumes)))
    return [volumes[index] for index in torch.randperm(len(volumes), generator=draw)[:count]]


def _batches(
    pools: Sequence[Sequence[Volume]],
    crop: tuple[int, ...],
    draw: torch.Generator,
    *,
    augmented: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give endless batches: images (n, 4, *crop), labels (n, *crop)."""
    while True:
        crops = []
        for pool in pools:
            volume = pool[int(torch.randint(len(pool), (), generator=draw))]
            for number in range(_CROPS):
                start = _start(volume, crop, draw, at_tumour=number % 2 == 1)
                if augmented:
                    crops.append(cut(volume, Warp.draw(draw), start=start, crop=crop))
                else:
                    crops.append(_plain(volume, start, crop))
        yield torch.stack([c.image for c in crops]), torch.stack([c.labels for c in crops])


def _start(
    volume: Volume, crop: tuple[int, ...], draw: torch.Generator, *, at_tumour: bool
) -> tuple[int, ...]:
    room = [side - part for side, part in zip(volume.labels.shape, crop, strict=True)]
    tumour = (volume.labels >= Tissue.CORE).nonzero() if at_tumour else ()
    if len(tumour):
        middle = tumour[int(torch.randint(len(tumour), (), generator=draw))].tolist()
        places = [at - part // 2 for at, part in zip(middle, crop, strict=True)]
        return tuple(min(max(at, 0), most) for at, most in zip(places, room, strict=True))
    return tuple(int(torch.randint(most + 1, (), generator=draw)) for most in room)


def _plain(volume: Volume, start: tuple[int, ...], crop: tuple[int, ...]) -> Volume:
    box = tuple(slice(at, at + part) for at, part in zip(start, crop, strict=True))
    return Volume(image=volume.image[(slice(None), *box)].float(), labels=volume.labels[box])


def _train(
    segmenter: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    *,
    steps: int,
    rate: float,
    spatial_dims: int,
) -> None:
    segmenter.train()
    adam = torch.optim.Adam(segmenter.parameters(), lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, T_max=max(steps, 1))
    for _ in range(steps):
        images, labels = next(batches)
        loss = segmenter_loss(segmenter, images, labels, spatial_dims=spatial_dims)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch's stub
        adam.step()
        schedule.step()
