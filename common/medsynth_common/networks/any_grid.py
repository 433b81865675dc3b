"""Networks that halve their input several times, on grids whose sides cannot be halved so often."""

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


def padded(network: Callable[[Tensor], Tensor], inputs: Tensor, multiple: int) -> Tensor:
    """Apply a network to (n, c, *grid), each side filled up with zeros to a multiple; cut the rest.

    Zeros, because that is what the network's own convolutions see beyond the edge, and what a
    skull-stripped volume holds there. A grid that fits is handed on as it is.

    Returns (n, c', *grid).
    """
    grid = inputs.shape[2:]
    missing = [-side % multiple for side in grid]
    if not any(missing):
        return network(inputs)
    ends = [end for more in reversed(missing) for end in (0, more)]  # torch: the last axis first
    output = network(F.pad(inputs, ends))
    inside = tuple(slice(side) for side in grid)
    return output[:, :, *inside]


class AnyGrid(nn.Module):
    """A network of `levels` resolutions, each half the one before, on a grid of any sides."""

    def __init__(self, network: nn.Module, *, levels: int) -> None:
        super().__init__()
        self.network = network
        self._multiple = 2 ** (levels - 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the network: (n, c, *grid) to (n, c', *grid)."""
        network = cast(Callable[[Tensor], Tensor], self.network)
        return padded(network, inputs, self._multiple)
