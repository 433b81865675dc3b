"""Public heads to learn from: drawn ones, and those of folders that say they are public."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medsynth_common.anatomy.network import depth_of
from medsynth_common.labels import Tissue
from medsynth_common.phantom import draw_labels
from medsynth_server.workers import worker_pool


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """A public head on voxels of `VOXEL_MM`.

    Attributes:
        labels: `Tissue` values (x, y, z), tumours among them.
        image: its own contrasts (4, x, y, z), those it lacks zero; None for a map alone.

    """

    labels: NDArray[np.uint8]
    image: NDArray[np.float32] | None = None

    @cached_property
    def depth(self) -> NDArray[np.float32]:
        """How deep each voxel lies, (x, y, z), as the network is told it."""
        return depth_of(self.labels != Tissue.BACKGROUND)


def draw_heads(*, seed: int, count: int, workers: int) -> Iterator[Head]:
    """Draw `count` phantoms, every third without a tumour; the same seed draws the same ones."""
    jobs = [(seed, number) for number in range(count)]
    if workers == 1:
        yield from map(draw_head, jobs)
        return
    with worker_pool(workers) as hands:
        yield from hands.map(draw_head, jobs)


def draw_head(job: tuple[int, int]) -> Head:
    """Draw phantom `number` of `seed`. A brain fills its grid, so the grid's size is the head's."""
    seed, number = job
    rng = np.random.default_rng([seed, number])
    x, y, z = (int(rng.integers(low, high)) for low, high in ((70, 81), (84, 99), (70, 81)))
    return Head(labels=draw_labels(rng, (x, y, z), tumours=None if number % 3 else 0))
