"""Filling the table, training by training; what was trained is not trained again."""

import hashlib
import json
import time
from concurrent.futures import as_completed
from functools import partial
from pathlib import Path
from typing import Final

import torch
from pydantic import ValidationError

from medsynth_common.durable import write_bytes
from medsynth_common.scoring import score_volume
from medsynth_common.tensors import tensors_digest
from medsynth_server.progress_bar import counted
from medsynth_server.table.cells import Training, trainings
from medsynth_server.table.results import TrainingScores
from medsynth_server.table.train import Material, networks_of, train
from medsynth_server.table.work import Work, here

#: Of training and scoring; whoever changes either raises it, and nothing old is taken for new.
_RECIPE: Final = 1


def fill(work: Work, kept: Path) -> list[TrainingScores]:
    """Train and measure everything; `kept` remembers what each training came to."""
    wanted = list(trainings(work.settings, list(work.models)))
    path_of = {training: kept / f"{_key(work, training)}.json" for training in wanted}
    missing = [training for training in wanted if _read(path_of[training]) is None]
    done = len(wanted) - len(missing)
    with work.pool() as pool:
        jobs = {pool.submit(_train, training): training for training in missing}
        for job in counted(as_completed(jobs), "trainings", done=done, total=len(wanted)):
            content = job.result().model_dump_json() + "\n"
            write_bytes(path_of[jobs[job]], content.encode())
    found = [_read(path_of[training]) for training in wanted]
    return [scores for scores in found if scores is not None]


def _key(work: Work, training: Training) -> str:
    """Name a training by all that decides its outcome."""
    made_from = {
        "recipe": _RECIPE,
        "training": training.model_dump(mode="json"),
        "table": work.settings.model_dump(mode="json", exclude={"seeds", "architectures"}),
        "networks": networks_of(training, work.config).model_dump(mode="json"),
        "grid": work.config.grid,
        "crop": work.config.crop,
        "seed": work.seed,
        "sites": {site.name: [site.declared, len(site.held_out)] for site in work.sites},
    }
    if training.cell.generator is not None:
        tensors = work.models[training.cell.generator].tensors
        made_from["generator"] = tensors_digest(dict(tensors)).hex()
    text = json.dumps(made_from, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _read(path: Path) -> TrainingScores | None:
    try:
        return TrainingScores.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None  # not there, or of another version: trained again


def _train(training: Training) -> TrainingScores:
    """Train and measure, in a worker."""
    work, began = here().work, time.process_time()
    material = Material(real=here().real, synthetic=here().synthetic)
    segmenter = train(training, material, work.config, work.settings)
    score = partial(
        score_volume,
        segmenter,
        crop=work.config.crop,
        spatial_dims=work.config.networks.spatial_dims,
        device=torch.device("cpu"),
    )
    scores = {
        site: tuple(score(one.volume, voxel=one.voxel) for one in patients)
        for site, patients in here().held_out.items()
    }
    return TrainingScores(training=training, scores=scores, cpu_seconds=time.process_time() - began)
