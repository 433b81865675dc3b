"""Stage metrics: a site's Dice leaves as one noised, charged vector, or not at all."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medsynth_client.audit import AuditLog
from medsynth_client.order import Order
from medsynth_client.site import Site
from medsynth_client.site_record import read_site
from medsynth_client.stages.metrics import release_metrics
from medsynth_common.errors import PolicyRefusal
from medsynth_common.labels import REGION_TISSUES, SEGMENTER_CLASSES, Region, segmenter_target
from medsynth_common.learning.dice import SCORES, SCORES_CLIP, mean_dice, score_vector
from medsynth_common.learning.segmenting import segment
from medsynth_common.learning.volumes import Volume
from medsynth_common.networks import build_segmenter
from medsynth_common.plan import RoundPlan, Stage
from medsynth_common.privacy.mechanism import Gaussian
from medsynth_common.tensors import under
from tiny import CROP, NETWORKS, PATIENTS, NewSite, Quiet, gaussian, plan, volumes

CPU = torch.device("cpu")
ASKED = plan(Stage.METRICS, mechanisms=(gaussian("metrics", clip=SCORES_CLIP),))


def released(asked: RoundPlan, patients: Sequence[Volume]) -> NDArray[np.float64]:
    """What leaves without noise, times the patients: their sum."""
    outcome = release_metrics(
        Order(
            plan=asked.header,
            weights=asked.weights,
            patients=patients,
            declared=PATIENTS,
            state={},
            randomness=Quiet(),
            device=CPU,
        )
    )
    assert outcome.weights == {}
    return PATIENTS * np.asarray(outcome.own["metrics.scores"], dtype=np.float64)


def by_hand(patient: Volume) -> NDArray[np.float64]:
    """The same vector, voxel by voxel, another way."""
    segmenter = build_segmenter(NETWORKS).eval()
    segmenter.load_state_dict(under("segmenter", ASKED.weights))
    found = segment(segmenter, patient.image, crop=CROP, spatial_dims=3).numpy()
    tissue_found = np.asarray(SEGMENTER_CLASSES)[found]
    scores, present = [], []
    for region in Region:
        one = np.isin(tissue_found, REGION_TISSUES[region])
        other = np.isin(patient.labels.numpy(), REGION_TISSUES[region])
        present.append(float(other.any()))
        both = np.logical_and(one, other).sum()
        scores.append(2 * both / (one.sum() + other.sum()) if other.any() else 0.0)
    return np.array([*scores, *present])


def test_the_sum_is_that_of_every_patient_s_dice() -> None:
    wanted = np.sum([by_hand(patient) for patient in volumes()], axis=0)
    assert wanted[:3].max() > 0
    np.testing.assert_allclose(released(ASKED, volumes()), wanted, atol=1e-4)
    assert released(ASKED, ()).tolist() == [0.0] * SCORES  # nobody is a release too


def test_one_patient_changes_the_sum_by_at_most_the_clip() -> None:
    """Brute force over neighbours, and over the worst patients there can be."""
    empty, full = torch.zeros(8, 8, 8, dtype=torch.int64), torch.full((8, 8, 8), 3)
    draw = torch.Generator().manual_seed(1)
    maps = [torch.randint(0, 4, (8, 8, 8), generator=draw) for _ in range(30)]
    vectors = [score_vector(a, b) for a in (empty, full, *maps) for b in (empty, full, *maps)]
    assert max(float(vector.norm()) for vector in vectors) == pytest.approx(SCORES_CLIP)
    assert min(float(vector.min()) for vector in vectors) == 0
    for clip in (SCORES_CLIP, 0.1):
        asked = plan(Stage.METRICS, mechanisms=(gaussian("metrics", clip=clip),))
        whole = released(asked, volumes())
        for k in range(PATIENTS):
            without = released(asked, volumes()[:k] + volumes()[k + 1 :])
            assert 0 < np.linalg.norm(whole - without) <= clip * (1 + 1e-5)


def test_without_the_clip_the_same_check_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gaussian, "clip_factor", lambda _self, _norm: 1.0)
    asked = plan(Stage.METRICS, mechanisms=(gaussian("metrics", clip=0.1),))
    change = released(asked, volumes()) - released(asked, volumes()[1:])
    assert np.linalg.norm(change) > 0.1


def test_a_site_that_does_not_list_it_is_asked_in_vain(new_site: NewSite) -> None:
    folder = new_site()
    with pytest.raises(PolicyRefusal, match="stages: got metrics"):
        Site(folder, device=CPU).carry(ASKED)
    assert read_site(folder).ledger.spending.statement() == []


def test_a_site_that_lists_it_charges_it_like_all_others(new_site: NewSite) -> None:
    folder = new_site(stages=["metrics"])
    update = Site(folder, device=CPU).carry(ASKED)
    assert update.weights == {}
    assert update.own["metrics.scores"].shape == (SCORES,)
    (line,) = read_site(folder).ledger.spending.statement()
    assert (line.name, line.clip, line.releases) == ("metrics", SCORES_CLIP, 1)
    (event,) = AuditLog(folder / "audit.jsonl").read()
    assert (event.outcome, event.stage, len(event.receipts)) == ("released", "metrics", 1)


def test_dice_and_its_noise_are_what_many_draws_say() -> None:
    truth, noise = torch.tensor([0.4, 0.3, 0.0, 0.8, 0.5, 0.01], dtype=torch.float64), 0.02
    found = mean_dice(truth, noise=noise)
    assert found[Region.ENHANCING] is None  # hardly anybody has it: noise would say anything
    draw = np.random.default_rng(0)
    for index, region in enumerate((Region.WHOLE, Region.CORE)):
        dice = found[region]
        assert dice is not None
        score, present = (
            float(truth[k]) + noise * draw.normal(size=20_000) for k in (index, index + 3)
        )
        assert dice[0] == pytest.approx(np.mean(score / present), abs=0.01)
        assert dice[1] == pytest.approx(np.std(score / present), rel=0.1)
    sure = mean_dice(truth, noise=0.0)[Region.ENHANCING]
    assert sure == (0.0, 0.0)


def test_labels_are_compared_in_the_segmenter_s_channels() -> None:
    labels = volumes()[0].labels
    vector = score_vector(segmenter_target(labels), segmenter_target(labels))
    present: Any = vector[3:]
    assert torch.equal(vector[:3], present)  # found exactly: 1 wherever there is something
    nothing = replace(volumes()[0], labels=torch.zeros_like(labels)).labels
    assert not bool(score_vector(segmenter_target(labels), segmenter_target(nothing)).any())
