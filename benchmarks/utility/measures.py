"""What the bench measures: how well tumours are found, and how like the patients images are."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.utility.federation import Cohorts
from medsynth_common.labels import TUMOUR, Region, Tissue, one_hot, segmenter_target
from medsynth_common.learning.dice import region_dice
from medsynth_common.learning.losses import tissue_moments
from medsynth_common.learning.segmenting import segment
from medsynth_common.learning.volumes import Volume
from medsynth_common.scoring.lesionwise import score_lesions
from medsynth_common.set_layout import phantom_affine
from medsynth_server.fidelity.distances import frechet
from medsynth_server.fidelity.features import Plane, plane_features
from medsynth_server.fidelity.measure import Standard
from medsynth_server.synthesis import Painter

#: Tissues of which texture is compared; the tumour's are taken together.
_TEXTURED = ((Tissue.GREY,), (Tissue.WHITE,), TUMOUR)
_RINGS = 8
#: A tissue with fewer voxels has no brightness to compare.
_ENOUGH = 20


def dice_of(segmenter: nn.Module, cohorts: Cohorts, *, crop: int) -> dict[str, float]:
    """Mean Dice of the tumour and of its lesions over all patients.

    `tumour` is the mean of whole tumour and core; `lesion` counts every lesion of a patient alike
    and every false one as 0 (`scoring.lesionwise`, BraTS 2023), on voxels as large as a head's are
    on such a grid. A healthy head counts 1, or 0 where anything is found; so `lesion, ill` is of
    the patients who have a tumour, and `spared` the part of healthy heads without a find; each is
    left out where there is nobody.
    """
    segmenter.eval()
    tumour: list[float] = []
    ill: list[float] = []
    healthy: list[float] = []
    for volumes in cohorts.values():
        for volume in volumes:
            found = segment(segmenter, volume.image, crop=(crop,) * 3, spatial_dims=3)
            target = segmenter_target(volume.labels)
            scores = region_dice(found, target)
            tumour += [s for r in (Region.WHOLE, Region.CORE) if (s := scores[r]) is not None]
            x, y, z, _ = phantom_affine(tuple(target.shape)).diagonal().tolist()
            whole = score_lesions(found.numpy() > 0, target.numpy() > 0, voxel=(x, y, z))
            (ill if bool(target.any()) else healthy).append(whole.dice)
    parts = {"lesion": ill + healthy, "lesion, ill": ill, "spared": healthy}
    return {
        "tumour": float(np.mean(tumour)),
        **{name: float(np.mean(each)) for name, each in parts.items() if each},
    }


def image_errors(painter: Painter, cohorts: Cohorts, *, seed: int) -> dict[str, float]:
    """Compare patients with their own label maps painted in their site's style.

    `intensity` is the mean error of a tissue's mean in a contrast; `texture` the mean distance of
    log10 power spectra inside tissues. Both are of means over a site's patients.
    """
    draw = torch.Generator().manual_seed(seed)
    intensity, texture = [], []
    for site, volumes in cohorts.items():
        labels = torch.stack([volume.labels for volume in volumes])
        images = [painter.paint(one.unsqueeze(0), [site], draw)[0] for one in labels]
        made = [Volume(image=i, labels=m) for i, m in zip(images, labels, strict=True)]
        intensity.append(float((_levels(made) - _levels(volumes)).abs().nanmean()))
        texture.append(float((_spectra(made) - _spectra(volumes)).abs().nanmean()))
    return {"intensity": float(np.mean(intensity)), "texture": float(np.mean(texture))}


def frechet_distance(made: Sequence[Volume], real: Sequence[Volume]) -> float:
    """Frechet distance of slices of two sets, the mean over planes (`fidelity.features`).

    The features are a random network's, standardised on the real set: no other paper's FID.
    """
    ours, theirs = ([plane_features(v.image) for v in volumes] for volumes in (real, made))
    found = []
    for plane in Plane:
        one, other = (np.concatenate([f[plane] for f in each]) for each in (ours, theirs))
        standard = Standard.fit(one)
        found.append(frechet(standard(one), standard(other)))
    return float(np.mean(found))


def _levels(volumes: Sequence[Volume]) -> Tensor:
    """Mean over patients of each tissue's mean, (tissue, contrast); NaN where nobody has it."""
    rows = []
    for volume in volumes:
        classes = one_hot(volume.labels.unsqueeze(0))
        mean, _, count = tissue_moments(volume.image.unsqueeze(0), classes)
        mean[count < _ENOUGH] = torch.nan
        rows.append(mean[0, Tissue.CSF :])
    return torch.stack(rows).nanmean(0)


def _spectra(volumes: Sequence[Volume]) -> Tensor:
    """Mean over patients of log10 power, (tissue, contrast, ring)."""
    return torch.stack([_spectrum(volume) for volume in volumes]).nanmean(0)


def _spectrum(volume: Volume) -> Tensor:
    grid = volume.labels.shape
    steps = torch.meshgrid(*(torch.fft.fftfreq(side) for side in grid), indexing="ij")
    radius = torch.stack(steps).square().sum(0).sqrt()
    ring = (radius / 0.5 * _RINGS).long().clamp(max=_RINGS)  # the corners are left out
    rows = []
    for tissues in _TEXTURED:
        # Each class has its own mean taken off: a border is no texture.
        inside = torch.zeros(grid, dtype=torch.bool)
        rest = torch.zeros_like(volume.image)
        for tissue in tissues:
            mask = volume.labels == tissue
            if int(mask.sum()) >= _ENOUGH:
                inside |= mask
                rest[:, mask] = volume.image[:, mask] - volume.image[:, mask].mean(1, keepdim=True)
        power = torch.fft.fftn(rest, dim=(1, 2, 3)).abs().square() / max(int(inside.sum()), 1)
        rings = [power[:, ring == number].mean(1) for number in range(1, _RINGS)]
        spectrum = torch.stack(rings, dim=1).clamp(min=1e-9).log10()
        rows.append(spectrum if bool(inside.any()) else torch.full_like(spectrum, torch.nan))
    return torch.stack(rows)
