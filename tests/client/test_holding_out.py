"""A site's hold-out: drawn by its own key, moved by nobody else's coming or going."""

from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from medsynth_client.holding_out import patients_of
from medsynth_client.ledger import Ledger
from medsynth_client.pseudonyms import Pseudonyms
from medsynth_client.site import Site
from medsynth_client.site_file import SiteFile
from medsynth_client.site_record import read_site
from medsynth_client.spending import epsilon_of
from medsynth_common.errors import BadConfig
from medsynth_common.phantom import SITE_SCANNERS
from medsynth_common.privacy.mechanism import Gaussian
from tiny import GRID, NewSite

PEOPLE = [f"patient-{number}" for number in range(400)]


def site_file(folder: Path, names: list[str], held_out: Any) -> SiteFile:
    values = {
        "name": "site-a",
        "declared_patients": len(names),
        "held_out": held_out,
        "policy": {"epsilon_cap": 8.0, "delta": 1e-5, "stages": ["moments"], "minimum_patients": 1},
        "source": {"kind": "folder", "root": "/data", "data": {}, "patients": names},
    }
    folder.mkdir(exist_ok=True)
    (folder / "site.toml").write_text(tomli_w.dumps(values))
    return SiteFile.load(folder / "site.toml")


def held_out(folder: Path, names: list[str], wanted: Any = 0.25) -> tuple[str, ...]:
    return patients_of(site_file(folder, names, wanted), folder).held_out


def test_a_share_is_drawn_and_nobody_is_in_both(tmp_path: Path) -> None:
    patients = patients_of(site_file(tmp_path, PEOPLE, 0.25), tmp_path)
    assert 60 < len(patients.held_out) < 140
    assert sorted(patients.training + patients.held_out) == sorted(PEOPLE)
    assert not set(patients.training) & set(patients.held_out)
    assert patients_of(site_file(tmp_path, PEOPLE, 0.0), tmp_path).held_out == ()


def test_patients_who_come_or_go_move_nobody_else(tmp_path: Path) -> None:
    before = set(held_out(tmp_path, PEOPLE))
    fewer = set(held_out(tmp_path, PEOPLE[:300]))
    more = set(held_out(tmp_path, [*reversed(PEOPLE), "a new one"]))
    assert fewer == before & set(PEOPLE[:300])
    assert more - {"a new one"} == before
    assert before < set(held_out(tmp_path, PEOPLE, 0.5))  # a larger share keeps them out


def test_another_sites_key_draws_others(tmp_path: Path) -> None:
    one, other = (set(held_out(tmp_path / name, PEOPLE)) for name in ("a", "b"))
    assert one != other


def test_names_can_be_listed(tmp_path: Path) -> None:
    assert held_out(tmp_path, PEOPLE, ["patient-3", "patient-1"]) == ("patient-1", "patient-3")
    with pytest.raises(BadConfig, match="held_out: got 'nobody', wanted one of the source's"):
        held_out(tmp_path, PEOPLE, ["nobody"])
    with pytest.raises(BadConfig, match="somebody left to train on"):
        held_out(tmp_path, ["only"], ["only"])


@pytest.mark.parametrize("wrong", [-0.1, 0.95, "many", [1]])
def test_what_is_no_share_and_no_list_is_told(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(BadConfig, match="held_out"):
        site_file(tmp_path, PEOPLE, wrong)


def test_the_key_is_the_one_the_ledger_takes(tmp_path: Path) -> None:
    before = held_out(tmp_path, PEOPLE)
    key = Pseudonyms(tmp_path / "ledger.db.key").fingerprint
    Ledger(tmp_path / "ledger.db", cap=8.0, delta=1e-5, epsilon=epsilon_of)
    assert Pseudonyms(tmp_path / "ledger.db.key").fingerprint == key
    assert held_out(tmp_path, PEOPLE) == before


def test_the_trainer_neither_trains_on_them_nor_charges_them(new_site: NewSite) -> None:
    folder = new_site()
    text = (folder / "site.toml").read_text()
    (folder / "site.toml").write_text('held_out = ["phantom-101"]\n' + text)
    site = Site(folder, device=torch.device("cpu"))
    assert len(site.patients(GRID)) == 2
    record = read_site(folder)
    assert record.patients == 2
    assert SITE_SCANNERS[0].name in text


def test_who_comes_again_stays_in_his_half(tmp_path: Path) -> None:
    """A folder's patient is named after a visit until there is another one."""
    once = [f"BraTS-GLI-{number:05}-000" for number in range(400)]
    again = [name.removesuffix("-000") for name in once]
    first = patients_of(site_file(tmp_path, once, 0.25), tmp_path)
    assert 60 < len(first.held_out) < 140
    later = patients_of(site_file(tmp_path, again, 0.25), tmp_path)
    assert [f"{name}-000" for name in later.held_out] == list(first.held_out)
    assert later.people == first.people == later.training


def test_who_comes_again_has_spent_what_he_has_spent(tmp_path: Path) -> None:
    def spent(name: str) -> float:
        patients = patients_of(site_file(tmp_path, [name, "another"], 0.0), tmp_path)
        ledger = Ledger(tmp_path / "ledger.db", cap=8.0, delta=1e-5, epsilon=epsilon_of)
        ledger.register_dataset(patients.people)
        return ledger.spent()

    assert spent("BraTS-GLI-00001-000") == 0
    ledger = Ledger(tmp_path / "ledger.db", cap=8.0, delta=1e-5, epsilon=epsilon_of)
    ledger.register_dataset(["BraTS-GLI-00001", "another"])
    charge = Gaussian(name="level", clip=1.0, noise_multiplier=2.0, sampling_rate=1.0, steps=1)
    ledger.reserve(project="a", stage="moments", round=1, plan_digest="0" * 64, mechanism=charge)
    assert spent("BraTS-GLI-00001-000") == spent("BraTS-GLI-00001") > 1
    assert read_site(tmp_path).patients == 2  # and never a third


def test_two_names_of_one_visit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="p1_ses-1 and p1-ses-1, wanted p1 once"):
        held_out(tmp_path, ["p1_ses-1", "p1-ses-1", "p2"])
