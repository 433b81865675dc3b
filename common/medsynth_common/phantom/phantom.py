"""A phantom: one patient's labels and images, all from one seed."""

from dataclasses import dataclass

import numpy as np

from medsynth_common.phantom.anatomy import Labels
from medsynth_common.phantom.fields import Floats
from medsynth_common.phantom.imaging import image
from medsynth_common.phantom.scanner import Scanner
from medsynth_common.phantom.subject import Shape, draw_labels


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """A procedural patient.

    Attributes:
        labels: uint8 `Tissue` values, (*grid).
        image: float32 contrasts in the order of `CONTRASTS`, (4, *grid), in [0, 1.25].

    """

    labels: Labels
    image: Floats


def make_phantom(
    seed: int,
    shape: Shape,
    scanner: Scanner,
    *,
    tumours: int | None = None,
    randomise: float = 0.0,
) -> Phantom:
    """Make the patient of `seed` as seen by `scanner`: the same arguments give the same bytes.

    The anatomy depends on `seed`, `shape` and `tumours` alone, so that one patient can be sent to
    two scanners.

    Example:
        >>> phantom = make_phantom(7, (48, 48, 48), SITE_SCANNERS[0])
        >>> phantom.image.shape
        (4, 48, 48, 48)

    Raises:
        BadInput: see `draw_labels` and `image`.

    """
    anatomy, scan = np.random.SeedSequence(seed).spawn(2)
    labels = draw_labels(np.random.default_rng(anatomy), shape, tumours=tumours)
    taken = image(labels, scanner, np.random.default_rng(scan), randomise=randomise)
    return Phantom(labels=labels, image=taken)
