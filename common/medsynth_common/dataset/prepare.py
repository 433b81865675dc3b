"""From a patient's files to what networks train on: one grid, one scale, one label map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medsynth_common.dataset.brain import Box, bounding_box, brain_mask
from medsynth_common.dataset.clustering import tissue_clusters
from medsynth_common.dataset.config import DataConfig
from medsynth_common.dataset.files import ANATOMY_MAP, TUMOUR_MAP, PatientFiles
from medsynth_common.dataset.frame import Frame, Shape, fit_frame
from medsynth_common.errors import BadData, Problem
from medsynth_common.intensity import normalise
from medsynth_common.labels import CONTRASTS, Tissue

#: Which way of preparing this is. Count it up when the same files come out otherwise than before:
#: what was cached is then prepared anew.
PREPARATION: Final = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Patient:
    """One patient, ready for training.

    Attributes:
        image: the four contrasts (4, x, y, z), float32 in [0, 1.25], 0 outside the brain.
        labels: `Tissue` values (x, y, z), uint8.
        affine: voxel indices of this grid to the scanner's millimetres, (4, 4).

    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scan:
    """A patient's volumes on their own grid, cut to the brain's box."""

    image: NDArray[np.float32]  # (4, x, y, z), none below 0, 0 outside the brain
    brain: NDArray[np.bool_]  # (x, y, z)
    tumour: NDArray[np.uint8]  # (x, y, z), Tissue
    anatomy: NDArray[np.uint8] | None  # (x, y, z), Tissue
    affine: NDArray[np.float64]
    spacing: tuple[float, float, float]


def prepare(files: PatientFiles, shape: Shape, config: DataConfig) -> Patient:
    """Read one patient and fit the brain, centred, into a grid of `shape`.

    Expects files that `check_patients` has found good.

    Raises:
        BadData: a file is missing or damaged, the grids differ, there is no brain, or a contrast
            holds NaN or nothing. None of it depends on `shape`.

    """
    scan = _read(files, config)
    frame = fit_frame(scan.brain.shape, scan.affine, shape)
    labels = frame.resample_labels(_label(scan, config))
    image = _scaled(_fit_image(scan, frame), labels != Tissue.BACKGROUND)
    return Patient(image=image, labels=labels, affine=frame.affine)


def _scaled(image: NDArray[np.float32], brain: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give `normalise`d contrasts (4, x, y, z); one of which this grid shows nothing is 0.

    Whether that is so depends on the grid, which a coordinator chooses: of a thin slab a coarse
    one shows nothing. An error would tell of that patient before anything is charged.
    """
    scaled = np.zeros_like(image)
    if brain.any():
        shown = np.percentile(image[:, brain], 99, axis=1) > 0
        scaled[shown] = normalise(image[shown], brain)
    return scaled


def to_tissue(data: NDArray[np.float32], values: Mapping[int, Tissue]) -> NDArray[np.uint8]:
    """Translate a label map's values (x, y, z) to `Tissue`; a value not in `values` becomes 0."""
    result = np.zeros(data.shape, dtype=np.uint8)
    for value, tissue in values.items():
        result[data == value] = tissue
    return result


def _read(files: PatientFiles, config: DataConfig) -> _Scan:
    volumes = files.read()
    if len({volume.data.shape for volume in volumes.values()}) > 1:
        raise BadData(Problem(name=str(files), value="grids that differ", wanted="one grid"))
    contrasts = [volumes[contrast].data for contrast in CONTRASTS]
    brain = brain_mask(contrasts)
    if not brain.any():
        raise BadData(Problem(name=str(files), value="no voxel above 0", wanted="a brain"))
    box = bounding_box(brain)
    image = _inside(contrasts, brain, box)
    _require_signal(image, files)
    anatomy = volumes.get(ANATOMY_MAP)
    first = volumes[CONTRASTS[0]]
    affine = first.affine.copy()
    affine[:3, 3] = (first.affine @ [*(axis.start for axis in box), 1.0])[:3]
    return _Scan(
        image=image,
        brain=brain[box],
        tumour=to_tissue(volumes[TUMOUR_MAP].data[box], files.tumour_values),
        anatomy=None if anatomy is None else to_tissue(anatomy.data[box], config.anatomy_values),
        affine=affine,
        spacing=first.spacing,
    )


def _inside(
    contrasts: Sequence[NDArray[np.float32]], brain: NDArray[np.bool_], box: Box
) -> NDArray[np.float32]:
    """Cut the contrasts to the box, 0 outside the brain and none below 0: (contrast, x, y, z)."""
    image = np.empty((len(contrasts), *brain[box].shape), dtype=np.float32)
    for part, contrast in zip(image, contrasts, strict=True):  # in place: these are large
        np.maximum(contrast[box], 0, out=part)
        part *= brain[box]
    return image


def _require_signal(image: NDArray[np.float32], files: PatientFiles) -> None:
    problems = [
        Problem(
            name=f"{files}: {contrast}",
            value=f"a largest value of {top:g} inside the brain",
            wanted="a finite, positive intensity",
            mend="look for NaN voxels or an empty image",
        )
        for contrast, top in zip(CONTRASTS, image.max(axis=(1, 2, 3)), strict=True)
        if not (np.isfinite(top) and top > 0)
    ]
    if problems:
        raise BadData(problems)


def _label(scan: _Scan, config: DataConfig) -> NDArray[np.uint8]:
    """Return the anatomy with the tumour laid over it, none of it outside the brain, (x, y, z)."""
    if scan.anatomy is None:
        if config.tissue_weights is None:
            return tissue_clusters(scan.image, scan.brain, scan.tumour, spacing=scan.spacing)
        # Late: it stands on this package's frames.
        from medsynth_common.anatomy.tissues import TissueNetwork

        network = TissueNetwork.read(config.tissue_weights)
        return network.label(scan.image, scan.brain, scan.tumour, affine=scan.affine)
    # Anatomy maps often leave out the CSF around the brain; what they do not name, it is.
    anatomy = np.where(scan.anatomy == Tissue.BACKGROUND, np.uint8(Tissue.CSF), scan.anatomy)
    labels = np.where(scan.tumour > 0, scan.tumour, anatomy)
    return np.where(scan.brain, labels, np.uint8(Tissue.BACKGROUND))


def _fit_image(scan: _Scan, frame: Frame) -> NDArray[np.float32]:
    """Resample the contrasts; the empty outside does not darken the cortex beside it."""
    share = np.maximum(frame.resample(scan.brain.astype(np.float32)), 1e-6)
    return np.stack([frame.resample(one) / share for one in scan.image])
