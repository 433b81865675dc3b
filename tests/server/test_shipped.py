"""The public weights that come with medsynth: whole, small, and what a run starts from."""

import json
from io import StringIO
from pathlib import Path

import pytest
import torch

from medsynth_common.errors import BadConfig, BadData
from medsynth_common.labels import Region, segmenter_target
from medsynth_common.learning.dice import region_dice
from medsynth_common.learning.segmenting import segment
from medsynth_common.phantom import SITE_SCANNERS, make_phantom
from medsynth_common.weights.file import read_weights
from medsynth_common.weights.shipped import shipped
from medsynth_server.budget import plan_budget
from medsynth_server.config import Pretrain, RunConfig, parse_config
from medsynth_server.model import Model
from medsynth_server.progress import LineProgress
from medsynth_server.public_training import train_publicly
from medsynth_server.record import NoteEvent, RunLog, read_events
from medsynth_server.run_folder import RunFolder
from medsynth_server.shipped import NAME, NETWORKS, make_models, shipped_model
from tiny_run import same_tensors, tiny_config

MOST_BYTES = 20_000_000


def test_the_shipped_model_has_every_part_of_its_size() -> None:
    model = shipped_model()
    fresh = Model.fresh(NETWORKS, seed=1)
    for part in ("generator", "segmenter", "critic"):
        shapes = {name: tensor.shape for name, tensor in fresh.part(part).items()}
        assert {name: tensor.shape for name, tensor in model.part(part).items()} == shapes
    assert all(bool(tensor.isfinite().all()) for tensor in model.tensors.values())
    assert plan_budget(RunConfig(), model).mechanisms.keys() == {
        "level",
        "spread",
        "segmenter",
        "critic",
    }
    assert shipped(NAME).stat().st_size < MOST_BYTES


def test_the_recipe_says_how_to_make_it_again() -> None:
    recipe = read_weights(shipped(NAME), network=NAME).recipe
    assert recipe.settings["networks"] == NETWORKS.model_dump(mode="json")
    assert f"--seed {recipe.seed}" in recipe.command
    assert "no patient" in recipe.data[0]


def test_the_same_seed_makes_the_same_models(tmp_path: Path) -> None:
    few = Pretrain(rounds=1, steps=1, batch=2, scanners=2, phantoms=2)
    first, second = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    made = [make_models(path, settings=few, seed=3) for path in (first, second)]
    assert made[0].sha256 == made[1].sha256
    assert first.read_bytes() == second.read_bytes()
    assert json.loads(first.with_suffix(".json").read_text())["seed"] == 3
    spoilt = bytearray(first.read_bytes())
    spoilt[-1] ^= 1
    first.write_bytes(bytes(spoilt))
    with pytest.raises(BadData, match="SHA-256"):
        read_weights(first, network=NAME)


def test_a_run_of_that_size_starts_from_it_and_keeps_its_start(tmp_path: Path) -> None:
    config = RunConfig()
    assert config.starts_shipped
    log = RunLog(tmp_path / "metrics.jsonl")
    folder = RunFolder(tmp_path)
    for _ in range(2):
        model = train_publicly(config, folder, seed=1, log=log, progress=LineProgress(StringIO()))
        assert same_tensors(model.tensors, shipped_model().tensors)
    (note,) = read_events(tmp_path / "metrics.jsonl")
    assert isinstance(note, NoteEvent)


def test_other_sizes_start_fresh_and_cannot_ask_for_it() -> None:
    assert not tiny_config().starts_shipped
    assert not RunConfig(pretrain=Pretrain(start="fresh")).starts_shipped
    with pytest.raises(BadConfig, match=r"pretrain\.start 'shipped'"):
        parse_config({"preset": "gpu", "pretrain": {"start": "shipped"}}, name="settings")


def test_it_finds_tumours_of_scanners_it_has_not_seen() -> None:
    segmenter = shipped_model().segmenter(torch.device("cpu")).eval()
    found = []
    for number, scanner in enumerate(SITE_SCANNERS):
        phantom = make_phantom(900 + number, (48, 48, 48), scanner, tumours=1)
        labels = torch.from_numpy(phantom.labels)
        image = torch.from_numpy(phantom.image)
        mask = segment(segmenter, image, crop=(32, 32, 32), spatial_dims=3)
        dice = region_dice(mask, segmenter_target(labels))[Region.WHOLE]
        assert dice is not None
        found.append(dice)
    assert sum(found) / len(found) > 0.6
