"""`pretrain anatomy`: the network that finds tissues, trained on public heads alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open

from medsynth_common.anatomy import NETWORK, AnatomySettings
from medsynth_common.durable import write_bytes
from medsynth_common.privacy.mechanism import Value
from medsynth_common.weights.file import Recipe, Weights, write_weights
from medsynth_server.anatomy.folder import read_heads
from medsynth_server.anatomy.heads import Head, draw_heads
from medsynth_server.anatomy.training import AnatomyTraining, Form
from medsynth_server.progress_bar import counted

#: Steps between two states on disk.
_KEPT_EVERY: Final = 50
#: A folder's heads take turns with phantoms: so many samples of a folder for one of a phantom.
_FOLDER_SHARE: Final = 2


class AnatomyPlan(Value):
    """What is trained, and on what.

    Attributes:
        form: `plain` segmentation or `pix2pix`.
        network: its sizes.
        phantoms: how many heads are drawn.
        steps: of training.
        crop: side of the crops, voxels of 2 mm.
        batch: crops a step.
        seed: of heads, crops and first weights.

    """

    form: Form = "plain"
    network: AnatomySettings = AnatomySettings()
    phantoms: int = Field(default=120, ge=1, le=10_000)
    steps: int = Field(default=600, ge=1, le=1_000_000)
    crop: int = Field(default=48, ge=16, le=256)
    batch: int = Field(default=1, ge=1, le=64)
    seed: int = Field(default=11, ge=0, lt=2**62)

    @property
    def command(self) -> str:
        """The command that says all of this but the folders and the network's own sizes."""
        return (
            f"medsynth-server pretrain anatomy --form {self.form} --phantoms {self.phantoms} "
            f"--steps {self.steps} --crop {self.crop} --batch {self.batch} --seed {self.seed}"
        )


def pretrain_anatomy(
    plan: AnatomyPlan,
    out: Path,
    *,
    public: Sequence[Path] = (),
    workers: int = 1,
    device: torch.device | None = None,
) -> Recipe:
    """Train, or go on, and write the weights `out` with their recipe.

    Raises:
        BadInput: a folder is not public, or cannot be read; see `read_heads`.
        BadConfig: sizes that do not fit.

    """
    heads, data = [], []
    for folder in public:
        found, statement = read_heads(folder)
        heads += found
        credit = f", {statement.credit}" if statement.credit else ""
        data.append(f"{folder.name}: {len(found)} heads, {statement.licence}{credit}")
    drawn = draw_heads(seed=plan.seed, count=plan.phantoms, workers=workers)
    phantoms = list(counted(drawn, "drawing phantoms", done=0, total=plan.phantoms))
    data.append(f"{plan.phantoms} phantoms that medsynth draws")
    training = AnatomyTraining(
        plan.form,
        plan.network,
        seed=plan.seed,
        steps=plan.steps,
        device=torch.device("cpu") if device is None else device,
    )
    _train(training, _balanced(phantoms, heads), plan, data, out)
    recipe = Recipe(
        network=NETWORK,
        settings=plan.network.model_dump(mode="json"),
        command=" ".join([plan.command, *(f"--public {folder}" for folder in public)]),
        seed=plan.seed,
        data=tuple(data),
    )
    return write_weights(out, Weights(tensors=training.network.state_dict(), recipe=recipe))


def _balanced(phantoms: Sequence[Head], heads: Sequence[Head]) -> list[Head]:
    """Repeat a folder's heads until they are the larger part of what is drawn from."""
    if not heads:
        return list(phantoms)
    return [*phantoms, *(list(heads) * -(-_FOLDER_SHARE * len(phantoms) // len(heads)))]


def _train(
    training: AnatomyTraining,
    heads: Sequence[Head],
    plan: AnatomyPlan,
    data: Sequence[str],
    out: Path,
) -> None:
    state = out.with_suffix(".partial")
    told = json.dumps({"plan": plan.model_dump(mode="json"), "data": list(data)}, sort_keys=True)
    done = _resume(training, state, told)
    crop = (plan.crop,) * 3
    for step in counted(range(done, plan.steps), "training", done=done, total=plan.steps):
        training.step(step, heads, crop, plan.batch)
        if (step + 1) % _KEPT_EVERY == 0 and step + 1 < plan.steps:
            metadata = {"told": told, "done": str(step + 1)}
            write_bytes(state, safetensors.torch.save(training.tensors(), metadata=metadata))
    state.unlink(missing_ok=True)


def _resume(training: AnatomyTraining, state: Path, told: str) -> int:
    """Take up a state of the same plan; returns how many steps it has behind it."""
    try:
        with safe_open(state, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("told") != told:
                return 0
            training.load({name: stored.get_tensor(name) for name in stored.keys()})  # noqa: SIM118 - no mapping
            return int(metadata["done"])
    except (FileNotFoundError, SafetensorError):  # not there yet, or damaged
        return 0
