"""Weights in two files: `NAME.safetensors`, and `NAME.json`, its recipe, with its SHA-256.

The recipe is what makes weights more than a blob: the command and the seed that made them, what
data they saw, and the hash that the file must have. Some are shipped beside this file; they are
read by the same function as those a person trains.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError
from torch import Tensor

from medsynth_common.durable import write_bytes
from medsynth_common.errors import BadData, BadMessage, Problem
from medsynth_common.plan import problems_of
from medsynth_common.privacy.mechanism import Value
from medsynth_common.tensors import pack, unpack


class Recipe(Value):
    """How weights came to be.

    Attributes:
        network: what they are of, such as `anatomy`.
        settings: how that network is built, as its own settings write themselves.
        command: that made them.
        seed: it was given.
        data: what was trained on, with whose it is; an entry for each source.
        sha256: of the safetensors file, in hexadecimal.

    """

    network: str = Field(min_length=1)
    settings: Mapping[str, object]
    command: str
    seed: int
    data: tuple[str, ...] = Field(min_length=1)
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")


@dataclass(frozen=True, kw_only=True, eq=False)
class Weights:
    """A network's named tensors, float32, and their recipe."""

    tensors: Mapping[str, Tensor]
    recipe: Recipe


def recipe_path(path: Path) -> Path:
    """Give the path of the recipe that stands beside the weights `path`."""
    return path.with_suffix(".json")


def write_weights(path: Path, weights: Weights) -> Recipe:
    """Write weights as float16, half the size and far finer than training's noise, and the recipe.

    The same tensors give the same bytes. Returns the recipe with the hash filled in.
    """
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in weights.tensors.items()
    }
    content = pack(halves)
    digest = hashlib.sha256(content).hexdigest()
    recipe = weights.recipe.model_copy(update={"sha256": digest})
    write_bytes(path, content)
    write_bytes(recipe_path(path), f"{recipe.model_dump_json(indent=2)}\n".encode())
    return recipe


def read_weights(path: Path, *, network: str) -> Weights:
    """Read weights of the kind `network`.

    Raises:
        BadData: a file is missing or damaged, the weights are of another network, or are not those
            that the recipe tells of.

    """
    recipe = _read_recipe(path)
    if recipe.network != network:
        raise _unusable(path, f"weights of {recipe.network}", f"weights of {network}")
    content = _read(path)
    digest = hashlib.sha256(content).hexdigest()
    if digest != recipe.sha256:
        wanted = f"{recipe.sha256[:12]}, as {recipe_path(path).name} says"
        raise _unusable(path, f"SHA-256 {digest[:12]}", wanted)
    try:
        tensors = unpack(content)
    except BadMessage as error:
        raise _unusable(path, "no tensors", "a safetensors file") from error
    return Weights(
        tensors={k: v.float() if v.is_floating_point() else v for k, v in tensors.items()},
        recipe=recipe,
    )


def _read_recipe(path: Path) -> Recipe:
    beside = recipe_path(path)
    try:
        return Recipe.model_validate_json(_read(beside))
    except ValidationError as error:
        raise BadData(problems_of(error, name=str(beside))) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(path, error.strerror or type(error).__name__, "a readable file") from error


def _unusable(path: Path, value: str, wanted: str) -> BadData:
    mend = "take both files, NAME.safetensors and NAME.json, from where they were made"
    return BadData(Problem(name=str(path), value=value, wanted=wanted, mend=mend))
