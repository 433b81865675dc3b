"""Tissue classes from intensities alone, for patients without an anatomy map.

A stand-in of a few rules, not a segmentation to measure volumes on: k-means (Lloyd 1982) over T1,
T2 and FLAIR parts CSF from tissue and then, with the bias field flattened, grey from white matter.
CSF that lies deep is ventricle, grey matter that lies deep is deep grey.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsynth_common.labels import CONTRASTS, Contrast, Tissue

_CHANNELS: Final = [CONTRASTS.index(c) for c in (Contrast.T1, Contrast.T2, Contrast.FLAIR)]
#: How much each of them tells grey from white matter.
_GREY_WHITE_WEIGHTS: Final = np.array([1.0, 0.5, 0.25], dtype=np.float32)
#: Where the clusters start, in robust standard deviations from the median (T1, T2, FLAIR).
#: First CSF, grey and white; then, in the tissue that is left, grey mixed with CSF, grey, white.
_CSF_START: Final = np.array(
    [[-3.0, 3.0, -3.0], [-0.5, 0.5, 0.3], [0.8, -0.6, 0.0]], dtype=np.float32
)
_GREY_WHITE_START: Final = np.array(
    [[-2.0, 1.0, 0.0], [-0.5, 0.5, 0.2], [0.7, -0.6, 0.0]], dtype=np.float32
)
_FITTED_VOXELS: Final = 60_000
_ROUNDS: Final = 20
#: Wide against gyri, narrow against the bias field.
_BIAS_MM: Final = 24.0
#: Depth below the brain's surface, as a share of the deepest point's.
_VENTRICLE_SEED: Final = 0.6
_VENTRICLE_REACH: Final = 0.45
_DEEP_GREY: Final = 0.65
#: A piece of CSF with less of its volume deep than this, against the deepest piece, is a fissure.
_MINOR_PIECE: Final = 0.1

Spacing = tuple[float, float, float]


def tissue_clusters(
    image: NDArray[np.float32],
    brain: NDArray[np.bool_],
    tumour: NDArray[np.uint8],
    *,
    spacing: Spacing = (1.0, 1.0, 1.0),
) -> NDArray[np.uint8]:
    """Give each brain voxel a `Tissue` by its intensities, with the tumour laid over it.

    The same input always gives the same labels.

    Args:
        image: the four contrasts (4, x, y, z), any scale, none below 0.
        brain: the brain's voxels (x, y, z).
        tumour: `Tissue` values of the tumour (x, y, z), 0 elsewhere.
        spacing: voxel size along x, y, z in millimetres.

    Returns:
        `Tissue` values (x, y, z), uint8, background outside the brain.

    """
    labels = np.zeros(brain.shape, dtype=np.uint8)
    healthy = brain & (tumour == 0)
    if healthy.any():
        channels = image[_CHANNELS]  # (3, x, y, z)
        csf = _csf(channels, healthy)
        labels[healthy] = Tissue.GREY
        labels[_white(channels, healthy & ~csf, spacing)] = Tissue.WHITE
        labels[csf] = Tissue.CSF
        _name_deep_parts(labels, brain, spacing)
    return np.where(brain & (tumour > 0), tumour, labels)


def _csf(channels: NDArray[np.float32], healthy: NDArray[np.bool_]) -> NDArray[np.bool_]:
    features = _standardised(channels[:, healthy].T, limit=4.0)
    csf = np.zeros_like(healthy)
    csf[healthy] = _clusters(features, _CSF_START) == 0
    return csf


def _white(
    channels: NDArray[np.float32], tissue: NDArray[np.bool_], spacing: Spacing
) -> NDArray[np.bool_]:
    white = np.zeros_like(tissue)
    if tissue.any():
        flat = channels[:, tissue] / _local_means(channels, tissue, spacing)
        features = _standardised(flat.T, limit=2.5) * _GREY_WHITE_WEIGHTS
        clusters = _clusters(features, _GREY_WHITE_START * _GREY_WHITE_WEIGHTS)
        white[tissue] = clusters == len(_GREY_WHITE_START) - 1
    return white


def _standardised(values: NDArray[np.float32], *, limit: float) -> NDArray[np.float32]:
    """Return values (n, 3) in robust standard deviations from the median, within `limit`."""
    offset = values - np.median(values, axis=0)
    deviation = 1.4826 * np.median(np.abs(offset), axis=0)
    return np.clip(offset / np.maximum(deviation, 1e-6), -limit, limit)


def _clusters(features: NDArray[np.float32], start: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return each voxel's cluster (n,), numbered from the darkest on T1 to the brightest."""
    sample = features[:: max(len(features) // _FITTED_VOXELS, 1)]
    centres = start.copy()
    for _ in range(_ROUNDS):
        nearest = _nearest(sample, centres)
        for k in np.unique(nearest):  # a cluster that is empty stays where it was
            centres[k] = sample[nearest == k].mean(axis=0)
    return _nearest(features, centres[np.argsort(centres[:, 0], kind="stable")])


def _nearest(features: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.intp]:
    # |f - c|^2 without |f|^2, which is the same for every centre. Not a BLAS product: on matrices
    # this thin its threads spend more time on waiting for each other than on the sum.
    shared = np.einsum("kf,nf->kn", 2 * centres, features)
    return np.asarray((np.square(centres).sum(axis=1)[:, None] - shared).argmin(axis=0))


def _local_means(
    channels: NDArray[np.float32], tissue: NDArray[np.bool_], spacing: Spacing
) -> NDArray[np.float32]:
    """Return each contrast's mean over the tissue around each tissue voxel, (3, n)."""
    blur = [_BIAS_MM / (2 * size) for size in spacing]
    mass = ndimage.gaussian_filter(_halved(tissue).astype(np.float32), blur, truncate=3.0)
    sums = [ndimage.gaussian_filter(_halved(one * tissue), blur, truncate=3.0) for one in channels]
    means = [_doubled(total / np.maximum(mass, 1e-6), tissue.shape)[tissue] for total in sums]
    return np.maximum(np.stack(means), 1e-6)


def _name_deep_parts(labels: NDArray[np.uint8], brain: NDArray[np.bool_], spacing: Spacing) -> None:
    """Rename deep CSF to ventricle and deep grey matter to deep grey, in place."""
    depth = _depth(brain, spacing)
    csf = (labels == Tissue.CSF) & (depth > _VENTRICLE_REACH)
    # Opened: ventricles are wide, while the fissures that run as deep are sheets.
    pieces, _ = ndimage.label(ndimage.binary_opening(csf))
    deep_voxels = np.bincount(pieces[(pieces > 0) & (depth > _VENTRICLE_SEED)], minlength=1)
    bodies = np.isin(pieces, np.flatnonzero(deep_voxels > _MINOR_PIECE * deep_voxels.max()))
    ventricle = ndimage.binary_dilation(bodies, iterations=2) & csf
    labels[ventricle] = Tissue.VENTRICLE
    grey = labels == Tissue.GREY
    # Half ventricle and half white matter look like grey: a thin seam that no grey matter backs.
    seam = grey & ndimage.binary_dilation(ventricle, iterations=2)
    labels[seam & ~ndimage.binary_opening(grey)] = Tissue.WHITE
    # Nuclei are thick, while the cortex of deep folds is thin.
    nuclei = (labels == Tissue.GREY) & (depth > _DEEP_GREY)
    labels[ndimage.binary_opening(nuclei)] = Tissue.DEEP_GREY


def _depth(brain: NDArray[np.bool_], spacing: Spacing) -> NDArray[np.float32]:
    """Return each voxel's distance to the surface as a share of the deepest point's, (x, y, z)."""
    coarse = np.pad(_halved(brain), 1)
    distance = ndimage.distance_transform_edt(coarse, sampling=spacing)[1:-1, 1:-1, 1:-1]
    return _doubled((distance / max(distance.max(), 1e-6)).astype(np.float32), brain.shape)


# Every other voxel is exact enough for what varies slowly, and eight times as fast.
def _halved(volume: NDArray[Any]) -> NDArray[Any]:
    return volume[::2, ::2, ::2]


def _doubled(volume: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    x, y, z = shape
    return volume.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)[:x, :y, :z]
