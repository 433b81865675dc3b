"""The report's table and fidelity: the paper's layout, every figure beside its control."""

from pathlib import Path

from made_up_evaluation import fidelity, table
from made_up_run import SITES, write_run
from medsynth_server.fidelity.features import Plane
from medsynth_server.report import build_report
from medsynth_server.report.folder import RunFolder
from medsynth_server.report.sections.fidelity import fidelity as fidelity_section
from medsynth_server.report.sections.table import table as table_section
from medsynth_server.table.telling import tell


def test_the_table_has_the_papers_layout_and_its_figures_are_marked(tmp_path: Path) -> None:
    page = build_report(write_run(tmp_path, patients=1)).read_text()
    for words in (
        "What synthetic volumes are worth",
        "Shin et al. 2018 (arXiv 1807.10225)",
        "not re-checked against the printed paper",
        "0.64 ± 0.14",  # the paper's first
        "U-Net, no augmentation",
        "synthetic, then some real",
        "ε = 7.91",
        "Holm over all 36 tests",
    ):
        assert words in page
    section = table_section(RunFolder.read(tmp_path))
    assert section is not None
    groups = section.facts["groups"]
    assert isinstance(groups, list)
    assert [group["name"] for group in groups] == ["ε = 7.91", "no privacy"]
    assert [len(row) for group in groups for row in group["rows"].values()] == [4] * 4


def test_the_printed_table_says_the_same() -> None:
    told = tell(table(SITES))
    for words in ("0.64 ± 0.14", "0.85 ± 0.15", "generator: no privacy", "12 held-out phantoms"):
        assert words in told


def test_every_figure_stands_beside_the_control(tmp_path: Path) -> None:
    write_run(tmp_path, patients=1)
    section = fidelity_section(RunFolder.read(tmp_path))
    assert section is not None
    rows, sets = section.facts["rows"], section.facts["sets"]
    assert isinstance(rows, list)
    assert isinstance(sets, list)
    assert sets[0][0] == "real, other half"
    assert {len(row["figures"]) for row in rows} == {len(sets)} == {3}
    axial = next(row for row in rows if row["name"] == "Fréchet distance, axial slices")
    assert axial["figures"][0] == f"{fidelity(SITES).control.planes[Plane.AXIAL].frechet:.3f}"
    sites = section.facts["sites"]
    assert isinstance(sites, dict)
    assert sites.keys() == set(SITES)


def test_a_run_that_was_not_evaluated_lacks_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, patients=1)
    for file in (tmp_path / "evaluation").iterdir():
        file.unlink()
    page = build_report(tmp_path).read_text()
    assert "What synthetic volumes are worth" not in page
    assert "This record is not complete" not in page
