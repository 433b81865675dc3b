import math
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from medsynth_client.site_file import SiteFile
from medsynth_common.dataset.source import FolderSource, PhantomSource
from medsynth_common.errors import BadConfig
from medsynth_common.phantom import SITE_SCANNERS

GOOD: dict[str, Any] = {
    "name": "site-a",
    "declared_patients": 20,
    "source": {
        "kind": "phantom",
        "scanner": SITE_SCANNERS[0].model_dump(mode="json"),
        "patients": 20,
        "seed": 3,
    },
    "policy": {
        "epsilon_cap": 8,
        "delta": 1e-5,
        "stages": ["moments"],
        "minimum_patients": 10,
    },
}


def load(tmp_path: Path, values: dict[str, Any] | str) -> SiteFile:
    path = tmp_path / "site.toml"
    path.write_text(values if isinstance(values, str) else tomli_w.dumps(values))
    return SiteFile.load(path)


def test_a_site_of_phantoms(tmp_path: Path) -> None:
    site = load(tmp_path, GOOD)
    assert isinstance(site.source, PhantomSource)
    assert site.source.names()[:2] == ["phantom-3", "phantom-4"]
    assert len(site.source.names()) == 20
    assert site.source.scanner == SITE_SCANNERS[0]
    assert site.simulation_seed is None  # a hospital has none
    assert site.policy.epsilon_cap == 8


def test_a_site_of_a_folder(tmp_path: Path) -> None:
    source = {
        "kind": "folder",
        "root": "/data",
        "data": {},
        "site": "a",
        "patients": ["p-1", "p-2"],
    }
    site = load(tmp_path, GOOD | {"source": source})
    assert isinstance(site.source, FolderSource)
    assert site.source.names() == ["p-1", "p-2"]


def test_a_rehearsal_without_a_cap(tmp_path: Path) -> None:
    free = GOOD["policy"] | {"epsilon_cap": math.inf, "allow_unprotected": True}
    site = load(tmp_path, GOOD | {"policy": free, "simulation_seed": 7})
    assert math.isinf(site.policy.epsilon_cap)
    assert site.simulation_seed == 7


def test_every_problem_is_told(tmp_path: Path) -> None:
    values = GOOD | {
        "name": "site a",
        "declared_patients": 0,
        "policy": GOOD["policy"] | {"delta": 2.0, "epsilon_cp": 3},
        "surprise": 1,
    }
    with pytest.raises(BadConfig) as caught:
        load(tmp_path, values)
    places = {problem.name.rpartition(": ")[2] for problem in caught.value.problems}
    assert places == {
        "name",
        "declared_patients",
        "policy.delta",
        "policy.epsilon_cp",
        "surprise",
    }
    assert all("site.toml" in problem.name for problem in caught.value.problems)


def test_every_problem_of_the_policy_is_told_with_the_nearest_key(tmp_path: Path) -> None:
    limits = {
        "epsilon_cp": 8,
        "delta": 2.0,
        "stages": "segment",
        "minimum_patients": True,
        "maximum_norm": math.nan,
    }
    with pytest.raises(BadConfig) as caught:
        load(tmp_path, GOOD | {"policy": limits})
    told = {problem.name.rpartition("policy.")[2]: problem for problem in caught.value.problems}
    assert set(told) == {*limits, "epsilon_cap"}
    assert told["epsilon_cp"].mend == "did you mean epsilon_cap?"
    assert told["epsilon_cap"].value == "nothing"
    assert "2.0" in str(told["delta"])


def test_a_policy_whose_keys_contradict_each_other_is_told(tmp_path: Path) -> None:
    contrary = GOOD["policy"] | {"minimum_clip": 2.0, "maximum_clip": 1.0}
    with pytest.raises(BadConfig, match=r"policy: .* minimum_clip must be at most maximum_clip"):
        load(tmp_path, GOOD | {"policy": contrary})
    with pytest.raises(BadConfig, match="policy"):
        load(tmp_path, GOOD | {"policy": 3})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name = ", "TOMLDecodeError"),
        ("name = 1979-05-27\n", "name"),
        ("[source]\nkind = 'cloud'\n", "source"),
        ("", "source"),
    ],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadConfig, match=told):
        load(tmp_path, text)


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(BadConfig, match="UnicodeDecodeError"):
        SiteFile.load(path)
    with pytest.raises(BadConfig, match="FileNotFoundError"):
        SiteFile.load(tmp_path / "other.toml")
