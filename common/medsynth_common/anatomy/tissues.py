"""A patient's tissues by the anatomy network: to its voxels, through it, and back."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from medsynth_common.anatomy.network import (
    CLASSES,
    VOXEL_MM,
    AnatomyNetwork,
    AnatomySettings,
    depth_of,
    shares,
)
from medsynth_common.dataset.frame import frames_between
from medsynth_common.errors import BadData, Problem
from medsynth_common.intensity import normalise
from medsynth_common.labels import Tissue
from medsynth_common.plan import problems_of
from medsynth_common.weights.file import Weights, read_weights

#: The kind of weights this is, and the name of those that are shipped.
NETWORK: Final = "anatomy"


@dataclass(frozen=True, kw_only=True, eq=False)
class TissueNetwork:
    """An anatomy network with its weights, ready to label patients."""

    network: AnatomyNetwork
    settings: AnatomySettings

    @classmethod
    def read(cls, path: Path) -> "TissueNetwork":
        """Read weights, once a process. Raises `BadData` when they cannot be used."""
        return _read(path)

    @classmethod
    def of(cls, weights: Weights, *, name: str) -> "TissueNetwork":
        """Build the network that the recipe tells of. Raises `BadData` when it does not fit."""
        try:
            settings = AnatomySettings.model_validate(weights.recipe.settings, strict=False)
        except ValidationError as error:
            raise BadData(problems_of(error, name=f"{name}: settings")) from error
        network = AnatomyNetwork(settings)
        try:
            network.load_state_dict(dict(weights.tensors))
        except RuntimeError as error:
            problem = Problem(name=name, value="other tensors", wanted="those of its settings")
            raise BadData(problem) from error
        return cls(network=network.eval().requires_grad_(False), settings=settings)

    def label(
        self,
        image: NDArray[np.float32],
        brain: NDArray[np.bool_],
        tumour: NDArray[np.uint8],
        *,
        affine: NDArray[np.float64],
    ) -> NDArray[np.uint8]:
        """Give each brain voxel a `Tissue`, with the tumour laid over it.

        Args:
            image: the four contrasts (4, x, y, z), any scale, none below 0; zeros for one that
                the patient lacks.
            brain: the brain's voxels (x, y, z).
            tumour: `Tissue` values of the tumour (x, y, z), 0 elsewhere.
            affine: voxel indices to millimetres, axes to the right, anterior, superior, (4, 4).

        Returns:
            `Tissue` values (x, y, z), uint8, background outside the brain.

        Raises:
            BadData: there is no brain, or it holds no signal.

        """
        there, back = frames_between(
            brain.shape, affine, voxel_mm=VOXEL_MM, multiple=self.settings.multiple
        )
        share = there.resample(brain.astype(np.float32))
        coarse = share >= 0.5
        if not coarse.any():  # a brain of a few voxels: none fills one of the network's
            coarse = share > 0
        # The empty outside does not darken the cortex beside it.
        divisor = np.maximum(share, 1e-6)
        seen = np.stack([there.resample(one * brain) / divisor for one in image])
        present = seen.any(axis=(1, 2, 3))
        scaled = np.zeros_like(seen)
        scaled[present] = normalise(seen[present], coarse)
        everything = np.concatenate([scaled, depth_of(coarse)[None]])
        found = shares(self.network, torch.from_numpy(everything)).numpy()  # (class, x, y, z)
        # What the coarse grid does not reach is the brain's outermost rim: fluid, as a rule.
        labels = np.full(brain.shape, Tissue.CSF, dtype=np.uint8)
        best = np.zeros(brain.shape, dtype=np.float32)
        for tissue, one in zip(CLASSES, found, strict=True):
            fine = back.resample(one * coarse)
            labels[fine > best] = tissue
            np.maximum(best, fine, out=best)
        labels = np.where(tumour > 0, tumour, labels)
        return np.where(brain, labels, np.uint8(Tissue.BACKGROUND))


@lru_cache(maxsize=1)
def _read(path: Path) -> TissueNetwork:
    return TissueNetwork.of(read_weights(path, network=NETWORK), name=str(path))
