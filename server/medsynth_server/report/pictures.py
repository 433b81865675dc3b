"""Slices of the sample volumes as small PNG tiles, real and synthetic side by side.

Pictures are shown as radiologists hang them: the patient's right on the left, anterior or superior
up. All rows of one picture share one grey scale per contrast, taken from the real volume, so that
a synthetic image that is too bright or too dark looks it.
"""

import io
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.image import imsave
from numpy.typing import NDArray

from medsynth_common.labels import CONTRASTS, TISSUES, TUMOUR, Tissue
from medsynth_server.report.folder import Samples, Volumes
from medsynth_server.report.palette import CONTRAST_WORD, TISSUE_COLOUR, TISSUE_WORD

PATIENTS_SHOWN: Final = 6
#: A plane's name and the volume axis it is a slice of; axes are (x, y, z), RAS+.
PLANES: Final = {"axial": 2, "coronal": 1, "sagittal": 0}


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One slice as an inline picture, and what it shows."""

    source: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Strip:
    """One row of four contrasts."""

    name: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, kw_only=True)
class Plate:
    """One patient in one plane: the label map, and the rows of contrasts beside it."""

    title: str
    label: Tile
    strips: tuple[Strip, ...]


def plates(samples: Samples) -> tuple[Plate, ...]:
    """Show the first patient in three planes and the others in one."""
    shown = range(min(len(samples.sites), PATIENTS_SHOWN))
    return tuple(
        _plate(samples, patient, plane)
        for patient in shown
        for plane in (PLANES if patient == 0 else ("axial",))
    )


def tissues_shown(samples: Samples) -> tuple[Tissue, ...]:
    """The classes that a legend of the shown patients needs."""
    present = np.unique(samples.real_labels[:PATIENTS_SHOWN])
    return tuple(tissue for tissue in TISSUES if tissue in present and tissue)


def _plate(samples: Samples, patient: int, plane: str) -> Plate:
    axis = PLANES[plane]
    labels = samples.real_labels[patient]
    at = telling_slice(labels, axis)
    where = f"patient {patient + 1} of {samples.sites[patient]}, {plane}"
    windows = [_window(image, labels) for image in samples.real_image[patient]]
    strips = [
        Strip(
            name=name,
            tiles=tuple(
                Tile(
                    source=_png(_hang(image, axis, at), window),
                    alt=f"{name} {CONTRAST_WORD[contrast]}, {where}",
                )
                for contrast, image, window in zip(CONTRASTS, volumes, windows, strict=True)
            ),
        )
        for name, volumes in _rows(samples, patient)
    ]
    return Plate(
        title=f"Patient {patient + 1} · {samples.sites[patient]} · {plane}",
        label=Tile(source=_label_png(_hang(labels, axis, at)), alt=f"Label map, {where}"),
        strips=tuple(strips),
    )


def _rows(samples: Samples, patient: int) -> Iterator[tuple[str, Volumes]]:
    yield samples.source.capitalize(), samples.real_image[patient]
    if samples.public_image is not None:
        yield "Before federated training", samples.public_image[patient]
    yield "Synthetic", samples.synthetic_image[patient]


def telling_slice(labels: NDArray[np.int64], axis: int) -> int:
    """Choose the slice with most tumour; without tumour, the one with most of the head."""
    others = tuple(other for other in range(3) if other != axis)
    tumour = np.isin(labels, TUMOUR).sum(axis=others)
    head = (labels != Tissue.BACKGROUND).sum(axis=others)
    return int(np.argmax(tumour if tumour.any() else head))


def _hang(volume: NDArray[Any], axis: int, at: int) -> NDArray[Any]:
    """Cut a slice and turn it as radiologists look at it."""
    hung: NDArray[Any] = np.take(volume, at, axis=axis).T[::-1, ::-1]
    return hung


def _window(image: Volumes, labels: NDArray[np.int64]) -> tuple[float, float]:
    inside = image[labels != Tissue.BACKGROUND]
    inside = inside if inside.size else image
    low, high = np.percentile(inside[np.isfinite(inside)], (0.5, 99.5))
    # Skull-stripped data is 0 outside the brain; the scale must not start above that.
    low = min(float(low), 0.0)
    return low, max(float(high), low + 1e-6)


def _png(pixels: NDArray[Any], window: tuple[float, float]) -> str:
    low, high = window
    grey = np.clip((np.nan_to_num(pixels) - low) / (high - low), 0.0, 1.0)
    return _encode((grey * 255).astype(np.uint8)[..., None].repeat(3, axis=-1))


def _label_png(pixels: NDArray[np.int64]) -> str:
    colours = np.array([to_rgb(TISSUE_COLOUR[tissue]) for tissue in TISSUES])
    return _encode((colours[pixels] * 255).astype(np.uint8))


def _encode(rgb: NDArray[np.uint8]) -> str:
    stream = io.BytesIO()
    imsave(stream, np.ascontiguousarray(rgb), format="png", metadata={"Software": ""})
    return "data:image/png;base64," + b64encode(stream.getvalue()).decode()


def legend(tissues: tuple[Tissue, ...]) -> list[tuple[str, str]]:
    """Give each class its word and its colour."""
    return [(TISSUE_WORD[tissue], TISSUE_COLOUR[tissue]) for tissue in tissues]
