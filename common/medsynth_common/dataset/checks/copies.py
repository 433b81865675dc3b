"""The same patient twice: equal images under two names, or images that are nearly equal.

A patient who is counted as two spends twice what the privacy statement says.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsynth_common.dataset.files import PatientFiles
from medsynth_common.dataset.finding import About, Finding
from medsynth_common.dataset.frame import fit_frame
from medsynth_common.labels import CONTRASTS

#: Small images of so many voxels a side are compared, without what varies over more than this.
_SIDE: Final = 32
_BLUR: Final = 1.5
#: Measured on T1 of 30 healthy people: 0.63 at most between two of them (435 pairs), 0.77 at least
#: between one and a copy with noise, a bias field, another gamma, half a voxel's shift or voxels
#: 1.4 times as large.
_NEARLY: Final = 0.75

Image = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fingerprint:
    """What a patient is known again by.

    Attributes:
        files: whose it is.
        hashes: of each contrast's voxels inside the brain's box: equal images, equal hashes.
        role: the contrast that `pattern` is of.
        pattern: a small image without its slow changes, (n,) of length 1; nearly equal images
            have an inner product near 1.

    """

    files: PatientFiles
    hashes: Mapping[str, bytes]
    role: str
    pattern: Image


def fingerprint(
    files: PatientFiles, images: Mapping[str, Image], affine: NDArray[np.float64]
) -> Fingerprint:
    """Take the fingerprint of a patient's contrasts, cut to the brain's box (x, y, z)."""
    role = next(str(contrast) for contrast in CONTRASTS if contrast in images)
    return Fingerprint(
        files=files,
        hashes={
            name: hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()
            for name, image in images.items()
        },
        role=role,
        pattern=small_pattern(images[role], affine),
    )


def small_pattern(image: Image, affine: NDArray[np.float64]) -> Image:
    """Return folds and ventricles of a brain (x, y, z) as a vector (n,) of length 1.

    Brightness, contrast, a bias field and the head's place are left out: a patient exported anew
    keeps the pattern, and another patient on the same atlas has another.
    """
    image = np.nan_to_num(image, posinf=0, neginf=0).clip(min=0)
    x, y, z = image.shape
    frame = fit_frame((x, y, z), affine, (_SIDE, _SIDE, _SIDE))
    inside = frame.resample((image > 0).astype(np.float32)) > 0.5
    small = np.where(inside, frame.resample(image), 0)
    weight = ndimage.gaussian_filter(inside.astype(np.float32), _BLUR)
    slow = ndimage.gaussian_filter(small, _BLUR) / np.maximum(weight, 1e-3)
    fast = np.where(inside, small - slow, 0)
    if inside.any():  # vessels and rims would outweigh the rest
        fast = np.clip(fast, *np.percentile(fast[inside], [1, 99])) * inside
        fast = fast - fast[inside].mean() * inside
    return (fast / max(float(np.linalg.norm(fast)), 1e-6)).ravel().astype(np.float32)


def copies(fingerprints: Sequence[Fingerprint]) -> Iterator[Finding]:
    """Find images that are there twice, in one patient or in two."""
    holders: dict[bytes, list[tuple[int, str]]] = defaultdict(list)
    for index, one in enumerate(fingerprints):
        for role, digest in one.hashes.items():
            holders[digest].append((index, role))
    shared: dict[tuple[int, int], list[tuple[str, str]]] = defaultdict(list)
    for held in holders.values():
        # The first who holds an image stands for it: of ten copies, nine are told.
        (first, role), *others = held
        for index, other in others:
            shared[first, index].append((role, other))
    for (first, second), roles in sorted(shared.items()):
        yield _equal(fingerprints[first], fingerprints[second], roles)
    known = {pair for pair in shared if pair[0] != pair[1]}
    nearest: dict[int, tuple[float, int]] = {}
    for first, second, likeness in _alike(fingerprints):
        if (first, second) not in known:
            nearest[second] = max(nearest.get(second, (0.0, 0)), (likeness, first))
    for second, (likeness, first) in sorted(nearest.items()):
        yield _nearly(fingerprints[first], fingerprints[second], likeness)


def _equal(first: Fingerprint, second: Fingerprint, roles: list[tuple[str, str]]) -> Finding:
    about = About(files=second.files)
    if first is second:
        value = " and ".join(sorted({role for pair in roles for role in pair}))
        mend = "one was exported under two names"
        return about.error("same-image", "", f"one image as {value}", "an image for each", mend)
    if {other for _, other in roles} == set(second.hashes):
        value = f"the images of {first.files}"
        mend = "leave one out: a patient is counted once, whatever the names"
        return about.error("same-patient", "", value, "a patient of its own", mend)
    mine, theirs = (", ".join(sorted({pair[i] for pair in roles})) for i in (1, 0))
    value = f"the image that {first.files} has as {theirs}"
    mend = "a file in the wrong folder? copy the right one"
    return about.error("same-image", mine, value, "an image of its own", mend)


def _nearly(first: Fingerprint, second: Fingerprint, likeness: float) -> Finding:
    value = f"a {second.role} that resembles that of {first.files} ({likeness:.2f} of 1)"
    mend = "a copy, or another session? then make them one patient: <patient>/<session>/"
    wanted = f"another patient's, below {_NEARLY:g}"
    return About(files=second.files).warning("near-copy", "", value, wanted, mend)


def _alike(fingerprints: Sequence[Fingerprint]) -> Iterator[tuple[int, int, float]]:
    """Return the pairs of patients whose patterns are nearly equal, by index."""
    for role in sorted({one.role for one in fingerprints}):
        members = [index for index, one in enumerate(fingerprints) if one.role == role]
        patterns = np.stack([fingerprints[index].pattern for index in members])
        for place, index in enumerate(members):
            likeness = patterns[place + 1 :] @ patterns[place]
            for later in np.flatnonzero(likeness > _NEARLY):
                yield index, members[place + 1 + later], float(likeness[later])
