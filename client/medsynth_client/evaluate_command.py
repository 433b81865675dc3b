"""`medsynth-client evaluate`: a segmenter on the site's own held-out patients.

The scores are made of patients without any noise, so they stay at the site: they are written beside
its records, and a line in the audit log says that they were made, of what, and kept.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from medsynth_client.audit import AuditEvent, AuditLog
from medsynth_client.holding_out import Patients, patients_of
from medsynth_client.site_file import SiteFile
from medsynth_common.durable import write_bytes
from medsynth_common.errors import BadConfig, BadData, Problem
from medsynth_common.labels import Region
from medsynth_common.networks import NetworkSettings, build_segmenter
from medsynth_common.plan import Grid, problems_of
from medsynth_common.scoring import RegionScores, score_volume
from medsynth_common.scoring.measured import measured_patients
from medsynth_common.scoring.summary import RegionSummary, summarise
from medsynth_common.tensors import under, unpack

RESULT: Final = "evaluation.json"
_STAGE: Final = "evaluate"


class Shape(BaseModel):
    """What must be known of a segmenter: a part of its run's config.toml."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    grid: Grid
    crop: Grid
    networks: NetworkSettings

    @model_validator(mode="after")
    def _fits(self) -> "Shape":
        self.networks.check_sides(self.grid, self.crop)
        return self


class Evaluation(BaseModel):
    """What was measured; `evaluation.json` in the site's folder.

    Attributes:
        weights: SHA-256 of the segmenter's file.
        regions: over all held-out patients.
        patients: each one's scores, by name.

    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    weights: str = Field(pattern=r"^[0-9a-f]{64}$")
    regions: Mapping[Region, RegionSummary]
    patients: Mapping[str, Mapping[Region, RegionScores]]

    def told(self) -> str:
        """What a person reads: a line a region."""
        lines = [f"{len(self.patients)} held-out patients, none of them trained on here"]
        for region, one in self.regions.items():
            dice = _words(one.dice, one.dice_sd, "")
            distance = _words(one.hd95, one.hd95_sd, " mm")
            lines.append(
                f"  {region} ({one.patients} have it): Dice {dice}, HD95 {distance}, "
                f"lesion-wise Dice {one.lesion_dice:.3f} ({one.missed} missed, {one.false} false)"
            )
        return "\n".join(lines)


def evaluate_here(folder: Path, weights: Path, *, settings: Path | None) -> Evaluation:
    """Measure a segmenter on the held-out patients of the site in `folder`; nothing leaves.

    Args:
        folder: the site's, with its site.toml.
        weights: `segmenter.safetensors` of a federation's results.
        settings: that run's config.toml; None for the one above the weights' folder.

    Raises:
        BadConfig: site.toml holds nobody out, or the settings are not those of the weights.
        BadData: the weights, or a patient's files, cannot be used.
        StorageFailed: the audit log cannot be written; then the result is not, either.

    """
    site = SiteFile.load(folder / "site.toml")
    patients = patients_of(site, folder)
    _require_held_out(patients)
    content = _content(weights)
    shape = _shape(settings or weights.resolve().parent.parent / "config.toml")
    segmenter = _segmenter(content, shape, weights)
    found = {
        name: score_volume(
            segmenter,
            one.volume,
            voxel=one.voxel,
            crop=shape.crop,
            spatial_dims=shape.networks.spatial_dims,
            device=torch.device("cpu"),
        )
        for name, one in zip(
            patients.held_out,
            measured_patients(patients.source, patients.held_out, shape.grid),
            strict=True,
        )
    }
    digest = hashlib.sha256(content).hexdigest()
    evaluation = Evaluation(weights=digest, regions=summarise(list(found.values())), patients=found)
    result = (evaluation.model_dump_json(indent=1) + "\n").encode()
    # First the log: figures of patients must not lie about without a line that says whose they are.
    AuditLog(folder / "audit.jsonl").append(
        AuditEvent(
            project=weights.name[:200],
            stage=_STAGE,
            round=0,
            outcome="kept",
            bytes=len(content),
            sha256=digest,
            plan_digest=hashlib.sha256(result).hexdigest(),
        )
    )
    write_bytes(folder / RESULT, result)  # made readable by its owner only
    return evaluation


def _require_held_out(patients: Patients) -> None:
    if not patients.held_out:
        raise BadConfig(
            Problem(
                name="site.toml: held_out",
                value="nobody held out",
                wanted="patients that are never trained on",
                mend="set held_out = 0.2, or a list of names; those trained on before stay so",
            )
        )


def _content(weights: Path) -> bytes:
    try:
        return weights.read_bytes()
    except OSError as error:
        value = error.strerror or type(error).__name__
        problem = Problem(name=str(weights), value=value, wanted="a segmenter's weights")
        raise BadData(problem) from error


def _shape(path: Path) -> Shape:
    try:
        return Shape.model_validate_json(
            json.dumps(tomllib.loads(path.read_text("utf-8")), default=str)
        )
    except ValidationError as error:
        raise BadConfig(problems_of(error, name=str(path))) from error
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(
            Problem(
                name=str(path),
                value=type(error).__name__,
                wanted="the config.toml of the run that trained the segmenter",
                mend="name it with --settings",
            )
        ) from error


def _segmenter(content: bytes, shape: Shape, weights: Path) -> nn.Module:
    segmenter = build_segmenter(shape.networks)
    try:
        segmenter.load_state_dict(under("segmenter", unpack(content)))
    except RuntimeError as error:
        raise BadData(
            Problem(
                name=str(weights),
                value="weights of another network",
                wanted="those that the settings describe",
                mend="give weights and config.toml of one run",
            )
        ) from error
    return segmenter.eval()


def _words(mean: float | None, sd: float | None, unit: str) -> str:
    return "-" if mean is None else f"{mean:.3f} ± {sd or 0:.3f}{unit}"
