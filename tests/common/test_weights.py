import json
from pathlib import Path

import pytest
import torch

from medsynth_common.errors import BadData
from medsynth_common.weights.file import Recipe, Weights, read_weights, recipe_path, write_weights

RECIPE = Recipe(
    network="anatomy", settings={"detail": 4}, command="medsynth-server ...", seed=3, data=("none",)
)
WEIGHTS = Weights(tensors={"a": torch.tensor([0.5, -2.25]), "n": torch.tensor(3)}, recipe=RECIPE)


def test_weights_come_back_with_their_recipe(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    written = write_weights(path, WEIGHTS)
    read = read_weights(path, network="anatomy")
    assert read.recipe == written
    assert read.recipe.command == RECIPE.command
    assert len(read.recipe.sha256) == 64
    assert read.tensors["a"].dtype == torch.float32
    assert torch.equal(read.tensors["a"], WEIGHTS.tensors["a"])
    assert int(read.tensors["n"]) == 3
    before = path.read_bytes()
    write_weights(path, WEIGHTS)
    assert path.read_bytes() == before


def test_weights_that_are_not_the_recipe_s_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, WEIGHTS)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadData, match=r"got SHA-256 .* wanted .* as w\.json says"):
        read_weights(path, network="anatomy")


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(BadData, match=r"w\.json: got No such file"):
        read_weights(path, network="anatomy")
    write_weights(path, WEIGHTS)
    with pytest.raises(BadData, match="got weights of anatomy, wanted weights of generator"):
        read_weights(path, network="generator")
    recipe = json.loads(recipe_path(path).read_text())
    recipe_path(path).write_text(json.dumps({**recipe, "seed": "three", "more": 1}))
    with pytest.raises(BadData, match="seed"):
        read_weights(path, network="anatomy")
    path.unlink()
    recipe_path(path).write_text(json.dumps(recipe))
    with pytest.raises(BadData, match=r"w\.safetensors: got No such file"):
        read_weights(path, network="anatomy")
