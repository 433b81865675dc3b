"""Phantoms as NIfTI files, laid out as hospitals and public data sets do."""

import json
from functools import cache
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from numpy.typing import NDArray

from medsynth_common.intensity import CEILING
from medsynth_common.labels import BRATS_VALUE_OF, CONTRASTS, TUMOUR, Contrast
from medsynth_common.phantom import SITE_SCANNERS, make_phantom
from medsynth_common.volumes import write_volume
from small_patients import BRATS_OLD

SHAPE: Final = (24, 24, 24)
#: 5 mm voxels, so that a phantom is as large as a brain; axes as BraTS stores them (LPS).
AFFINE: Final = np.array([[-5.0, 0, 0, 60], [0, -5.0, 0, 60], [0, 0, 5.0, -60], [0, 0, 0, 1]])

Images = dict[str, NDArray[Any]]


@cache
def _phantom(seed: int) -> Images:
    made = make_phantom(seed, SHAPE, SITE_SCANNERS[0], tumours=1)
    values = np.zeros(SHAPE, dtype=np.uint8)
    for tissue in TUMOUR:
        values[made.labels == tissue] = BRATS_VALUE_OF[tissue]
    # Phantoms are cut off at a ceiling, as networks see them. A scanner's images are not.
    noise = np.random.default_rng(seed).uniform(0, 0.1, made.image.shape)
    whole = np.where(made.image >= CEILING, CEILING + noise, made.image).astype(np.float32)
    images: Images = {str(one): whole[i] * 800 for i, one in enumerate(CONTRASTS)}
    return images | {"seg": values}


def patient(seed: int) -> Images:
    """The four contrasts and the tumour map (BraTS values) of a phantom, free to be changed."""
    return {role: data.copy() for role, data in _phantom(seed).items()}


def write(
    path: Path, data: NDArray[Any], affine: NDArray[np.float64] = AFFINE, *, forms: bool = True
) -> None:
    """Write a volume of any kind, as other programs do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if forms and data.ndim == 3 and data.dtype in (np.float32, np.uint8):
        write_volume(path, data, affine, description="test")
        return
    image = nibabel.Nifti1Image(data, affine)
    if not forms:
        image.set_sform(None, code=0)
        image.set_qform(None, code=0)
    nibabel.save(image, path)


def brats(folder: Path, images: Images, naming: dict[str, str] | None = None) -> Path:
    """Write a patient into its folder with BraTS names."""
    for role, ending in (naming or BRATS_OLD).items():
        write(folder / f"{folder.name}{ending}.nii.gz", images[role])
    return folder


def bids(root: Path, subject: str, images: Images, session: str = "") -> None:
    """Write a subject's session into a BIDS data set."""
    inside = Path(subject, session, "anat")
    start = f"{subject}_{session}_" if session else f"{subject}_"
    ending = {
        Contrast.T1: "T1w",
        Contrast.T1GD: "ce-gadolinium_T1w",
        Contrast.T2: "T2w",
        Contrast.FLAIR: "FLAIR",
    }
    for contrast in CONTRASTS:
        write(root / inside / f"{start}{ending[contrast]}.nii.gz", images[contrast])
    masks = root / "derivatives" / "manual" / inside
    write(masks / f"{start}label-lesion_mask.nii.gz", images["seg"])


def decathlon(root: Path, patients: dict[str, Images]) -> None:
    """Write Task01_BrainTumour: 4D images, FLAIR first, and its own label values."""
    order = (Contrast.FLAIR, Contrast.T1, Contrast.T1GD, Contrast.T2)
    names = ("FLAIR", "T1w", "t1gd", "T2w")
    table = {
        "modality": {str(index): name for index, name in enumerate(names)},
        "labels": {
            "0": "background",
            "1": "edema",
            "2": "non-enhancing tumor",
            "3": "enhancing tumour",
        },
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in patients
        ],
    }
    for name, images in patients.items():
        stacked = np.stack([images[contrast] for contrast in order], axis=-1)
        write(root / "imagesTr" / f"{name}.nii.gz", stacked)
        own = np.array([0, 2, 1, 0, 3], dtype=np.uint8)  # BraTS 1, 2, 4 are 2, 1, 3 here
        write(root / "labelsTr" / f"{name}.nii.gz", own[images["seg"]])
    (root / "dataset.json").write_text(json.dumps(table))
    # A Mac's notes, as the published archive has them.
    (root / "imagesTr" / "._BRATS_001.nii.gz").write_bytes(b"\x00\x05\x16\x07")
