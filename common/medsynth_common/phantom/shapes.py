"""Signed distances to simple bodies (mm, negative inside), and how to join them.

The ellipsoid's distance is the usual first-order one (exact on the surface), which is all that
drawing tissue boundaries needs. Coordinates broadcast, so points may be (x, y, z) of any shape.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsynth_common.phantom.fields import Floats, Triple

Points = tuple[Floats, Floats, Floats]


def ellipsoid(points: Points, *, centre: Triple, radii: Triple) -> Floats:
    """Distance to an ellipsoid with axes along x, y, z."""
    squares: Floats = np.zeros((), np.float32)
    slopes: Floats = np.zeros((), np.float32)
    for coordinate, middle, radius in zip(points, centre, radii, strict=True):
        scaled: Floats = (coordinate - np.float32(middle)) * np.float32(1 / radius)
        steep: Floats = scaled * np.float32(1 / radius)
        squares = squares + scaled * scaled
        slopes = slopes + steep * steep
    level: Floats = np.sqrt(squares)
    # At the very centre both are 0; any negative depth does there.
    steepness: Floats = np.sqrt(slopes)
    distance: Floats = level * (level - 1)
    distance /= np.maximum(steepness, np.float32(1e-9))
    distance[level < 1e-2] = -min(radii)
    return distance


def tube(points: Points, *, nodes: Sequence[Triple], radii: Sequence[float]) -> Floats:
    """Distance to a tube through `nodes` whose radius runs linearly between its nodes' radii."""
    result: Floats | None = None
    ends = zip(nodes, nodes[1:], radii, radii[1:], strict=False)
    for start, end, first, last in ends:
        piece = _segment(points, np.asarray(start), np.asarray(end), first, last)
        result = piece if result is None else smooth_min(result, piece, 1.5)
    assert result is not None, "a tube needs two nodes"
    return result


def _segment(
    points: Points, start: NDArray[np.float64], end: NDArray[np.float64], first: float, last: float
) -> Floats:
    along = end - start
    offsets = [p - np.float32(s) for p, s in zip(points, start, strict=True)]
    weights = (along / (along @ along)).astype(np.float32)
    share = offsets[0] * weights[0] + offsets[1] * weights[1] + offsets[2] * weights[2]
    share = np.clip(share, 0, 1)
    squares: Floats = np.zeros((), np.float32)
    for offset, step in zip(offsets, along, strict=True):
        gap = offset - share * np.float32(step)
        squares = squares + gap * gap
    result: Floats = np.sqrt(squares) - (np.float32(first) + share * np.float32(last - first))
    return result


def smooth_min(a: Floats, b: Floats, width: float) -> Floats:
    """Union of two bodies whose seam is filleted over about `width` mm (quadratic smooth min)."""
    overlap = np.maximum(np.float32(width) - np.abs(a - b), 0)
    result: Floats = np.minimum(a, b) - overlap * overlap * np.float32(0.25 / width)
    return result


def smooth_max(a: Floats, b: Floats, width: float) -> Floats:
    """Intersection of two bodies, its edge rounded over about `width` mm."""
    return -smooth_min(-a, -b, width)
