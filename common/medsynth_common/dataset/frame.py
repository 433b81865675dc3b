"""From a patient's own grid to the grid that networks see, and labels safely with it."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medsynth_common.labels import ANATOMY, TUMOUR, Tissue

#: Background voxels kept on every side of the brain, so that its edge is seen as an edge.
_MARGIN: Final = 1

#: About how large a brain is along x, y and z, in millimetres.
_BRAIN_MM: Final = (145.0, 180.0, 140.0)

Shape = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """A linear resampling of one grid to another, one weight matrix per axis.

    Attributes:
        weights: for x, y and z the share of each old voxel in each new one, (new, old).
        affine: voxel indices of the new grid to millimetres, (4, 4).

    """

    weights: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
    affine: NDArray[np.float64]

    def resample(self, volume: NDArray[np.float32]) -> NDArray[np.float32]:
        """Resample a volume (x, y, z); beyond the old grid it counts as 0."""
        for weights in self.weights:  # each turn takes the first axis and puts it last, resampled
            volume = np.tensordot(volume, weights, axes=(0, 1))
        return volume

    def resample_labels(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resample a map of `Tissue` values (x, y, z) class by class, each keeping its place.

        What is brain and which anatomy it is, the larger share decides. Lesions are small and thin
        against coarse voxels, and would lose every such vote: each tumour class keeps its volume
        instead, in the voxels where its share is highest, the rarest class choosing first.
        """
        shares: dict[Tissue, NDArray[np.float32]] = {
            tissue: self.resample((labels == tissue).astype(np.float32))
            for tissue in Tissue
            if tissue is not Tissue.BACKGROUND and (labels == tissue).any()
        }
        if not shares:
            return np.zeros([len(axis) for axis in self.weights], dtype=np.uint8)
        brain = np.sum(list(shares.values()), axis=0) >= 0.5
        result = _largest_share(shares, brain)
        _lay_tumour(result, shares, brain)
        return result


def fit_frame(grid: Shape, affine: NDArray[np.float64], shape: Shape) -> Frame:
    """Return the frame that fits `grid` centred into `shape`, with voxels of the `voxel_form`.

    Voxels of the new grid are as small as they can be with all of the old grid inside. Where they
    are larger than the old ones, each averages what it covers (a triangle as wide as two voxels),
    so that shrinking does not alias; where they are smaller this is plain linear interpolation.

    Args:
        grid: the old grid's size (x, y, z).
        affine: the old grid's voxel indices to millimetres, (4, 4).
        shape: the new grid's size (x, y, z), at least 4 each.

    """
    old_mm = np.linalg.norm(affine[:3, :3], axis=0)
    room = np.asarray(shape) - 2 * _MARGIN
    form = voxel_form(shape)
    # Old voxels per new voxel.
    step = form * np.max(np.asarray(grid) * old_mm / (room * form)) / old_mm
    first = (np.asarray(grid) - 1) / 2 - step * (np.asarray(shape) - 1) / 2
    return _frame(grid, affine, shape, step, first)


def frames_between(
    grid: Shape, affine: NDArray[np.float64], *, voxel_mm: float, multiple: int
) -> tuple[Frame, Frame]:
    """Return the frame that puts `grid` on cubic voxels of `voxel_mm`, and the one back.

    The new grid has `grid` about in its middle; its sides are the smallest multiples of `multiple`.
    The two share an edge of a voxel, so that voxels that were of this size stay what they were:
    half a voxel's shift would blur the thin fluid between gyri away.
    """
    old_mm = np.linalg.norm(affine[:3, :3], axis=0)
    step = voxel_mm / old_mm
    filled = np.ceil(np.asarray(grid) / step - 1e-3)  # voxels that hold something
    x, y, z = (int(side) for side in np.ceil(filled / multiple) * multiple)
    beside = (np.array([x, y, z]) - filled) // 2  # empty voxels before them
    first = (step - 1) / 2 - step * beside
    there = _frame(grid, affine, (x, y, z), step, first)
    a, b, c = (
        _weights(coarse, fine, float(start), float(1 / width))
        for coarse, fine, start, width in zip((x, y, z), grid, -first / step, step, strict=True)
    )
    return there, Frame(weights=(a, b, c), affine=affine)


def _frame(
    grid: Shape,
    affine: NDArray[np.float64],
    shape: Shape,
    step: NDArray[np.float64],
    first: NDArray[np.float64],
) -> Frame:
    """Return the frame whose first voxel is at `first`, in old voxels, and each `step` further."""
    new_to_old = np.eye(4)
    new_to_old[:3, :3] = np.diag(step)
    new_to_old[:3, 3] = first
    x, y, z = (
        _weights(old, new, float(start), float(width))
        for old, new, start, width in zip(grid, shape, first, step, strict=True)
    )
    return Frame(weights=(x, y, z), affine=affine @ new_to_old)


def voxel_form(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Give the sides of a voxel of the grid `shape` against the x side, (3,).

    Voxels are cubes, unless the grid is too flat for a head of them: then its slices are as thick
    as a head asks for. It depends on the grid alone, so that all patients on a grid have the same.
    """
    x, y, z = (side / (edge - 2 * _MARGIN) for side, edge in zip(_BRAIN_MM, shape, strict=True))
    return np.array([1.0, 1.0, max(1.0, z / max(x, y))])


def _weights(old: int, new: int, start: float, step: float) -> NDArray[np.float32]:
    centres = start + step * np.arange(new)  # in old voxels
    reach = max(step, 1.0)
    beyond = int(np.ceil(2 * reach + max(-start, 0.0))) + 1  # so that every row is summed whole
    columns = np.arange(-beyond, old + beyond)
    triangle = np.clip(1 - np.abs(columns - centres[:, None]) / reach, 0.0, None)
    triangle /= triangle.sum(axis=1, keepdims=True)
    return np.ascontiguousarray(triangle[:, beyond : beyond + old], dtype=np.float32)


def _largest_share(
    shares: dict[Tissue, NDArray[np.float32]], brain: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Give each brain voxel its anatomy; background where all it holds is tumour."""
    result = np.zeros(brain.shape, dtype=np.uint8)
    best = np.zeros(brain.shape, dtype=np.float32)
    for tissue in ANATOMY:
        if tissue in shares:
            more = brain & (shares[tissue] > best)
            result[more] = tissue
            best[more] = shares[tissue][more]
    return result


def _lay_tumour(
    result: NDArray[np.uint8],
    shares: dict[Tissue, NDArray[np.float32]],
    brain: NDArray[np.bool_],
) -> None:
    rarest_first = sorted(
        (tissue for tissue in TUMOUR if tissue in shares),
        key=lambda tissue: float(shares[tissue].sum()),
    )
    if not rarest_first:
        return
    whole = np.sum([shares[tissue] for tissue in rarest_first], axis=0)
    free = _most_shared(whole, brain) | (brain & (result == Tissue.BACKGROUND))
    for tissue in rarest_first[:-1]:
        mine = _most_shared(shares[tissue], free)
        result[mine] = tissue
        free &= ~mine
    result[free] = rarest_first[-1]  # all that is left, so that the lesion has no holes


def _most_shared(share: NDArray[np.float32], within: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the voxels of `within` with the highest share, as many as the share's volume fills."""
    candidates = np.flatnonzero(within & (share > 0))
    count = min(max(round(float(share.sum())), 1), len(candidates))
    order = np.argsort(-share.ravel()[candidates], kind="stable")
    mask = np.zeros(share.size, dtype=bool)
    mask[candidates[order[:count]]] = True
    return mask.reshape(share.shape)
