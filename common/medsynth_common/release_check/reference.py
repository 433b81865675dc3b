"""The public reference of the attacks: phantoms of random scanners, which belong to nobody."""

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch

from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom import make_phantom, random_scanner

_COUNT: Final = 48
#: Signatures are coarser still, so a finer grid would only cost time.
_LARGEST_SIDE: Final = 32


def public_reference(grid: tuple[int, ...], *, seed: int) -> Iterator[Volume]:
    """Draw 48 phantoms on `grid`, or one of at most 32 voxels a side."""
    side = tuple(min(length, _LARGEST_SIDE) for length in grid)
    for index in range(_COUNT):
        draw = np.random.default_rng([seed, 0xC4EC, index])
        scanner = random_scanner(draw)
        phantom = make_phantom(int(draw.integers(2**62)), (side[0], side[1], side[2]), scanner)
        yield Volume(image=torch.from_numpy(phantom.image), labels=torch.from_numpy(phantom.labels))
