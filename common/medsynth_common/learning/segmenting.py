"""From an image to the lesions that a segmenter finds in it."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from medsynth_common.learning.volumes import over_volumes

#: A find of fewer voxels is dropped. Public training shows no lesion whose solid part has a radius
#: below 2.2 voxels, 45 of them (`phantom.tumour`); this is less than half of it.
SPECK: Final = 20
#: So is one whose mean probability is this much below that of the surest find of its volume.
BEHIND: Final = 0.1
_NEIGHBOURS: Final = np.ones((3, 3, 3), dtype=bool)
#: Axes of (n, c, x, y, z), and those that a window and the three after it are mirrored along. Each
#: is seen the opposite way too, so that four windows are seen all eight ways.
_AXES: Final = (2, 3, 4)
_MIRRORED: Final[Sequence[tuple[int, ...]]] = ((), (2,), (3,), (4,))
_OPPOSITE: Final = tuple(tuple(a for a in _AXES if a not in along) for along in _MIRRORED)


@torch.no_grad()
def segment(
    segmenter: nn.Module, image: Tensor, *, crop: tuple[int, ...], spatial_dims: int
) -> Tensor:
    """Segment one image (4, x, y, z) into channel numbers (x, y, z), without doubtful finds.

    The network sees windows of the size it was trained on: its instance normalisation has other
    statistics on a whole volume. Windows overlap by half, and each is seen mirrored in two ways
    (test-time mirroring, Isensee et al. 2021, spread over neighbours: a quarter of its work).
    """
    from monai.inferers import sliding_window_inference  # late: a node counts scores, no more

    def network(windows: Tensor) -> Tensor:
        return over_volumes(segmenter, windows, spatial_dims)

    probabilities: Tensor = sliding_window_inference(
        image.unsqueeze(0),
        roi_size=crop,
        sw_batch_size=len(_MIRRORED),
        predictor=lambda windows: _seen_twice(network, windows),
        overlap=0.5,
        mode="gaussian",
    )
    return sure_finds(probabilities[0])


def _seen_twice(network: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    """Mean probabilities (n, channel, x, y, z) of up to four windows, each mirrored in two ways."""
    views = [_mirrored(network, windows, ways) for ways in (_MIRRORED, _OPPOSITE)]
    return torch.stack(views).mean(0)


def _mirrored(
    network: Callable[[Tensor], Tensor], windows: Tensor, ways: Sequence[tuple[int, ...]]
) -> Tensor:
    """Probabilities of windows as the network finds them in their mirror images."""
    ways = ways[: len(windows)]
    images = [one.flip(along) for one, along in zip(windows.unsqueeze(1), ways, strict=True)]
    found = network(torch.cat(images)).softmax(1)
    return torch.cat([one.flip(along) for one, along in zip(found.unsqueeze(1), ways, strict=True)])


def sure_finds(probabilities: Tensor) -> Tensor:
    """Decide each voxel, and turn specks and finds that are doubtful as a whole into healthy.

    A find is a component of 26 neighbours, and is as sure as the mean probability of tumour over
    its voxels, as FracNet scores candidates (Jin et al. 2020). It is compared with the surest of
    its volume: on a scanner that it does not know, a segmenter is less sure of what is there, too.

    Args:
        probabilities: (channel, x, y, z), summing to 1; channel 0 is healthy.

    Returns:
        channel numbers (x, y, z).

    """
    found = probabilities.argmax(0)
    pieces, count = ndimage.label(found.cpu().numpy() > 0, structure=_NEIGHBOURS)
    tumour = 1 - probabilities[0].double().cpu().numpy()
    sure = np.asarray(ndimage.mean(tumour, pieces, np.arange(1, count + 1)))
    large = np.bincount(pieces.ravel(), minlength=count + 1)[1:] >= SPECK
    kept = large & (sure >= sure.max(where=large, initial=0) - BEHIND)
    return found * torch.from_numpy(np.concatenate([[True], kept])[pieces]).to(found.device)
