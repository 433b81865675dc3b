"""What voxels tell, one patient at a time: broken, empty, clipped or unstripped images."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from medsynth_common.dataset.brain import Box, bounding_box, brain_mask
from medsynth_common.dataset.checks.copies import Fingerprint, fingerprint
from medsynth_common.dataset.checks.headers import unreadable
from medsynth_common.dataset.checks.maps import check_maps
from medsynth_common.dataset.config import DataConfig
from medsynth_common.dataset.files import TUMOUR_MAP, PatientFiles
from medsynth_common.dataset.finding import About, Finding
from medsynth_common.errors import BadData
from medsynth_common.labels import CONTRASTS, TUMOUR
from medsynth_common.volumes import Volume, read_channels

#: Of the voxels that are not 0, the share below 0 that interpolation does not explain.
_NEGATIVE: Final = 0.05
#: Share of an image's voxels above 0 that may have its very largest value.
_SATURATED: Final = 0.005
#: Brains have 0.9 to 1.9 litres; a head has 3 to 5.
_LITRES: Final = 2.5
#: A stripped brain leaves most of its grid at 0; noise in air leaves next to none.
_FILLED: Final = 0.9

Image = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What remains of a patient once the voxels were seen.

    Attributes:
        findings: about this patient alone.
        fingerprint: to compare the patient with others; None without a readable image.
        tumour: whether there is a tumour; None without a readable map.

    """

    findings: list[Finding]
    fingerprint: Fingerprint | None
    tumour: bool | None


def check_voxels(files: PatientFiles, config: DataConfig, readable: set[str]) -> Examined:
    """Read a patient's volumes and look at them; of `readable` roles, which have a good header."""
    volumes, findings = _read(files, readable)
    images = {role: volumes[role].data for role in map(str, CONTRASTS) if role in volumes}
    findings += _images(files, images)
    brain = _brain(images)
    if brain is not None:
        findings += _stripping(files, brain, next(iter(volumes.values())))
    findings += check_maps(files, volumes, config, brain)
    tumour = _has_tumour(volumes[TUMOUR_MAP], files) if TUMOUR_MAP in volumes else None
    box = None if brain is None or not brain.any() else bounding_box(brain)
    return Examined(
        findings=findings,
        fingerprint=None if box is None else _fingerprint(files, volumes, box),
        tumour=tumour,
    )


def _read(files: PatientFiles, readable: set[str]) -> tuple[dict[str, Volume], list[Finding]]:
    volumes: dict[str, Volume] = {}
    findings: list[Finding] = []
    roles_of: dict[Path, list[str]] = defaultdict(list)
    for role in files.matches:
        if role in readable:
            roles_of[files.path(role)].append(role)
    for path, roles in roles_of.items():
        try:
            read = read_channels(path, [files.channels.get(role) for role in roles])
        except BadData as error:
            findings += unreadable(files, roles[0], error)
        else:
            volumes |= dict(zip(roles, read, strict=True))
    return volumes, findings


def _images(files: PatientFiles, images: Mapping[str, Image]) -> Iterator[Finding]:
    about = About(files=files)
    if images and not any((image > 0).any() for image in images.values()):
        value = "no voxel above 0 in any contrast"
        yield about.error("no-brain", "", value, "a skull-stripped brain")
        return
    for role, image in images.items():
        if unreal := int(np.count_nonzero(~np.isfinite(image))):
            value, mend = f"{unreal} NaN or infinite voxels", "--fix sets them to 0"
            yield about.error("not-finite", role, value, "finite voxels", mend, mendable=True)
        else:
            yield from _intensities(about, role, image)


def _intensities(about: About, role: str, image: Image) -> Iterator[Finding]:
    signal = image[image > 0]
    if signal.size == 0 or signal.min() == signal.max():
        value = f"{signal[0]:g} in every voxel of the brain" if signal.size else "no voxel above 0"
        yield about.error("constant", role, value, "an image with contrast")
        return
    negative = int(np.count_nonzero(image < 0))
    if negative > _NEGATIVE * (negative + signal.size):
        value = f"{negative / image.size:.0%} of the voxels below 0, the least {image.min():.3g}"
        mend = "what is below 0 is cut off; export it before it was made a z-score"
        yield about.error("negative", role, value, "intensities from 0 up", mend)
    elif negative:
        yield about.note("below-zero", role, "a few voxels below 0", "which count as 0")
    top = float(signal.max())
    saturated = np.count_nonzero(signal == top) / signal.size
    if saturated > _SATURATED:
        value = f"{saturated:.1%} of its voxels above 0 at {top:g}"
        mend = "clipped when it was exported? what was brighter is lost"
        yield about.warning("saturated", role, value, "an image that is not clipped", mend)


def _brain(images: Mapping[str, Image]) -> NDArray[np.bool_] | None:
    """Return the brain in all readable contrasts (x, y, z); None when their grids differ."""
    if len({image.shape for image in images.values()}) != 1:
        return None
    return brain_mask(list(images.values()))


def _stripping(files: PatientFiles, brain: NDArray[np.bool_], volume: Volume) -> Iterator[Finding]:
    litres = float(np.count_nonzero(brain) * np.prod(volume.spacing)) * 1e-6
    filled = float(brain.mean())
    if litres > _LITRES or filled > _FILLED:
        value = f"{litres:.2g} litres above 0, {filled:.0%} of the grid"
        mend = "by volume, it is a whole head: strip the skull, for instance with HD-BET"
        wanted = "a brain of 1 to 2 litres and 0 around it"
        yield About(files=files).warning("not-stripped", "", value, wanted, mend)


def _has_tumour(volume: Volume, files: PatientFiles) -> bool:
    passed_over = [value for value, tissue in files.tumour_values.items() if tissue not in TUMOUR]
    return not np.isin(volume.data, [0, *passed_over]).all()


def _fingerprint(files: PatientFiles, volumes: Mapping[str, Volume], box: Box) -> Fingerprint:
    images: dict[str, Volume] = {}
    places = set()
    for role in map(str, CONTRASTS):
        place = (files.matches[role], files.channels.get(role))
        if role in volumes and place not in places:  # one file for two roles is told by its name
            images[role] = volumes[role]
            places.add(place)
    affine = next(iter(images.values())).affine
    return fingerprint(files, {role: one.data[box] for role, one in images.items()}, affine)
