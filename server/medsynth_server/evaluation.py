"""Measuring a run: Dice of its segmenters and intensities of its images, on held-out patients."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from medsynth_common.labels import CONTRASTS, Region, Tissue, segmenter_target
from medsynth_common.learning.dice import region_dice
from medsynth_common.learning.segmenting import segment
from medsynth_common.learning.volumes import Volume
from medsynth_server.paired_test import signed_rank
from medsynth_server.record import Arm, EvaluationEvent, IntensityEvent

_BINS = np.linspace(0.0, 1.25, 51)
_SHOWN = (Tissue.CSF, Tissue.GREY, Tissue.WHITE, Tissue.OEDEMA, Tissue.ENHANCING)

Cohorts = Mapping[str, Sequence[Volume]]
#: Dice of patients by region and site.
Dices = Mapping[Region, Mapping[str, Sequence[float]]]


def dice_of_patients(
    segmenter: nn.Module,
    cohorts: Cohorts,
    *,
    crop: tuple[int, ...],
    spatial_dims: int,
    device: torch.device,
) -> Dices:
    """Dice of every tumour region, site and held-out patient who has the region."""
    segmenter.eval()
    scores: dict[Region, dict[str, list[float]]] = {
        region: {site: [] for site in cohorts} for region in Region
    }
    for site, volumes in cohorts.items():
        for volume in volumes:
            image = volume.image.to(device)
            found = segment(segmenter, image, crop=crop, spatial_dims=spatial_dims).cpu()
            for region, dice in region_dice(found, segmenter_target(volume.labels)).items():
                if dice is not None:
                    scores[region][site].append(dice)
    return scores


def evaluation_events(
    scores: Dices, *, arm: Arm, model: str, trained_on: str, before: Dices | None = None
) -> list[EvaluationEvent]:
    """Sum every region's scores up, over all held-out patients and per site.

    Args:
        scores: of one segmenter.
        arm: which training it belongs to.
        model: which it is.
        trained_on: the same in plain words.
        before: scores of the same patients before training, to be compared with.

    """
    return [
        EvaluationEvent(
            arm=arm,
            model=model,
            trained_on=trained_on,
            region=region,
            dice_mean=_mean(everyone := _everyone(by_site)),
            dice_sd=float(np.std(everyone)) if everyone else None,
            patients=len(everyone),
            per_site={site: _mean(dice) for site, dice in by_site.items()},
            chance=_chance(everyone, _everyone(before[region])) if before else None,
        )
        for region, by_site in scores.items()
    ]


def compare_intensities(real: Cohorts, synthetic: Cohorts, *, arm: Arm) -> Iterator[IntensityEvent]:
    """Histograms of each tissue and contrast, real beside synthetic, for every site."""
    for site in real:
        for tissue in _SHOWN:
            for channel, contrast in enumerate(CONTRASTS):
                seen = _histogram(real[site], channel, tissue)
                made = _histogram(synthetic.get(site, ()), channel, tissue)
                if seen is None or made is None:
                    continue
                yield IntensityEvent(
                    arm=arm,
                    site=site,
                    contrast=contrast,
                    tissue=tissue,
                    edges=tuple(_BINS.tolist()),
                    real=seen,
                    synthetic=made,
                )


def _histogram(volumes: Sequence[Volume], channel: int, tissue: Tissue) -> tuple[float, ...] | None:
    parts: list[Tensor] = [v.image[channel][v.labels == tissue] for v in volumes]
    values = torch.cat(parts).numpy() if parts else np.zeros(0)
    if not values.size:
        return None
    counts, _ = np.histogram(values, bins=_BINS)
    return tuple((counts / values.size).tolist())


def _everyone(by_site: Mapping[str, Sequence[float]]) -> list[float]:
    return [dice for site in by_site.values() for dice in site]


def _chance(after: Sequence[float], before: Sequence[float]) -> float | None:
    """How likely chance alone makes such a difference; None without patients."""
    return signed_rank(np.subtract(after, before)) if after else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
