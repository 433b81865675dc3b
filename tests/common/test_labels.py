import torch

from medsynth_common.labels import (
    ANATOMY,
    BRATS_VALUE_OF,
    BRATS_VALUES,
    CONTRASTS,
    REGION_TISSUES,
    SEGMENTER_CLASSES,
    TISSUES,
    TUMOUR,
    Region,
    Tissue,
    one_hot,
    segmenter_target,
)

EVERY = torch.arange(len(TISSUES), dtype=torch.uint8).reshape(1, 3, 3, 1)


def test_the_vocabulary_agrees_with_itself() -> None:
    assert [int(tissue) for tissue in TISSUES] == list(range(9))  # a channel is its value
    assert {*ANATOMY, *TUMOUR} == set(TISSUES)
    assert all(BRATS_VALUES[value] is tissue for tissue, value in BRATS_VALUE_OF.items())
    assert set(REGION_TISSUES[Region.ENHANCING]) < set(REGION_TISSUES[Region.CORE])
    assert set(REGION_TISSUES[Region.CORE]) < set(REGION_TISSUES[Region.WHOLE])
    assert [str(contrast) for contrast in CONTRASTS] == ["t1", "t1gd", "t2", "flair"]


def test_each_voxel_is_of_one_class() -> None:
    classes = one_hot(EVERY)
    assert classes.shape == (1, 9, 3, 3, 1)
    assert classes.dtype == torch.float32
    assert torch.equal(classes.argmax(1), EVERY.long())
    assert torch.equal(classes.sum(1), torch.ones(1, 3, 3, 1))


def test_the_segmenter_sees_the_tumour_alone() -> None:
    target = segmenter_target(EVERY).flatten()
    assert target.dtype == torch.int64
    for tissue in TISSUES:
        wanted = SEGMENTER_CLASSES.index(tissue) if tissue in TUMOUR else 0
        assert int(target[tissue]) == wanted
    assert int(target[Tissue.ENHANCING]) == 3
