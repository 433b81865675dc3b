import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medsynth_common.anatomy import CLASSES, AnatomySettings, TissueNetwork
from medsynth_common.errors import BadData, PolicyRefusal
from medsynth_common.labels import TUMOUR, Tissue
from medsynth_common.phantom import draw_labels
from medsynth_server import cli
from medsynth_server.anatomy import pretrain as pretraining
from medsynth_server.anatomy.folder import read_heads
from medsynth_server.anatomy.heads import Head, draw_heads
from medsynth_server.anatomy.painting import paint
from medsynth_server.anatomy.pretrain import AnatomyPlan, pretrain_anatomy
from medsynth_server.anatomy.samples import draw_sample
from medsynth_server.anatomy.training import AnatomyTraining, Form, tissue_loss
from small_patients import small_image, small_labels, spoil

TINY = AnatomySettings(channels=(4, 8), detail=4)
CROP = (16, 16, 16)
PUBLIC = 'source = "public"\nlicence = "CC-BY-4.0"\n'


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def phantom() -> Head:
    return Head(labels=draw_labels(rng(5), (28, 32, 28), tumours=1))


@pytest.fixture
def few_phantoms(monkeypatch: pytest.MonkeyPatch, phantom: Head) -> None:
    """Drawing at 2 mm takes a second a head; what is trained on is not what is tested here."""
    monkeypatch.setattr(pretraining, "draw_heads", lambda *, count, **_: iter([phantom] * count))


def test_the_same_seed_draws_the_same_heads() -> None:
    one, two = draw_heads(seed=3, count=2, workers=1)
    (again,) = draw_heads(seed=3, count=1, workers=1)
    np.testing.assert_array_equal(one.labels, again.labels)
    assert not np.isin(one.labels, TUMOUR).any()  # every third is healthy
    assert one.labels.shape != two.labels.shape
    assert 0.7 < one.depth.max() < 1.3


def test_samples_lose_contrasts_and_stay_in_the_brain(phantom: Head) -> None:
    sample = draw_sample([phantom], CROP, rng(), batch=60)
    assert sample.seen.shape == (60, 5, *CROP)
    image, depth = sample.seen[:, :4], sample.seen[:, 4]
    present = image.flatten(2).any(-1)  # (sample, contrast)
    assert present.any(1).all()
    alone = present[:, 0] & (present.sum(1) == 1)
    assert 0.15 < alone.float().mean() < 0.6
    assert 0.15 < present.all(1).float().mean() < 0.6
    assert (present.sum(0) > 10).all()
    assert (~present[:, 0]).any()  # T1 may be what is missing
    known = sample.target >= 0
    assert (sample.target < len(CLASSES)).all()
    assert (depth[known] > 0).all()
    assert (image.sum(1)[depth == 0] == 0).all()
    assert image.min() >= 0
    assert image.max() <= 1.25
    again = draw_sample([phantom], CROP, rng(), batch=60)
    assert torch.equal(sample.seen, again.seen)


def test_nobody_is_taught_what_lies_under_a_tumour(phantom: Head) -> None:
    tumours = np.where(phantom.labels > 0, np.uint8(Tissue.OEDEMA), phantom.labels)
    assert (draw_sample([Head(labels=tumours)], CROP, rng(), batch=8).target == -1).all()


def test_contrasts_are_beyond_those_of_any_scanner(phantom: Head) -> None:
    """Grey is brighter than white in some T1, darker in most."""
    kept = np.array([True, False, False, False])
    signs = []
    for seed in range(40):
        t1 = paint(phantom.labels, kept, rng(seed))[0]
        grey, white = (t1[phantom.labels == t].mean() for t in (Tissue.GREY, Tissue.WHITE))
        signs.append(grey > white)
    assert 0 < sum(signs) < 20


def test_the_loss_looks_at_known_voxels_alone() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, len(CLASSES), 4, 4, 4)
    target = torch.randint(len(CLASSES), (1, 4, 4, 4))
    target[0, 0] = -1
    elsewhere = logits.clone()
    elsewhere[:, :, 0] += 5 * torch.randn(1, len(CLASSES), 4, 4)
    torch.testing.assert_close(tissue_loss(logits, target), tissue_loss(elsewhere, target))
    right = 20 * torch.nn.functional.one_hot(target.clamp(min=0), len(CLASSES)).movedim(-1, 1)
    assert tissue_loss(right.float(), target) < 0.05 < tissue_loss(logits, target)


@pytest.mark.parametrize("form", ["plain", "pix2pix"])
def test_both_forms_learn(phantom: Head, form: Form) -> None:
    network = AnatomySettings(channels=(8, 8), detail=8)
    training = AnatomyTraining(form, network, seed=1, steps=20, device=torch.device("cpu"))
    losses = [training.step(5, [phantom], CROP, 1) for _ in range(60)]  # one sample, by heart
    assert min(losses[-5:]) < 0.9 * losses[0]


@pytest.mark.parametrize("form", ["plain", "pix2pix"])
def test_a_training_goes_on_where_it_was_stopped(
    few_phantoms: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form
) -> None:
    monkeypatch.setattr(pretraining, "_KEPT_EVERY", 2)
    plan = AnatomyPlan(form=form, network=TINY, phantoms=2, steps=5, crop=16, seed=4)
    whole = pretrain_anatomy(plan, tmp_path / "whole.safetensors")
    step = AnatomyTraining.step

    def stopped(self: AnatomyTraining, number: int, *rest: Any) -> float:
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, *rest)

    monkeypatch.setattr(AnatomyTraining, "step", stopped)
    with pytest.raises(KeyboardInterrupt):
        pretrain_anatomy(plan, tmp_path / "halves.safetensors")
    seen: list[int] = []

    def watched(self: AnatomyTraining, number: int, *rest: Any) -> float:
        seen.append(number)
        return step(self, number, *rest)

    monkeypatch.setattr(AnatomyTraining, "step", watched)
    assert pretrain_anatomy(plan, tmp_path / "halves.safetensors").sha256 == whole.sha256
    assert seen == [2, 3, 4]
    other = plan.model_copy(update={"seed": 5})
    assert pretrain_anatomy(other, tmp_path / "other.safetensors").sha256 != whole.sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.{end}" for name in ("whole", "halves", "other") for end in ("json", "safetensors")
    )


def public_folder(root: Path, statement: str | None = PUBLIC) -> Path:
    """A head with a T1 beside it, and another without."""
    labels = np.where(np.isin(small_labels(), TUMOUR), Tissue.WHITE, small_labels())
    without_csf = np.where(labels == Tissue.CSF, 0, labels).astype(np.uint8)
    spoil(root / "p", "_t1", small_image(labels.astype(np.uint8))[0])
    spoil(root / "p", "_seg", without_csf)
    spoil(root / "q", "", labels.astype(np.uint8))
    if statement is not None:
        (root / "LABELS.toml").write_text(statement)
    return root


def test_a_folder_s_maps_come_with_their_images(tmp_path: Path) -> None:
    (pair, alone), statement = read_heads(public_folder(tmp_path))
    assert statement.licence == "CC-BY-4.0"
    assert alone.image is None
    assert pair.image is not None
    assert pair.image.shape == (4, *pair.labels.shape)
    assert pair.image.any(axis=(1, 2, 3)).tolist() == [True, False, False, False]
    # What a map leaves out of the brain is fluid.
    np.testing.assert_array_equal(pair.labels, alone.labels)
    assert (pair.image[0][pair.labels == 0] == 0).all()
    white, grey = (pair.image[0][pair.labels == t].mean() for t in (Tissue.WHITE, Tissue.GREY))
    assert white > grey + 0.2
    sample = draw_sample([pair], CROP, rng(), batch=40)
    assert sample.seen[:, 0].flatten(1).any(1).float().mean() > 0.8


def test_a_folder_that_nobody_calls_public_is_refused(tmp_path: Path, few_phantoms: None) -> None:
    folder = public_folder(tmp_path / "heads", statement=None)
    with pytest.raises(PolicyRefusal, match="no statement"):
        pretrain_anatomy(AnatomyPlan(), tmp_path / "w.safetensors", public=(folder,))
    (folder / "LABELS.toml").write_text(PUBLIC.replace("public", "private"))
    with pytest.raises(PolicyRefusal, match="private"):
        read_heads(folder)
    (folder / "LABELS.toml").write_text(PUBLIC + "[values]\n3 = 'grey'\n")
    with pytest.raises(BadData, match="label values 2") as error:
        read_heads(folder)
    assert len(error.value.problems) == 2
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "LABELS.toml").write_text(PUBLIC)
    with pytest.raises(BadData, match="wanted label maps"):
        read_heads(tmp_path / "empty")


def typed(*words: object) -> int:
    sys.argv = ["medsynth-server", "pretrain", "anatomy", *map(str, words)]
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_writes_weights_that_label(
    few_phantoms: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = public_folder(tmp_path / "heads")
    out = tmp_path / "a.safetensors"
    few = ("--phantoms", 2, "--steps", 1, "--crop", 16)
    assert typed("--out", out, *few, "--public", folder, "--format", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sha256"] == json.loads(out.with_suffix(".json").read_text())["sha256"]
    assert told["data"] == ["heads: 2 heads, CC-BY-4.0", "2 phantoms that medsynth draws"]
    assert told["command"].startswith("medsynth-server pretrain anatomy --form plain")
    assert out.stat().st_size < 4_000_000
    TissueNetwork.read(out)
    assert typed("--out", tmp_path / "a.pt") == 4
    assert "wanted a name that ends in .safetensors" in capsys.readouterr().err
    assert typed("--out", out, "--crop", 18) == 4
    assert "--crop: got 18, wanted a multiple of 8" in capsys.readouterr().err
