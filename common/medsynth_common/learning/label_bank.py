"""A bank of public label maps: procedural anatomy and tumours that belong to nobody."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from medsynth_common.phantom import draw_labels


@lru_cache(maxsize=4)
def label_bank(seed: int, count: int, grid: tuple[int, ...]) -> Tensor:
    """Draw `count` label maps (count, *grid), uint8; the same seed draws the same maps."""
    shape = (grid[0], grid[1], grid[2])
    maps = [draw_labels(np.random.default_rng([seed, index]), shape) for index in range(count)]
    return torch.from_numpy(np.stack(maps))
