"""Measuring a run: Dice of its segmenters and intensities of its images, on held-out patients."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from medsynth_common.labels import CONTRASTS, Region, Tissue, segmenter_target
from medsynth_common.learning.dice import region_dice, segment
from medsynth_common.learning.volumes import Volume
from medsynth_server.record import Arm, EvaluationEvent, IntensityEvent

_BINS = np.linspace(0.0, 1.25, 51)
_SHOWN = (Tissue.CSF, Tissue.GREY, Tissue.WHITE, Tissue.OEDEMA, Tissue.ENHANCING)

Cohorts = Mapping[str, Sequence[Volume]]


def evaluate_segmenter(
    segmenter: nn.Module,
    cohorts: Cohorts,
    *,
    arm: Arm,
    model: str,
    trained_on: str,
    crop: tuple[int, ...],
    spatial_dims: int,
    device: torch.device,
) -> list[EvaluationEvent]:
    """Dice of every tumour region over all held-out patients, and per site."""
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
    return [
        EvaluationEvent(
            arm=arm,
            model=model,
            trained_on=trained_on,
            region=region,
            dice_mean=_mean(everyone := [d for dice in by_site.values() for d in dice]),
            dice_sd=float(np.std(everyone)) if everyone else None,
            patients=len(everyone),
            per_site={site: _mean(dice) for site, dice in by_site.items()},
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


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
