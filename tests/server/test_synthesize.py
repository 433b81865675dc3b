"""`synthesize`: sets of every layout, the same after kill -9, from public label maps alone."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

import medsynth_server.synthesize
from medsynth_common.durable import write_bytes
from medsynth_common.editing import EditKind, apply_all
from medsynth_common.editing.edits import EDITS
from medsynth_common.errors import BadConfig, BadData, BadInput, PolicyRefusal
from medsynth_common.labels import BRATS_VALUES, TUMOUR, Tissue
from medsynth_common.phantom import draw_labels
from medsynth_common.set_layout import Layout
from medsynth_common.synthetic_set import read_synthetic_set
from medsynth_common.tensors import pack, with_prefix
from medsynth_common.volumes import write_volume
from medsynth_server import cli
from medsynth_server.config import dump_config
from medsynth_server.label_source import PhantomLabels, read_statement
from medsynth_server.record import (
    Arm,
    ArmPrivacy,
    MechanismSpent,
    PrivacyStatement,
    SitePrivacy,
    write_privacy,
)
from medsynth_server.run_folder import locked
from medsynth_server.synthesize import Wish, synthesize
from tiny_run import public_model, tiny_config

SITES = ("site-1", "site-2")


def site_privacy(epsilon: float | None) -> SitePrivacy:
    mechanism = MechanismSpent(
        name="level", clip=1.0, noise_multiplier=2.0, sampling_rate=1.0, steps=1, releases=1
    )
    return SitePrivacy(
        epsilon=epsilon, cap=10.0, delta=1e-3, patients_declared=3, mechanisms=(mechanism,)
    )


def make_run(folder: Path, *, protected: bool = True, seeded: bool = False) -> Path:
    """A finished run, as far as `synthesize` looks: its settings, weights and statement."""
    model = public_model()
    bright = {**model.prior.style().tensors(), "offset": model.prior.style().offset * 1.5}
    styles = {
        **with_prefix("style.site-1", model.prior.style().tensors()),
        **with_prefix("style.site-2", bright),
    }
    write_bytes(folder / "weights" / "generator.safetensors", pack(model.part("generator")))
    write_bytes(folder / "weights" / "styles.safetensors", pack(styles))
    variation = pack(model.part("variation"))
    write_bytes(folder / "weights" / "variation.safetensors", variation)
    write_bytes(folder / "config.toml", dump_config(tiny_config()).encode())
    spent = (3.201, 7.5) if protected else (None, None)
    sites = {name: site_privacy(epsilon) for name, epsilon in zip(SITES, spent, strict=True)}
    arm = ArmPrivacy(protected=protected, sites=sites)
    write_privacy(folder / "privacy.json", PrivacyStatement(seeded=seeded, arms={Arm.PRIVATE: arm}))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


def wish(**changes: Any) -> Wish:
    fields: dict[str, Any] = {
        "count": 3,
        "edits": (),
        "style": "mix",
        "labels": None,
        "layout": Layout.BRATS,
        "licence": "CC0-1.0",
        "seed": 5,
    }
    return Wish(**{**fields, **changes})


@pytest.fixture(scope="module")
def edited(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five volumes, edited in turn."""
    folder = tmp_path_factory.mktemp("edited") / "set"
    synthesize(run, folder, wish(count=5, edits=(EditKind.LARGER, EditKind.INSERTED)))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def voxels(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(nibabel.load(path).dataobj)


def about(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "dataset.json").read_text())
    return told


NAMES = {
    Layout.BRATS: {
        *(f"synthetic-000/synthetic-000-{part}.nii.gz" for part in ("t1n", "t1c", "t2w", "t2f")),
        "synthetic-000/synthetic-000-seg.nii.gz",
        "synthetic-000/synthetic-000-anatomy.nii.gz",
    },
    Layout.BIDS: {
        "dataset_description.json",
        "README",
        ".bidsignore",
        "sub-synthetic000/anat/sub-synthetic000_T1w.nii.gz",
        "sub-synthetic000/anat/sub-synthetic000_ce-gadolinium_T1w.nii.gz",
        "sub-synthetic000/anat/sub-synthetic000_T2w.nii.gz",
        "sub-synthetic000/anat/sub-synthetic000_FLAIR.nii.gz",
        "derivatives/medsynth/dataset_description.json",
        "derivatives/medsynth/desc-tumour_dseg.tsv",
        "derivatives/medsynth/desc-anatomy_dseg.tsv",
        *(
            f"derivatives/medsynth/sub-synthetic000/anat/sub-synthetic000_desc-{d}_dseg.nii.gz"
            for d in ("tumour", "anatomy")
        ),
    },
    Layout.MSD: {f"{part}Tr/synthetic-000.nii.gz" for part in ("images", "labels", "anatomy")},
}
OURS = {
    *(".lock", "synthesize.json", "volumes.jsonl"),
    *("dataset.json", "data-card.md", "croissant.json"),
}


@pytest.mark.parametrize("layout", list(Layout))
def test_every_layout_has_its_names_values_and_headers(
    run: Path, tmp_path: Path, layout: Layout
) -> None:
    out = tmp_path / "set"
    synthesize(run, out, wish(count=1, layout=layout, edits=(EditKind.SEVERAL,)))
    assert set(contents(out)) == NAMES[layout] | OURS
    told = about(out)
    (entry,) = told["training"]
    maps = [path for path in entry["files"] if "seg" in path or "labels" in path]
    anatomy = voxels(out / next(path for path in entry["files"] if "anatomy" in path))
    tumour = voxels(out / maps[0])
    assert set(np.unique(tumour)) == {int(value) for value in told["labels"]}
    assert set(np.unique(anatomy)) <= {int(value) for value in told["anatomy_labels"]}
    assert not (anatomy[tumour > 0]).any()
    for path in entry["files"]:
        image = nibabel.load(out / path)
        assert image.header["descrip"].tobytes().startswith(b"SYNTHETIC medsynth")
        np.testing.assert_allclose(image.affine, np.diag([7.5, 7.5, 7.5, 1.0]))
        assert image.shape[:3] == (24, 24, 24)
    if layout is Layout.MSD:
        assert (out / entry["image"]).is_file()
        assert nibabel.load(out / entry["image"]).shape == (24, 24, 24, 4)
        assert sorted(told["labels"]) == ["0", "1", "2", "3"]


def test_recorded_edits_replayed_on_the_recorded_map_give_the_labels(edited: Path) -> None:
    kinds = []
    for index, entry in enumerate(about(edited)["training"]):
        maps = {m.name: m for m in PhantomLabels(seed=5, grid=(24, 24, 24)).candidates(index)}
        edits = EDITS.validate_json(json.dumps(entry["edits"]))
        kinds.append(edits[0].kind)
        labels = apply_all(edits, maps[entry["labels"]].labels)
        name = entry["name"]
        tumour = voxels(edited / name / f"{name}-seg.nii.gz")
        anatomy = voxels(edited / name / f"{name}-anatomy.nii.gz")
        for value, tissue in BRATS_VALUES.items():
            if value != 3:
                np.testing.assert_array_equal(tumour == value, labels == tissue)
        np.testing.assert_array_equal(anatomy, np.where(np.isin(labels, TUMOUR), 0, labels))
    assert kinds == ["resized", "inserted", "resized", "inserted", "resized"]


def test_styles_take_turns_or_stay(run: Path, edited: Path, tmp_path: Path) -> None:
    assert [e["style"] for e in about(edited)["training"]] == [*SITES, *SITES, SITES[0]]
    synthesize(run, tmp_path / "set", wish(count=2, style="site-2"))
    assert [e["style"] for e in about(tmp_path / "set")["training"]] == ["site-2", "site-2"]


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(
    run: Path, edited: Path, tmp_path: Path
) -> None:
    asked = {"count": 5, "edits": (EditKind.LARGER, EditKind.INSERTED)}
    synthesize(run, tmp_path / "same", wish(**asked))
    assert contents(tmp_path / "same") == contents(edited)
    synthesize(run, tmp_path / "other", wish(**asked, seed=6))
    name = "synthetic-000/synthetic-000-t1n.nii.gz"
    assert contents(tmp_path / "other")[name] != contents(edited)[name]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_set_that_lost_files_is_completed_as_it_was(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(medsynth_server.synthesize, "_BATCH", {"cpu": batch})
    out = tmp_path / "set"
    synthesize(run, out, wish(count=4))
    whole = contents(out)
    for path in ("synthetic-003/synthetic-003-seg.nii.gz", "dataset.json", "data-card.md"):
        (out / path).unlink()
    with (out / "volumes.jsonl").open("a") as record:
        record.write('{"name": "torn')
    (out / "synthetic-003" / ".part-torn.nii.gz").write_bytes(b"half a file")
    kept = (out / "synthetic-000" / "synthetic-000-t1n.nii.gz").stat().st_mtime_ns
    synthesize(run, out, wish(count=4))
    assert contents(out) == whole
    assert (out / "synthetic-000" / "synthetic-000-t1n.nii.gz").stat().st_mtime_ns == kept


def test_kill_9_and_the_same_command_again_give_the_same_set(run: Path, tmp_path: Path) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "killed"
    synthesize(run, undisturbed, wish(count=12, edits=(EditKind.RANDOM,)))
    typed = [
        *(sys.executable, "-m", "medsynth_server", "synthesize", str(run), "--out", str(out)),
        *("--count", "12", "--edit", "random", "--seed", "5", "--licence", "CC0-1.0"),
    ]
    with subprocess.Popen(typed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        record = out / "volumes.jsonl"
        while process.poll() is None and not (record.exists() and record.stat().st_size):
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert len(record.read_text().splitlines()) < 12
    synthesize(run, out, wish(count=12, edits=(EditKind.RANDOM,)))
    assert contents(out) == contents(undisturbed)


def test_memory_does_not_grow_with_the_set(run: Path, tmp_path: Path) -> None:
    peaks = []
    for count in (3, 12):
        tracemalloc.start()
        synthesize(run, tmp_path / str(count), wish(count=count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.25 * peaks[0]


def test_a_drawn_seed_is_kept_when_the_set_is_gone_on_with(run: Path, tmp_path: Path) -> None:
    first = synthesize(run, tmp_path / "set", wish(count=1, seed=None))
    again = synthesize(run, tmp_path / "set", wish(count=1, seed=None))
    assert first.request == again.request


def label_folder(folder: Path, count: int = 2, statement: str | None = None) -> Path:
    folder.mkdir(parents=True)
    affine = np.array([[-2.0, 0, 0, 10], [0, 2.0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]])
    for number in range(count):
        labels = draw_labels(np.random.default_rng(number), (32, 32, 32), tumours=1)
        path = folder / f"head-{number}.nii.gz"
        write_volume(path, labels, affine, description="a label map")
    if statement is not None:
        (folder / "LABELS.toml").write_text(statement)
    return folder


PUBLIC = 'source = "public"\nlicence = "CC-BY-4.0"\ncredit = "Nobody 2020"\n'


def test_public_maps_are_painted_on_their_own_scale(run: Path, tmp_path: Path) -> None:
    labels = label_folder(tmp_path / "maps", statement=PUBLIC)
    synthesize(run, tmp_path / "set", wish(labels=labels, edits=(EditKind.MOVED,)))
    told = about(tmp_path / "set")
    assert [e["labels"] for e in told["training"]] == [f"head-{n}.nii.gz" for n in (0, 1, 0)]
    image = nibabel.load(tmp_path / "set" / "synthetic-000" / "synthetic-000-t1n.nii.gz")
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    assert 2.0 < spacing[0] < 3.2  # 2 mm voxels, a brain of nine tenths of 32 in 22 of 24
    np.testing.assert_allclose(spacing, spacing[0])
    card = (tmp_path / "set" / "data-card.md").read_text()
    assert "maps (public, CC-BY-4.0, credit: Nobody 2020)" in card
    assert str(tmp_path) not in "".join(
        text.decode() for name, text in contents(tmp_path / "set").items() if ".nii" not in name
    )


def test_a_synthetic_set_is_a_source_of_label_maps(run: Path, edited: Path, tmp_path: Path) -> None:
    synthesize(run, tmp_path / "set", wish(labels=edited, count=1))
    (entry,) = about(tmp_path / "set")["training"]
    assert entry["labels"] == "synthetic-000/synthetic-000-anatomy.nii.gz"
    tumour = voxels(tmp_path / "set" / "synthetic-000" / "synthetic-000-seg.nii.gz")
    before = voxels(edited / "synthetic-000" / "synthetic-000-seg.nii.gz")
    assert set(np.unique(tumour)) == set(np.unique(before))


@pytest.mark.parametrize("statement", [None, 'source = "private"\nlicence = "none"\n'])
def test_maps_that_nobody_calls_public_are_refused(
    run: Path, tmp_path: Path, statement: str | None
) -> None:
    labels = label_folder(tmp_path / "maps", statement=statement)
    with pytest.raises(PolicyRefusal, match="only maps that are public or synthetic") as refusal:
        synthesize(run, tmp_path / "set", wish(labels=labels))
    assert refusal.value.exit_code == 5
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("said", [{"source": "hospital"}, {"numTraining": 3}, ["source"]])
def test_the_description_of_other_data_is_no_statement(tmp_path: Path, said: object) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(said))
    with pytest.raises(PolicyRefusal):
        read_statement(tmp_path)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("source = ", "valid TOML"),
        ('source = "public"\n', "licence"),
        (PUBLIC + "[values]\n2 = 'whale'\n", "whale"),
        (PUBLIC + "author = 'x'\n", "author"),
    ],
)
def test_a_statement_that_cannot_be_read_is_told(
    tmp_path: Path, statement: str, words: str
) -> None:
    with pytest.raises(BadConfig, match=words):
        read_statement(label_folder(tmp_path / "maps", count=0, statement=statement))


def test_all_maps_that_cannot_be_used_are_told(run: Path, tmp_path: Path) -> None:
    values = PUBLIC + "[values]\n" + "".join(f"{v} = 'white'\n" for v in (1, 2, 3, 4, 5, 6, 7))
    labels = label_folder(tmp_path / "maps", statement=values)
    (labels / "cut.nii.gz").write_bytes((labels / "head-0.nii.gz").read_bytes()[:-9])
    with pytest.raises(BadData) as error:
        synthesize(run, tmp_path / "set", wish(labels=labels))
    assert len(error.value.problems) == 3
    assert "label values 8" in str(error.value)
    assert "cut short" in str(error.value)
    empty = label_folder(tmp_path / "empty", count=0, statement=PUBLIC)
    with pytest.raises(BadData, match="label maps"):
        synthesize(run, tmp_path / "set", wish(labels=empty))


def test_an_edit_that_no_map_allows_is_told(run: Path, tmp_path: Path) -> None:
    labels = label_folder(tmp_path / "maps", statement=PUBLIC)
    with pytest.raises(BadInput, match="edit inserted: got a map with tumour"):
        synthesize(run, tmp_path / "set", wish(labels=labels, edits=(EditKind.INSERTED,)))


def test_what_is_no_finished_run_is_told(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"no config\.toml, privacy\.json, weights"):
        synthesize(tmp_path, tmp_path / "set", wish())
    other = make_run(tmp_path / "other")
    text = (other / "config.toml").read_text().replace("detail_channels = 4", "detail_channels = 8")
    (other / "config.toml").write_text(text)
    with pytest.raises(BadData, match="weights of other networks"):
        synthesize(other, tmp_path / "set", wish())


def test_a_run_whose_own_set_is_withheld_makes_no_other(tmp_path: Path) -> None:
    withheld = make_run(tmp_path / "run")
    (withheld / "withheld").mkdir()
    with pytest.raises(PolicyRefusal, match="failed its release check"):
        synthesize(withheld, tmp_path / "set", wish())
    assert not (tmp_path / "set").exists()


def test_what_cannot_be_kept_is_told_before_anything_is_made(run: Path, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="mix, or one of site-1, site-2"):
        synthesize(run, tmp_path / "set", wish(style="site-9"))
    assert not (tmp_path / "set").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.docx").touch()
    with pytest.raises(BadConfig, match=r"thesis\.docx"):
        synthesize(run, tmp_path / "taken", wish())
    synthesize(run, tmp_path / "set", wish(count=1))
    with pytest.raises(BadConfig, match="begun with another seed, count"):
        synthesize(run, tmp_path / "set", wish(seed=9, count=2))
    with locked(tmp_path / "set"), pytest.raises(BadInput, match="another process"):
        synthesize(run, tmp_path / "set", wish(count=1))


def test_the_card_says_what_was_spent(edited: Path) -> None:
    card = (edited / "data-card.md").read_text()
    assert "epsilon 7.50 at delta 0.001, unit: patient" in card
    assert "mechanisms: level" in card
    assert "| training sites | 2 |" in card
    assert "| licence | CC0-1.0 |" in card
    for title in ("How it was made", "Intended use", "Not intended", "Known failure modes"):
        assert f"## {title}" in card
    privacy = about(edited)["privacy"]
    assert privacy["epsilon"] == 7.5
    assert (privacy["delta"], privacy["unit"], privacy["training_sites"]) == (1e-3, "patient", 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"protected": False}, "nothing bounds"), ({"seeded": True}, "this is a rehearsal")],
)
def test_the_card_says_when_nothing_is_promised(
    tmp_path: Path, changes: dict[str, bool], words: str
) -> None:
    run = make_run(tmp_path / "run", **changes)
    synthesize(run, tmp_path / "set", wish(count=1))
    card = " ".join((tmp_path / "set" / "data-card.md").read_text().split())
    assert words in card
    assert words in json.loads((tmp_path / "set" / "croissant.json").read_text())["description"]


def test_a_set_in_brats_names_can_be_read_for_a_release_check(edited: Path) -> None:
    assert len(read_synthetic_set(edited)) == 5


def test_croissant_names_what_is_there(edited: Path) -> None:
    told = json.loads((edited / "croissant.json").read_text())
    assert told["@type"] == "sc:Dataset"
    assert told["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    for key in ("name", "description", "license", "url", "creator", "datePublished", "version"):
        assert told[key], key
    listing, *sets = told["distribution"]
    content = (edited / listing["contentUrl"]).read_bytes()
    assert listing["sha256"] == hashlib.sha256(content).hexdigest()
    found: list[Path] = []
    for files in sets:
        globs = files["includes"]
        for glob in [globs] if isinstance(globs, str) else globs:
            found += edited.glob(glob)
    assert set(found) == set(edited.rglob("*.nii.gz"))
    first = json.loads(content.splitlines()[0])
    for field in told["recordSet"][0]["field"]:
        assert isinstance(first[field["source"]["extract"]["column"]], str)


def test_the_command_tells_facts_and_counts(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def typed(*arguments: object) -> int:
        given = ["medsynth-server", "synthesize", *map(str, arguments)]
        monkeypatch.setattr("sys.argv", given)
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0)

    out = tmp_path / "set"
    asked = (run, "--out", out, "--count", 2, "--edit", "removed", "--seed", 5)
    assert typed(*asked, "--format", "json") == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert (facts["volumes"], facts["seed"], facts["edits"]) == (2, 5, {"removed": 2})
    assert facts["privacy"]["epsilon"] == 7.5
    assert said.err.splitlines()[-1] == "volumes: 2 of 2"
    assert typed(*asked) == 0
    assert "epsilon 7.50 at delta 0.001, unit: patient" in capsys.readouterr().out
    assert voxels(out / "synthetic-000" / "synthetic-000-seg.nii.gz").max() == 0
    assert (voxels(out / "synthetic-000" / "synthetic-000-anatomy.nii.gz") == Tissue.WHITE).any()

    labels = label_folder(tmp_path / "maps")
    refused = (run, "--out", tmp_path / "no", "--count", 1, "--labels", labels)
    assert typed(*refused) == 5
    assert "no statement, wanted LABELS.toml" in capsys.readouterr().err
    assert typed(run, "--out", tmp_path / "no", "--count", 0) == 4
    assert typed(run, "--out", tmp_path / "no", "--count", 1, "--edit", "eaten") == 4
