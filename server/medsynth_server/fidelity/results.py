"""What fidelity was measured: `evaluation/fidelity.json`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medsynth_common.durable import write_bytes
from medsynth_common.errors import BadData, Problem
from medsynth_common.labels import Contrast, Tissue
from medsynth_server.fidelity.features import Plane
from medsynth_server.record import Arm

FIDELITY: Final = "fidelity.json"

Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Distances(_Frozen):
    """Fréchet and kernel distance of two sets, by one kind of features."""

    frechet: Number
    kernel: float


class TissueDistance(_Frozen):
    """Wasserstein-1 distance of one tissue's intensities in one contrast, in intensity."""

    contrast: Contrast
    tissue: Tissue
    distance: Number


class SiteFidelity(_Frozen):
    """What can be told of one site: the unbiased kernel distance, and intensities."""

    kernel: float
    intensity: Number


class Comparison(_Frozen):
    """One set of volumes against real ones, as many on each side.

    Attributes:
        planes: by random filters over slices; standardised on real ones, so in their variances.
        critic: by the publicly trained critic; likewise.
        radiomic: Fréchet distance of radiomic-style features; likewise.
        precision: share of the set inside the real manifold; the next three likewise.
        recall: share of real ones inside the set's manifold.
        density: see `distances.Manifold`.
        coverage: see `distances.Manifold`.
        likeness: mean MS-SSIM of pairs within the set; more is less diverse.
        tissues: intensity distances.
        intensity: their mean.
        sites: by site, where each side has at least four volumes.

    """

    planes: Mapping[Plane, Distances]
    critic: Distances
    radiomic: Number
    precision: Share
    recall: Share
    density: Number
    coverage: Share
    likeness: float
    tissues: tuple[TissueDistance, ...]
    intensity: Number
    sites: Mapping[str, SiteFidelity]


class FidelityResult(_Frozen):
    """Every generator beside the control: other real patients, as many.

    Attributes:
        volumes: on each side of every comparison.
        phantoms: whether the real ones are phantoms.
        epsilon: of each generator; null without privacy.
        arms: each generator's volumes against real ones.
        control: the other half of the real ones against the same.

    """

    volumes: Annotated[int, Field(ge=1)]
    phantoms: bool
    epsilon: Mapping[Arm, float | None]
    arms: Mapping[Arm, Comparison]
    control: Comparison

    def write(self, folder: Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_bytes(folder / FIDELITY, (self.model_dump_json(indent=1) + "\n").encode())


def read_fidelity(folder: Path) -> FidelityResult | None:
    """Read what was measured in a run's evaluation folder; None without. Raises BadData."""
    path = folder / FIDELITY
    if not path.exists():
        return None
    try:
        return FidelityResult.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = Problem(
            name=str(path),
            value="not what `evaluate` writes",
            wanted="the figures of this version",
            mend="run `medsynth-server evaluate` again",
        )
        raise BadData(problem) from error
