"""A hospital of three phantoms, its patients already prepared."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from medsynth_common.dataset.source import PhantomSource, load_patients
from medsynth_common.phantom import SITE_SCANNERS
from tiny import FIRST_SEED, GRID, PATIENTS, SITE, NewSite

SOURCE = PhantomSource(scanner=SITE_SCANNERS[0], patients=PATIENTS, seed=FIRST_SEED)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared patients, as a site keeps them."""
    folder = tmp_path_factory.mktemp("prepared")
    load_patients(SOURCE, GRID, cache=folder)
    return folder


@pytest.fixture
def new_site(tmp_path: Path, prepared: Path) -> NewSite:
    def make(name: str = SITE, *, seed: int | None = 5, **policy: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(prepared, folder / "prepared")
        limits: dict[str, Any] = {
            "epsilon_cap": 8.0,
            "delta": 1e-5,
            "stages": ["moments", "segment", "adversarial"],
            "minimum_patients": 1,
        }
        values: dict[str, Any] = {
            "name": name,
            "declared_patients": PATIENTS,
            "policy": {**limits, **policy},
            "source": SOURCE.model_dump(mode="json"),
        }
        if seed is not None:
            values["simulation_seed"] = seed
        (folder / "site.toml").write_text(tomli_w.dumps(values))
        return folder

    return make
