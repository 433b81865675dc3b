import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon
from torch import Tensor, nn

from medsynth_common.labels import SEGMENTER_CLASSES, Contrast, Region, Tissue, segmenter_target
from medsynth_common.learning.volumes import Volume
from medsynth_server.evaluation import (
    Dices,
    compare_intensities,
    dice_of_patients,
    evaluation_events,
)
from medsynth_server.record import Arm, EvaluationEvent
from tiny_run import tiny_volume

CPU = torch.device("cpu")


class Oracle(nn.Module):
    """Finds the tumour of a volume whose first contrast is its target, times `right`."""

    def __init__(self, right: float = 1.0) -> None:
        super().__init__()
        self.right = right

    def forward(self, images: Tensor) -> Tensor:
        found = (images[:, 0] * self.right).round().long()
        return nn.functional.one_hot(found, len(SEGMENTER_CLASSES)).movedim(-1, 1).float()


def _told(seed: int) -> Volume:
    """A volume that shows its target in the first contrast."""
    volume = tiny_volume(seed)
    target = segmenter_target(volume.labels).float()
    return Volume(image=target.expand(4, *target.shape), labels=volume.labels)


def _healthy() -> Volume:
    labels = tiny_volume().labels.clone()
    labels[labels >= Tissue.CORE] = Tissue.WHITE
    return Volume(image=torch.zeros(4, *labels.shape), labels=labels)


def _dices(segmenter: nn.Module, cohorts: dict[str, list[Volume]]) -> Dices:
    return dice_of_patients(segmenter, cohorts, crop=(16, 16, 16), spatial_dims=3, device=CPU)


def _evaluate(
    segmenter: nn.Module, cohorts: dict[str, list[Volume]], before: nn.Module | None = None
) -> dict[Region, EvaluationEvent]:
    events = evaluation_events(
        _dices(segmenter, cohorts),
        arm=Arm.PRIVATE,
        model="m",
        trained_on="nothing",
        before=_dices(before, cohorts) if before else None,
    )
    return {event.region: event for event in events}


def test_a_segmenter_that_knows_finds_everything_and_one_that_does_not_nothing() -> None:
    cohorts = {"a": [_told(1), _told(2)], "b": [_told(3)]}
    for right, wanted in ((1.0, 1.0), (0.0, 0.0)):
        found = _evaluate(Oracle(right), cohorts)
        assert found.keys() == set(Region)
        whole = found[Region.WHOLE]
        assert (whole.dice_mean, whole.dice_sd, whole.patients) == (wanted, 0.0, 3)
        assert whole.per_site == {"a": wanted, "b": wanted}


def test_patients_weigh_alike_whatever_site_they_are_of() -> None:
    blind = _told(2)
    blind = Volume(image=torch.zeros_like(blind.image), labels=blind.labels)
    found = _evaluate(Oracle(), {"a": [_told(1), _told(3), blind], "b": [_told(4)], "c": []})
    whole = found[Region.WHOLE]
    assert whole.dice_mean == pytest.approx(0.75)
    assert whole.dice_sd == pytest.approx(float(np.std([1, 1, 0, 1])))
    assert whole.per_site == {"a": pytest.approx(2 / 3), "b": 1.0, "c": None}


def test_without_any_tumour_there_is_nothing_to_find() -> None:
    found = _evaluate(Oracle(), {"a": [_healthy()]})
    for event in found.values():
        assert (event.dice_mean, event.dice_sd, event.patients) == (None, None, 0)


def test_a_model_is_compared_with_the_one_before_it_patient_by_patient() -> None:
    cohorts = {"a": [_told(seed) for seed in range(4)], "b": [_told(seed) for seed in (5, 6, 7)]}
    better = _evaluate(Oracle(), cohorts, before=Oracle(0.0))[Region.WHOLE]
    # Every one of seven patients is better off, all by the same: so says the normal approximation.
    assert better.chance == pytest.approx(float(wilcoxon([1.0] * 7, method="asymptotic").pvalue))
    assert _evaluate(Oracle(), cohorts, before=Oracle())[Region.WHOLE].chance == 1.0
    assert _evaluate(Oracle(), cohorts)[Region.WHOLE].chance is None
    assert _evaluate(Oracle(), {"a": [_healthy()]}, Oracle())[Region.WHOLE].chance is None


def test_histograms_are_shares_of_a_tissues_voxels() -> None:
    volume = tiny_volume()
    flat = Volume(image=torch.full_like(volume.image, 0.51), labels=volume.labels)
    events = list(compare_intensities({"a": [volume]}, {"a": [flat]}, arm=Arm.PRIVATE))
    assert {event.contrast for event in events} == set(Contrast)
    present = set(volume.labels.flatten().tolist())
    assert {event.tissue for event in events} <= present
    for event in events:
        assert math.fsum(event.real) == pytest.approx(1.0, abs=1e-6)
        (bin_,) = [n for n, share in enumerate(event.synthetic) if share]
        low, high = list(pairwise(event.edges))[bin_]
        assert low <= 0.51 < high


def test_a_tissue_or_site_that_one_side_lacks_is_left_out() -> None:
    volume = tiny_volume()
    assert not list(compare_intensities({"a": [volume], "b": []}, {"b": [volume]}, arm=Arm.PRIVATE))
    events = compare_intensities({"a": [volume]}, {"a": [_healthy()]}, arm=Arm.PRIVATE)
    assert {event.tissue for event in events} == {Tissue.CSF, Tissue.GREY, Tissue.WHITE}
