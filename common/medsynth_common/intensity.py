"""One scale of intensity for every image, phantom or patient, before a network sees it."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from medsynth_common.errors import BadData, Problem
from medsynth_common.labels import CONTRASTS

#: Intensities above this multiple of the brain's 99th percentile (vessels, spikes) are cut off.
CEILING: Final = 1.25


def normalise(image: NDArray[np.floating], brain_mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Scale each contrast so that the 99th percentile inside the brain is 1, within [0, 1.25].

    Args:
        image: (contrast, *grid), any unit, finite.
        brain_mask: (*grid), true inside the brain.

    Returns:
        (contrast, *grid) float32, 0 outside the brain.

    Raises:
        BadData: the mask is empty, or a contrast holds NaN or no signal inside it; all are told.

    """
    if not brain_mask.any():
        raise BadData(Problem(name="brain mask", value="no voxel", wanted="a brain"))
    tops = np.percentile(image[:, brain_mask], 99, axis=1)  # (contrast,)
    problems = [
        Problem(
            name=f"{name}: 99th percentile inside the brain",
            value=f"{top:g}",
            wanted="a finite, positive intensity",
            mend="look for NaN voxels or an empty image",
        )
        for name, top in zip(CONTRASTS, tops, strict=False)
        if not (np.isfinite(top) and top > 0)
    ]
    if problems:
        raise BadData(problems)
    scale = (1 / tops).reshape(-1, *(1,) * brain_mask.ndim)
    return np.where(brain_mask, np.clip(image * scale, 0, CEILING), 0).astype(np.float32)
