"""Public phantoms of randomised scanners: all that pre-training ever sees."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom import Scanner, make_phantom, random_scanner
from medsynth_common.style import CODE_LENGTH
from medsynth_server.workers import worker_pool

#: How far tissue properties are randomised beyond what nature varies.
_RANDOMISE = 0.3


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Phantoms of one randomised scanner, and the scanner's code."""

    volumes: Sequence[Volume]
    code: Tensor


def draw_pools(
    *, seed: int, scanners: int, phantoms: int, grid: tuple[int, ...], workers: int
) -> list[Pool]:
    """Draw `scanners` pools of `phantoms` each; the same seed draws the same pools."""
    shape = (grid[0], grid[1], grid[2])
    machines = [random_scanner(np.random.default_rng([seed, index])) for index in range(scanners)]
    jobs = [
        (int(np.random.default_rng([seed, index, number]).integers(2**62)), shape, machine)
        for index, machine in enumerate(machines)
        for number in range(phantoms)
    ]
    with worker_pool(workers) as hands:
        volumes = list(hands.map(_draw, jobs, chunksize=4))
    return [
        Pool(volumes=volumes[index * phantoms : (index + 1) * phantoms], code=scanner_code(machine))
        for index, machine in enumerate(machines)
    ]


def scanner_code(scanner: Scanner) -> Tensor:
    """What is not a tissue's brightness, on comparable scales: (CODE_LENGTH,).

    The middle of `random_scanner`'s ranges is about 0, their ends about -2 and 2.
    """
    blur = float(np.mean(scanner.resolution))
    code = torch.tensor(
        [
            math.log(max(scanner.noise, 1e-3) / 0.025) / 0.9,
            (blur - 1.1) / 0.45,
            (scanner.bias - 0.15) / 0.085,
            (scanner.texture - 0.045) / 0.026,
        ],
        dtype=torch.float32,
    )
    assert code.shape == (CODE_LENGTH,)
    return code.clamp(-3, 3)


def _draw(job: tuple[int, tuple[int, int, int], Scanner]) -> Volume:
    seed, shape, scanner = job
    phantom = make_phantom(seed, shape, scanner, randomise=_RANDOMISE)
    return Volume(image=torch.from_numpy(phantom.image), labels=torch.from_numpy(phantom.labels))
