"""Edits keep their rules on a thousand random edits of random heads, and each does what it says."""

from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medsynth_common.dataset.frame import fit_frame
from medsynth_common.dataset.prepare import to_tissue
from medsynth_common.editing import Edit, EditKind, apply, apply_all, draw_edits
from medsynth_common.editing.edits import (
    EDITS,
    Inserted,
    Mirrored,
    Moved,
    Removed,
    Resized,
    Rotated,
    VentriclesEnlarged,
    drawn_lesion,
    lesions,
)
from medsynth_common.editing.healing import mirror_plane
from medsynth_common.editing.levels import Levels
from medsynth_common.editing.rules import lay, push
from medsynth_common.errors import BadInput
from medsynth_common.labels import REGION_TISSUES, TUMOUR, Region, Tissue
from medsynth_common.phantom import draw_labels
from medsynth_common.phantom.anatomy import Labels
from medsynth_common.volumes import read_volume

SHAPES = ((24, 24, 24), (32, 28, 24), (28, 32, 30))
KINDS = tuple(EditKind)
FLIPS = tuple(product((slice(None), slice(None, None, -1)), repeat=3))
HEADS = 25


@cache
def head(number: int, tumours: int | None = None) -> Labels:
    """A small head, drawn once; nobody can change it."""
    rng = np.random.default_rng([91, number])
    labels = draw_labels(rng, SHAPES[number % len(SHAPES)], tumours=tumours)
    labels.setflags(write=False)
    return labels


def core_is_enclosed(labels: Labels) -> bool:
    """Whether all six neighbours of every core voxel are tumour; off the grid counts as not."""
    outside = ~np.isin(labels, TUMOUR)
    near = ndimage.binary_dilation(outside, border_value=1)
    return not (near & (labels == Tissue.CORE)).any()


def tumour_keeps_to_the_brain(before: Labels, after: Labels) -> bool:
    """Whether the brain's outline is as it was; tumour is brain, so it lies within."""
    return np.array_equal(before == Tissue.BACKGROUND, after == Tissue.BACKGROUND)


def volume(labels: Labels, region: Region = Region.WHOLE) -> int:
    return int(np.isin(labels, REGION_TISSUES[region]).sum())


def check_rules(before: Labels, after: Labels, what: object) -> None:
    assert after.shape == before.shape, what
    assert after.dtype == before.dtype, what
    assert tumour_keeps_to_the_brain(before, after), what
    assert core_is_enclosed(after), what
    assert set(np.unique(after)) <= set(Tissue), what


def try_kind(number: int, kind: EditKind) -> int:
    """Edit a head; returns how many edits were made and held."""
    whole = head(number, tumours=0) if kind is EditKind.INSERTED else head(number)
    # Each kind sees other maps: the head's mirror images along its axes.
    before = whole[FLIPS[KINDS.index(kind) % len(FLIPS)]]
    copy = before.copy()
    try:
        edits = draw_edits(np.random.default_rng([7, number]), before, kind)
    except BadInput as error:
        (problem,) = error.problems
        assert problem.name
        assert problem.wanted
        return 0
    after = before
    for edit in edits:
        step = apply(edit, after)
        check_rules(after, step, (number, edit))
        check_direction(after, step, edit)
        check_touched(after, step, edit)
        after = step
    assert np.array_equal(before, copy)
    if number < HEADS:
        assert np.array_equal(apply_all(edits, before), after)
    return 1


def check_direction(before: Labels, after: Labels, edit: Edit) -> None:
    match edit:
        case Resized(factor=factor):
            assert (volume(after) - volume(before)) * (factor - 1) > 0, edit
        case Removed(lesion=which):
            gone = int(lesions(before)[which].sum())
            assert volume(after) == volume(before) - gone, edit
        case Inserted():
            assert volume(after) > volume(before), edit
        case VentriclesEnlarged():
            assert (before == Tissue.VENTRICLE).sum() < (after == Tissue.VENTRICLE).sum(), edit
            assert (after[before == Tissue.VENTRICLE] == Tissue.VENTRICLE).all(), edit
        case Moved() | Mirrored() | Rotated():
            solid = volume(after, Region.CORE)
            assert solid > 0 or volume(before, Region.CORE) == 0, edit


def check_touched(before: Labels, after: Labels, edit: Edit) -> None:
    """Outside the lesion as it was and as it is, and what it pushes, not a voxel differs."""
    if isinstance(edit, VentriclesEnlarged):
        touched = after == Tissue.VENTRICLE
    else:
        lesion = getattr(edit, "lesion", None)
        others = np.zeros(before.shape, dtype=bool)
        for number, mask in enumerate(lesions(before)):
            if number != lesion:
                others |= mask
        assert np.array_equal(before[others], after[others]), edit
        touched = (np.isin(before, TUMOUR) | np.isin(after, TUMOUR)) & ~others
        if getattr(edit, "push", 0):
            centre = edit.to if isinstance(edit, Moved) else edit.at  # type: ignore[union-attr]
            if isinstance(edit, Moved):
                radius = Levels.of(before, lesions(before)[edit.lesion]).unbitten(before).radius
            else:
                radius = edit.levels(before).radius  # type: ignore[union-attr]
            away = np.linalg.norm(np.moveaxis(np.indices(before.shape), 0, -1) - centre, axis=-1)
            touched |= away <= 1.8 * radius
    assert np.array_equal(before[~touched], after[~touched]), edit


@pytest.mark.parametrize("kind", KINDS)
def test_edits_of_every_kind_hold_the_rules(kind: EditKind) -> None:
    made = sum(try_kind(number, kind) for number in range(HEADS))
    assert made >= 0.7 * HEADS  # about one head in eight has no tumour to edit


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_edits_hold_the_rules(kind: EditKind) -> None:
    assert sum(try_kind(number, kind) for number in range(HEADS, HEADS + 100)) >= 70


def test_edits_made_one_on_another_hold_the_rules() -> None:
    for number in range(12):
        rng = np.random.default_rng([3, number])
        before = after = head(number)
        for _ in range(4):
            after = apply_all(draw_edits(rng, after, EditKind.RANDOM), after)
        check_rules(before, after, number)


def test_the_checks_find_what_they_look_for() -> None:
    labels = head(1, tumours=1).copy()
    spilt = labels.copy()
    spilt[0, 0, 0] = Tissue.OEDEMA
    assert not tumour_keeps_to_the_brain(labels, spilt)
    bare = labels.copy()
    x, y, z = np.argwhere(bare == Tissue.WHITE)[0]
    bare[x, y, z] = Tissue.CORE
    assert core_is_enclosed(labels)
    assert not core_is_enclosed(bare)


def test_edits_can_be_logged_and_replayed() -> None:
    for number in range(6):
        labels = head(number)
        edits = draw_edits(np.random.default_rng(number), labels, EditKind.RANDOM)
        again = EDITS.validate_json(EDITS.dump_json(edits))
        assert again == edits
        assert np.array_equal(apply_all(again, labels), apply_all(edits, labels))


def test_equal_generators_draw_equal_edits() -> None:
    labels = head(2)
    one, same, other = (
        draw_edits(np.random.default_rng(seed), labels, EditKind.RANDOM) for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def block(solid: float, core: float, whole: float, edge: int = 40) -> Labels:
    """A ball of white matter with a ball of a tumour in it."""
    away = np.linalg.norm(np.indices((edge, edge, edge)) - np.full((3, 1, 1, 1), edge / 2), axis=0)
    labels = np.where(away < edge / 2 - 2, Tissue.WHITE, Tissue.BACKGROUND).astype(np.uint8)
    for radius, tissue in ((whole, Tissue.OEDEMA), (solid, Tissue.ENHANCING), (core, Tissue.CORE)):
        labels[away < radius] = tissue
    return labels


@pytest.mark.parametrize("factor", [0.6, 1.3, 1.6])
def test_a_ball_is_scaled(factor: float) -> None:
    labels = block(solid=6, core=3.5, whole=8.5)
    after = apply(Resized(factor=factor), labels)
    for region, radius in ((Region.WHOLE, 8.5), (Region.CORE, 6.0)):
        ball = 4 / 3 * np.pi * (radius * factor) ** 3
        assert volume(after, region) == pytest.approx(ball, rel=0.25)


def test_growing_keeps_the_order_of_core_rim_and_oedema() -> None:
    labels = block(solid=6, core=3.5, whole=8.5)
    line = apply(Resized(factor=1.5), labels)[20, 20, 20:]
    order = [Tissue.CORE, Tissue.ENHANCING, Tissue.OEDEMA, Tissue.WHITE, Tissue.BACKGROUND]
    assert list(dict.fromkeys(line.tolist())) == order


def test_a_small_tumour_never_wastes_away() -> None:
    labels = block(solid=2.2, core=0.9, whole=3.2)
    after = apply(Resized(factor=0.3), labels)
    assert 0 < volume(after, Region.CORE) < volume(labels, Region.CORE)


def test_a_moved_lesion_keeps_its_size_where_there_is_room() -> None:
    labels = block(solid=4, core=2.5, whole=6)
    after = apply(Moved(to=(20, 20, 26)), labels)
    for region in Region:
        assert volume(after, region) == volume(labels, region)
    assert after[20, 20, 26] == Tissue.CORE


def test_a_mirrored_lesion_lies_across_the_middle() -> None:
    labels = apply(Moved(to=(26, 20, 20)), block(solid=4, core=2.5, whole=6))
    after = apply(Mirrored(), labels)
    plane = mirror_plane(labels)
    assert np.isin(after[plane - 26, 20, 20], TUMOUR)
    assert not np.isin(after[26, 20, 20], TUMOUR)
    assert volume(after) == volume(labels)


def test_a_rotated_lesion_points_elsewhere() -> None:
    labels = block(solid=0, core=0, whole=0)
    labels[14:27, 18:23, 18:23] = Tissue.ENHANCING
    after = apply(Rotated(degrees=(0, 0, 90)), labels)
    spans = [np.ptp(places) + 1 for places in np.nonzero(np.isin(after, TUMOUR))]
    assert spans == [5, 13, 5]


def test_a_removed_lesion_leaves_what_the_other_side_has() -> None:
    labels = block(solid=0, core=0, whole=0)
    plane = mirror_plane(labels)
    labels[26:30, 18:24, 18:24] = Tissue.DEEP_GREY
    labels[plane - 29 : plane - 25, 18:24, 18:24] = Tissue.DEEP_GREY
    healthy = labels.copy()
    labels[25:31, 17:25, 17:25] = Tissue.OEDEMA
    after = apply(Removed(), labels)
    assert np.array_equal(after, healthy)


def test_where_both_sides_are_ill_white_matter_lies_under_cortex() -> None:
    labels = block(solid=0, core=0, whole=0)
    labels[6:35, 2:8, 16:24][labels[6:35, 2:8, 16:24] > 0] = Tissue.OEDEMA
    after = apply(Removed(), labels)
    assert volume(after) == 0
    changed = labels == Tissue.OEDEMA
    assert set(np.unique(after[changed])) == {Tissue.WHITE, Tissue.GREY}
    depth = ndimage.distance_transform_edt(labels != Tissue.BACKGROUND)
    assert (after[changed & (depth == 1)] == Tissue.GREY).all()


def test_oedema_follows_white_matter_and_stops_at_fluid() -> None:
    ill = block(solid=4, core=2, whole=9)
    levels = Levels.of(ill, lesions(ill)[0])
    white = np.where(ill == Tissue.BACKGROUND, ill, np.uint8(Tissue.WHITE))
    grey, wet = white.copy(), white.copy()
    grey[26:][grey[26:] == Tissue.WHITE] = Tissue.GREY
    wet[26][wet[26] > 0] = Tissue.CSF
    reached = [(lay(labels, levels)[27:30] == Tissue.OEDEMA).any() for labels in (white, grey, wet)]
    assert reached == [True, False, False]


def test_a_mass_pushes_a_ventricle_and_leaves_the_outline() -> None:
    labels = block(solid=0, core=0, whole=0)
    labels[24:26, 14:26, 14:26] = Tissue.VENTRICLE
    after = push(labels, (20, 20, 20), reach=12, strength=0.6)
    assert np.argwhere(after == Tissue.VENTRICLE)[:, 0].mean() > 24.6
    assert np.array_equal(labels == Tissue.BACKGROUND, after == Tissue.BACKGROUND)
    assert np.array_equal(push(labels, (20, 20, 20), reach=12, strength=0), labels)


def test_drawn_lesions_are_as_large_as_asked() -> None:
    small, large = (drawn_lesion(4, size=size, mm=2.0).radius for size in (0.5, 1.2))
    assert small < large
    assert 2.0 * large < 40


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (Resized(factor=2), "lesion 0 of 0"),
        (Moved(to=(12, 12, 12)), "lesion 0 of 0"),
        (Removed(lesion=3), "lesion 3 of 0"),
        (Inserted(at=(0, 0, 0), seed=1), "no room"),
        (Inserted(at=(12, 12, 99), seed=1), "no room"),
    ],
)
def test_what_cannot_be_done_is_told(edit: Edit, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        apply(edit, head(0, tumours=0))


def test_an_empty_map_is_told() -> None:
    empty = np.zeros((24, 24, 24), dtype=np.uint8)
    for kind in EditKind:
        with pytest.raises(BadInput):
            draw_edits(np.random.default_rng(0), empty, kind)
    with pytest.raises(BadInput, match="no ventricle"):
        apply(VentriclesEnlarged(by=2), empty)


def test_a_lesion_that_fills_its_brain_cannot_grow() -> None:
    labels = block(solid=0, core=0, whole=0, edge=24)
    labels[labels > 0] = Tissue.ENHANCING
    with pytest.raises(BadInput, match="cannot change"):
        apply(Resized(factor=1.5), labels)


#: FreeSurfer numbers of the SynthSeg label maps that are brain.
FREESURFER = {
    **dict.fromkeys((2, 41, 7, 46, 16, 28, 60, 77, 85), Tissue.WHITE),
    **dict.fromkeys((3, 42, 8, 47), Tissue.GREY),
    **dict.fromkeys((4, 43, 5, 44, 14, 15), Tissue.VENTRICLE),
    **dict.fromkeys((10, 49, 11, 50, 12, 51, 13, 52, 17, 53, 18, 54, 26, 58), Tissue.DEEP_GREY),
    24: Tissue.CSF,
}


def test_edits_of_real_heads_hold_the_rules(real_data: Path) -> None:
    folder = real_data / "label_maps"
    if not folder.is_dir():
        pytest.skip(f"label_maps is absent from {real_data}")
    paths = sorted(folder.glob("*.nii.gz"))[:2]
    for path in paths:
        read = read_volume(path)
        frame = fit_frame(read.data.shape, read.affine, (48, 48, 48))
        labels = frame.resample_labels(to_tissue(read.data, FREESURFER))
        ill = apply_all(draw_edits(np.random.default_rng(1), labels, EditKind.INSERTED), labels)
        check_rules(labels, ill, path.name)
        for kind in EditKind:
            before = labels if kind is EditKind.INSERTED else ill
            edits = draw_edits(np.random.default_rng(2), before, kind)
            check_rules(before, apply_all(edits, before), (path.name, kind))
