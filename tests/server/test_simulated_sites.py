"""The hospitals of a simulation: who trains, who is held out, and what their own files say."""

import json
import tomllib
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from medsynth_common.dataset import PatientFiles, prepare
from medsynth_common.dataset.source import Source, load_patients
from medsynth_common.errors import BadConfig, BadData
from medsynth_server.simulated_sites import (
    SimulatedSite,
    check_delta,
    folder_sites,
    phantom_sites,
    require_same_sites,
    write_site,
)
from phantom_patients import bids, patient
from small_patients import write_patient
from tiny_run import tiny_config


def _trained_on(site: SimulatedSite) -> set[int]:
    first = site.source["seed"]
    return set(range(first, first + site.source["patients"]))


def test_phantom_sites_share_no_patient_and_hold_out_others_than_they_train_on() -> None:
    config = tiny_config({"federation": {"sites": 12, "patients": 50, "test_patients": 20}})
    sites = phantom_sites(config, seed=3)
    assert [site.name for site in sites[:3]] == ["site-01", "site-02", "site-03"]
    assert all(site.declared == 50 and len(site.held_out) == 20 for site in sites)
    groups = [_trained_on(site) for site in sites]
    groups += [{int(seed) for seed in site.held_out if isinstance(seed, int)} for site in sites]
    assert len(set().union(*groups)) == sum(map(len, groups)) == 12 * 70


def test_phantom_sites_depend_on_the_seed_and_on_nothing_else() -> None:
    config = tiny_config()
    assert phantom_sites(config, seed=3) == phantom_sites(config, seed=3)
    assert phantom_sites(config, seed=3) != phantom_sites(config, seed=4)
    one, other = phantom_sites(config, seed=3)
    assert one.source["scanner"] != other.source["scanner"]


def test_a_run_goes_on_with_no_other_sites(tmp_path: Path) -> None:
    """What was spent on the patients of one site must not be stated as another's nothing."""
    config = tiny_config()
    begun, other = phantom_sites(config, seed=3)
    require_same_sites(tmp_path, [begun])  # nothing has begun
    write_site(tmp_path / begun.name, begun, config)
    (tmp_path / "reference" / other.name).mkdir(parents=True)  # another arm's
    require_same_sites(tmp_path, [begun, other])  # it was cut before the second was written
    with pytest.raises(BadData, match="that began with site-1, wanted the sites of this command"):
        require_same_sites(tmp_path, [other])


def test_held_out_phantoms_are_read_on_the_training_grid() -> None:
    config = tiny_config()
    site = phantom_sites(config, seed=3)[0]
    (volume,) = site.load_held_out(config)
    assert volume.image.shape == (4, 24, 24, 24)
    assert volume.image.dtype == torch.float32
    assert volume.labels.shape == (24, 24, 24)
    assert site.load_trained_on(config, count=2) == []


def _site_of(root: Path, site: str, patients: int) -> None:
    for number in range(patients):
        seed = zlib.crc32(f"{site}-{number}".encode())  # a patient like no other site's
        write_patient(root / site / f"{site}-{number}", seed=seed)


def test_a_fifth_of_a_sites_real_patients_is_held_out_but_never_of_one_or_two(
    tmp_path: Path,
) -> None:
    for name, patients in (("a", 1), ("b", 2), ("c", 3), ("d", 11)):
        _site_of(tmp_path, name, patients)
    sites = {site.name: site for site in folder_sites(tmp_path, tiny_config())}
    assert {name: len(site.held_out) for name, site in sites.items()} == {
        **{"a": 0, "b": 0, "c": 1, "d": 2},
    }
    for site in sites.values():
        trained = site.source["patients"]
        held_out = [files.name for files in site.held_out if isinstance(files, PatientFiles)]
        assert not set(trained) & set(held_out)
        assert site.declared == len(trained)
        assert [files.name for files in site.trained_on] == trained


def test_real_patients_are_read_as_the_site_reads_them(tmp_path: Path) -> None:
    _site_of(tmp_path, "c", 3)
    config = tiny_config()
    (site,) = folder_sites(tmp_path, config)
    (held_out,), trained = site.load_held_out(config), site.load_trained_on(config, count=1)
    files = site.held_out[0]
    assert isinstance(files, PatientFiles)
    ready = prepare(files, (24, 24, 24), config.data)
    np.testing.assert_array_equal(held_out.image.numpy(), ready.image)
    np.testing.assert_array_equal(held_out.labels.numpy(), ready.labels)
    assert len(trained) == 1
    assert not torch.equal(trained[0].image, held_out.image)


def test_a_bids_folder_becomes_sites_whose_own_files_find_the_same_patients(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(3):
        images = patient(seed)
        if seed == 1:
            images["t2"] = images["t2"].clip(max=300)
        bids(tmp_path / "data", f"sub-{seed}", images)
    rows = "participant_id\tsite\nsub-0\tnorth\nsub-1\tsouth\nsub-2\tnorth\n"
    (tmp_path / "data" / "participants.tsv").write_text(rows)
    config = tiny_config()
    sites = {site.name: site for site in folder_sites(tmp_path / "data", config)}
    assert {name: site.source["patients"] for name, site in sites.items()} == {
        "north": ["sub-0", "sub-2"],
        "south": ["sub-1"],
    }
    (warning,) = [one.message for one in caplog.records if one.levelname == "WARNING"]
    assert warning.startswith("warning: south/sub-1: t2: got ")
    assert "wanted an image that is not clipped" in warning
    source = TypeAdapter(Source).validate_json(json.dumps(sites["north"].source))
    read = load_patients(source, config.grid, cache=tmp_path / "cache")
    looked_at = sites["north"].load_trained_on(config, count=2)
    for one, other in zip(read, looked_at, strict=True):
        assert torch.equal(one.labels, other.labels)


def test_site_names_that_no_record_can_hold_are_all_told(tmp_path: Path) -> None:
    for name in ("St. Mary", "-x", "good"):
        _site_of(tmp_path, name, 1)
    with pytest.raises(BadData) as caught:
        folder_sites(tmp_path, tiny_config())
    assert [problem.name for problem in caught.value.problems] == ["site '-x'", "site 'St. Mary'"]


def test_delta_must_be_below_one_patients_share_of_every_site() -> None:
    check_delta(1e-3, {"a": 999, "b": 1})
    with pytest.raises(BadConfig) as caught:
        check_delta(1e-3, {"a": 1000, "b": 10, "c": 5000})
    assert [problem.wanted for problem in caught.value.problems] == [
        "below 1/1000, a's patients",
        "below 1/5000, c's patients",
    ]


def test_a_sites_own_file_says_what_it_allows(tmp_path: Path) -> None:
    config = tiny_config({"privacy": {"epsilon": 4.0}})
    site = phantom_sites(config, seed=3)[0]
    write_site(tmp_path, site, config)
    written = tomllib.loads((tmp_path / "site.toml").read_text())
    assert written["name"] == "site-1"
    assert written["declared_patients"] == 3
    assert written["simulation_seed"] == config.seed
    assert written["policy"]["epsilon_cap"] == 5.0
    assert "allow_unprotected" not in written["policy"]


def test_only_a_site_of_the_unprotected_arm_lets_unprotected_mechanisms_pass(
    tmp_path: Path,
) -> None:
    config = tiny_config({"privacy": "off", "seed": None})
    write_site(tmp_path, phantom_sites(config, seed=3)[0], config)
    written = tomllib.loads((tmp_path / "site.toml").read_text())
    assert written["policy"]["allow_unprotected"] is True
    assert "simulation_seed" not in written


def test_a_run_goes_on_with_the_patients_it_began_with_only(tmp_path: Path) -> None:
    config = tiny_config()
    one, other = phantom_sites(config, seed=3)[0], phantom_sites(config, seed=4)[0]
    write_site(tmp_path, one, config)
    before = (tmp_path / "site.toml").read_bytes()
    write_site(tmp_path, one, config)
    with pytest.raises(BadData, match="began with other patients"):
        write_site(tmp_path, other, config)
    assert (tmp_path / "site.toml").read_bytes() == before
