"""How patients of one scanner differ: against what was planted, and what phantoms do."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from medsynth_common.labels import CONTRASTS, TISSUES, Contrast, Tissue
from medsynth_common.learning.moments import measure
from medsynth_common.learning.variation import Variation, fit_variation, tumour_sizes
from medsynth_common.learning.volumes import Volume
from medsynth_common.style import CODE_LENGTH, TABLE, Style
from tiny import volumes

SHAPE = (10, 10, 12)
GD = CONTRASTS.index(Contrast.T1GD)
NONE = torch.zeros(SHAPE, dtype=torch.uint8)


def made_up(levels: Tensor, rim: int) -> Volume:
    """A head whose tissues are layers, flat but for a little noise, with so many voxels of rim."""
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    for tissue in list(Tissue)[1:]:
        labels[int(tissue)] = int(tissue)
    flat = labels[int(Tissue.ENHANCING)].view(-1)
    flat[rim:] = int(Tissue.WHITE)
    image = levels.T[:, labels.long()]
    return Volume(image=image + 1e-4 * torch.randn_like(image), labels=labels)


def style() -> Style:
    draw = torch.Generator().manual_seed(1)
    table = torch.rand(3, *TABLE, generator=draw)
    return Style(offset=table[0] + 4, gain=table[1], spread=table[2], code=torch.ones(CODE_LENGTH))


def offsets(variation: Variation, labels: Tensor, count: int = 4000) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.stack([variation.patient(style(), labels, draw).offset for _ in range(count)])


def correlation(rows: Tensor, one: tuple[int, int], two: tuple[int, int]) -> float:
    return float(torch.corrcoef(torch.stack([rows[:, *one], rows[:, *two]]))[0, 1])


@pytest.fixture(scope="module")
def fitted() -> Variation:
    """Patients whose every T1Gd falls with the rim; white and grey T1 share all, T2 nothing."""
    torch.manual_seed(3)
    pools: list[list[Volume]] = []
    for _ in range(60):  # scanners, far apart
        scanner = 2 + torch.rand(TABLE)
        pool = []
        for _ in range(4):
            rim = int(torch.randint(10, 110, ()))
            levels = scanner + 0.1 * torch.randn(TABLE)
            levels[Tissue.WHITE, 0] = levels[Tissue.GREY, 0]
            levels[:, GD] = scanner[:, GD] - 0.3 * tumour_sizes(made_up(levels, rim).labels)[2]
            pool.append(made_up(levels, rim))
        pools.append(pool)
    return fit_variation(pools)


def test_levels_move_together_as_they_did(fitted: Variation) -> None:
    rows = offsets(fitted, NONE)
    assert correlation(rows, (Tissue.WHITE, 2), (Tissue.GREY, 2)) == pytest.approx(0, abs=0.3)
    assert correlation(rows, (Tissue.WHITE, 0), (Tissue.CSF, 0)) == pytest.approx(0, abs=0.3)
    shared = correlation(rows, (Tissue.WHITE, 0), (Tissue.GREY, 0))
    assert shared > 0.8


def test_a_rim_moves_what_it_moved(fitted: Variation) -> None:
    """T1Gd is settled by the rim's size: nothing of it is left to chance."""
    small, large = (
        offsets(fitted, made_up(torch.ones(TABLE), rim).labels, 500)[:, 1:] for rim in (15, 100)
    )
    spread = style().spread[1:]
    lower = (small.mean(0) - large.mean(0)) / spread
    # A spread is of all patients of a scanner: from small to large is more than one of it.
    assert bool((lower[:, GD] > 1).all())
    others = [c for c in range(len(CONTRASTS)) if c != GD]
    assert float(lower[:, others].abs().mean()) < 0.4
    left = small.std(0) / spread
    assert float(left[:, GD].max()) < 0.3
    assert float(left[:, others].mean()) == pytest.approx(1, abs=0.1)


def test_scanners_are_not_taken_for_patients(fitted: Variation) -> None:
    """Pooled without their scanners' means, all tissues would seem to rise and fall together."""
    rows = offsets(fitted, NONE)
    assert abs(correlation(rows, (Tissue.CSF, 2), (Tissue.DEEP_GREY, 2))) < 0.3


def test_independent_patients_differ_by_the_spread_alone() -> None:
    site = style()
    rows = offsets(Variation.independent(), volumes()[0].labels)
    assert torch.allclose(rows.mean(0)[1:], site.offset[1:], atol=0.06)
    assert torch.allclose(rows.std(0)[1:], site.spread[1:], atol=0.04)
    assert torch.equal(rows[:, 0], site.offset[0].expand(len(rows), -1))  # air does not vary
    one = Variation.independent().patient(site, NONE, torch.Generator())
    assert one.gain is site.gain
    assert one.code is site.code


def test_a_tumour_larger_than_any_phantom_s_is_as_the_largest(fitted: Variation) -> None:
    """The line is followed to three SDs of a size and no further."""
    head = torch.full(SHAPE, int(Tissue.WHITE), dtype=torch.uint8)
    moved = []
    for share in (0.5, 0.9):
        labels = head.clone()
        labels.view(-1)[: int(share * head.numel())] = int(Tissue.ENHANCING)
        draw = torch.Generator().manual_seed(6)
        moved.append(fitted.patient(style(), labels, draw).offset)
    assert torch.equal(*moved)


def test_no_level_falls_below_air() -> None:
    dark = Style.from_tensors({**style().tensors(), "offset": torch.zeros(TABLE)})
    draw = torch.Generator().manual_seed(4)
    drawn = Variation.independent().patient(dark, NONE, draw).offset
    assert float(drawn.min()) == 0
    assert float(drawn.max()) > 0


def test_the_same_draw_is_the_same_patient(fitted: Variation) -> None:
    labels = volumes()[0].labels
    first, again = (
        fitted.patient(style(), labels, torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first.offset, again.offset)


def test_a_patient_does_not_depend_on_where_in_memory_a_tensor_lies(fitted: Variation) -> None:
    """Or a run that went on from a file would end otherwise than one that did not stop."""

    def moved(tensor: Tensor, by: int) -> Tensor:
        room = torch.empty(tensor.numel() + by)[by:].view(tensor.shape)
        return room.copy_(tensor)

    labels = volumes()[0].labels
    for by in range(16):
        parts = {name: moved(tensor, by) for name, tensor in fitted.tensors().items()}
        again = Variation.from_tensors(parts)
        one, two = (
            variation.patient(style(), labels, torch.Generator().manual_seed(3)).offset
            for variation in (fitted, again)
        )
        assert torch.equal(one, two)


def test_it_travels_as_its_parts(fitted: Variation) -> None:
    again = Variation.from_tensors({**fitted.tensors(), "more": torch.zeros(1)})
    assert again.tensors().keys() == Variation.independent().tensors().keys()
    for name, form in Variation.independent().tensors().items():
        assert torch.equal(again.tensors()[name], fitted.tensors()[name])
        assert form.shape == fitted.tensors()[name].shape
        assert form.dtype == fitted.tensors()[name].dtype


def test_sizes_are_shares_of_the_brain() -> None:
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    labels[:5] = int(Tissue.WHITE)
    assert torch.equal(tumour_sizes(labels), torch.zeros(3))
    assert torch.equal(tumour_sizes(NONE), torch.zeros(3))  # no brain at all
    labels[0, 0, :6] = int(Tissue.ENHANCING)  # 6 of 600 voxels: a hundredth
    assert tumour_sizes(labels).tolist() == pytest.approx([0, 0, torch.tensor(2.0).log()])


def gadolinium(pool: Sequence[Volume]) -> float:
    """How the brightness of white and of grey matter after contrast agent go together."""
    levels = torch.stack([measure(volume)[0] for volume in pool])
    return correlation(levels, (Tissue.WHITE, GD), (Tissue.GREY, GD))


@pytest.mark.parametrize("grid", [(24, 24, 24)])
def test_phantoms_vary_as_was_said(grid: tuple[int, ...]) -> None:
    """What is claimed of patients holds of phantoms, and of what is drawn after them."""
    pools = [volumes(scanner, 900 + 40 * scanner, 12) for scanner in range(3)]
    assert all(pool[0].labels.shape == grid for pool in pools)
    assert min(gadolinium(pool) for pool in pools) > 0.5
    public, draw = fit_variation(pools), torch.Generator().manual_seed(5)
    labels = [volume.labels for pool in pools for volume in pool] * 8
    drawn = torch.stack([public.patient(style(), one, draw).offset for one in labels])
    assert correlation(drawn, (Tissue.WHITE, GD), (Tissue.GREY, GD)) > 0.5
    assert len(TISSUES) * len(CONTRASTS) == drawn[0].numel()
