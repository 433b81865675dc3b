"""The paper's table: what is trained on what, how crops are warped, and what the figures mean."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from medsynth_common.labels import Region
from medsynth_common.learning.volumes import Volume
from medsynth_common.scoring import RegionScores
from medsynth_server.cli import app
from medsynth_server.config import Table
from medsynth_server.fidelity.results import read_fidelity
from medsynth_server.record import Arm
from medsynth_server.table.cells import Cell, Column, Training, trainings
from medsynth_server.table.results import TrainingScores, read_table
from medsynth_server.table.statistics import comparisons_of, holm, results_of
from medsynth_server.table.train import Material, few, train
from medsynth_server.table.warp import Warp, cut
from tiny_run import tiny_config, tiny_volume, write_settings


def cell(column: Column = Column.REAL, *, augmented: bool = False) -> Cell:
    generator = None if column is Column.REAL else Arm.PRIVATE
    return Cell(column=column, generator=generator, architecture="unet", augmented=augmented)


def scores(dice: float | None) -> RegionScores:
    return RegionScores(
        dice=dice,
        hd95=None if dice is None else 4.0,
        lesion_dice=dice or 0.0,
        lesion_hd95=8.0,
        lesions=1,
        missed=0,
        false=0,
    )


def trained(column: Column, seed: int, *sites: list[float | None]) -> TrainingScores:
    return TrainingScores(
        training=Training(cell=cell(column), seed=seed),
        scores={
            f"site-{n}": tuple(dict.fromkeys(Region, scores(dice)) for dice in patients)
            for n, patients in enumerate(sites)
        },
        cpu_seconds=1.0,
    )


def test_every_cell_is_trained_with_every_seed() -> None:
    both = list(trainings(Table(seeds=2, architectures=("unet", "segresnet")), list(Arm)))
    # real once, the other columns once a generator; with and without; networks; seeds
    assert len(set(both)) == len(both) == (1 + 3 * 2) * 2 * 2 * 2
    assert {one.cell.generator for one in both if one.cell.column is Column.REAL} == {None}
    assert [one.seed for one in both] == sorted(one.seed for one in both)


def plain(volume: Volume, start: tuple[int, ...], crop: tuple[int, ...]) -> Volume:
    box = tuple(slice(at, at + side) for at, side in zip(start, crop, strict=True))
    return Volume(image=volume.image[(slice(None), *box)], labels=volume.labels[box])


def test_a_warp_of_nothing_is_the_crop() -> None:
    volume = tiny_volume()
    start, crop = (3, 5, 1), (16, 12, 20)
    found, wanted = cut(volume, Warp.none(), start=start, crop=crop), plain(volume, start, crop)
    assert torch.equal(found.labels, wanted.labels)
    assert torch.allclose(found.image, wanted.image, atol=1e-4)


def test_a_warp_shifts_and_turns_images_and_labels_together() -> None:
    volume = tiny_volume()
    here = Warp.none()
    shifted = Warp(
        angles=here.angles, shift=torch.tensor([2 / 24, 0.0, -1 / 24]), control=here.control
    )
    found = cut(volume, shifted, start=(4, 4, 4), crop=(16, 16, 16))
    wanted = plain(volume, (6, 4, 3), (16, 16, 16))
    assert torch.equal(found.labels, wanted.labels)
    assert torch.allclose(found.image, wanted.image, atol=1e-4)
    quarter = Warp(
        angles=torch.tensor([0.0, 0.0, torch.pi / 2]), shift=here.shift, control=here.control
    )
    turned = cut(volume, quarter, start=(0, 0, 0), crop=(24, 24, 24))
    assert torch.equal(turned.labels, torch.rot90(volume.labels, -1, (0, 1)))


def test_warps_are_drawn_repeatably_and_bend() -> None:
    one, other = (Warp.draw(torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(one.control, other.control)
    volume = tiny_volume()
    bent = cut(volume, one, start=(4, 4, 4), crop=(16, 16, 16))
    assert not torch.equal(bent.labels, volume.labels[4:20, 4:20, 4:20])
    assert set(bent.labels.flatten().tolist()) <= set(volume.labels.flatten().tolist())


def test_a_share_of_the_patients_is_drawn() -> None:
    volumes = [tiny_volume(seed) for seed in range(3)] * 7
    drawn = few(volumes, 0.1, torch.Generator().manual_seed(1))
    assert len(drawn) == 2
    assert len(few(volumes[:3], 0.1, torch.Generator())) == 1


@pytest.mark.parametrize("column", Column)
def test_a_segmenter_sees_what_its_column_says(column: Column) -> None:
    class Watched(list[Volume]):
        seen = 0

        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            self.seen += 1
            return super().__getitem__(index)

    real, made = Watched([tiny_volume(1)]), Watched([tiny_volume(2)])
    material = Material(real={"a": real}, synthetic={Arm.PRIVATE: made})
    settings = Table(steps=4, tuning_share=0.25)
    config = tiny_config()
    one, two = (
        train(Training(cell=cell(column), seed=3), material, config, settings) for _ in range(2)
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )
    used = {name for name, volumes in (("real", real), ("made", made)) if volumes.seen}
    wanted = {
        Column.REAL: {"real"},  # iterated into one pool, not indexed
        Column.BOTH: {"made"},
        Column.SYNTHETIC: {"made"},
        Column.TUNED: {"real", "made"},
    }[column]
    assert used | ({"real"} if column is Column.REAL else set()) == wanted


def test_a_cells_figures_are_of_patients_averaged_over_seeds() -> None:
    trainings_ = [
        trained(Column.REAL, 0, [0.4, None], [0.8]),
        trained(Column.REAL, 1, [0.6, None], [1.0]),
    ]
    (found,) = results_of(trainings_)
    whole = found.regions[Region.WHOLE]
    assert whole.dice is not None
    assert whole.dice.mean == pytest.approx(0.7)
    assert whole.dice.sd == pytest.approx(0.2)  # of 0.5 and 0.9
    assert whole.dice.seed_sd == pytest.approx(float(np.std([0.6, 0.8], ddof=1)))
    assert (whole.patients, found.seeds) == (2, 2)
    assert whole.per_site == {"site-0": pytest.approx(0.5), "site-1": pytest.approx(0.9)}
    assert whole.lesion_dice.mean == pytest.approx((0.5 + 0.0 + 0.9) / 3)  # all three patients


def test_holm_corrects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_cells_are_compared_with_real_patients_pair_by_pair() -> None:
    real = trained(Column.REAL, 0, [0.5, 0.6, 0.7, 0.8, 0.9, None])
    worse = trained(Column.SYNTHETIC, 0, [0.4, 0.4, 0.4, 0.4, 0.4, None])
    found = comparisons_of([real, worse])
    assert [one.region for one in found] == list(Region)
    for one in found:
        assert one.cell.column is Column.SYNTHETIC
        assert one.difference == pytest.approx(-0.3)
        assert one.patients == 5
        assert one.p == pytest.approx(1 / 16)
        assert one.p_holm == pytest.approx(3 / 16)


@pytest.mark.slow
def test_one_command_from_settings_to_the_table_and_again_for_nothing(tmp_path: Path) -> None:
    """Simulate, paint, train, measure, compare; a second call trains only what is new."""
    extra = "\n[table]\nseeds = 1\nsteps = 2\nsynthetic = 8\n"
    settings = write_settings(tmp_path, extra).read_text()
    settings = settings.replace(
        "patients = 3\ntest_patients = 1", "patients = 3\ntest_patients = 3"
    )
    (tmp_path / "tiny.toml").write_text(settings)
    out = tmp_path / "run"
    first = CliRunner().invoke(app, ["evaluate", str(tmp_path / "tiny.toml"), "--out", str(out)])
    assert first.exit_code == 0, first.output
    assert "Shin et al. 2018" in first.stdout
    assert "not re-checked" in first.stdout
    table = read_table(out / "evaluation")
    assert table is not None
    assert len(table.cells) == 8
    assert table.held_out == {"site-1": 3, "site-2": 3}
    fidelity = read_fidelity(out / "evaluation")
    assert fidelity is not None
    assert fidelity.volumes == 6
    assert set(fidelity.arms) == {Arm.PRIVATE}
    kept = {p.name: p.stat().st_mtime_ns for p in (out / "evaluation/trainings").iterdir()}
    assert len(kept) == 8
    page = (out / "report.html").read_text()
    assert "What synthetic volumes are worth" in page
    assert "how near real ones are" not in page  # the sections are filled, not missing
    second = CliRunner().invoke(app, ["evaluate", str(out), "--seeds", "2", "--format", "json"])
    assert second.exit_code == 0, second.output
    assert json.loads(second.stdout)["table"]["seeds"] == 2
    after = {p.name: p.stat().st_mtime_ns for p in (out / "evaluation/trainings").iterdir()}
    assert len(after) == 16
    assert {name: after[name] for name in kept} == kept
    refused = CliRunner().invoke(app, ["evaluate", str(tmp_path)])
    assert "no finished simulation" in str(refused.exception)
