"""How much the volumes of a set are alike: MS-SSIM of random pairs (Wang et al. 2003)."""

from collections.abc import Sequence
from typing import Final

import torch

from medsynth_common.learning.volumes import Volume

#: Weights of the five scales that the measure was published with; of small volumes, the first few.
_WEIGHTS: Final = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_KERNEL: Final = 5
_BRIGHTEST: Final = 1.25  # of a prepared image


@torch.no_grad()
def likeness(one: Volume, other: Volume) -> float:
    """MS-SSIM of two volumes, the mean of their contrasts: 1 for the same image twice."""
    from monai.metrics import MultiScaleSSIMMetric  # late, as in networks/build.py

    weights = _WEIGHTS[: _scales(one.labels.shape)]
    measure = MultiScaleSSIMMetric(
        spatial_dims=3,
        data_range=_BRIGHTEST,
        kernel_size=_KERNEL,
        weights=[weight / sum(weights) for weight in weights],
    )
    return float(measure(one.image.float()[:, None], other.image.float()[:, None]).mean())


def _scales(grid: Sequence[int]) -> int:
    """How many halvings the kernel still fits into."""
    least = min(grid)
    return next(
        n for n in range(len(_WEIGHTS), 0, -1) if (_KERNEL - 1) * max(1, n - 1) ** 2 < least
    )
