from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from benchmarks.crash_matrix import Undisturbed, run_undisturbed

from tiny_run import write_settings


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """Choose kernels as trainers and coordinator do."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny settings as a file."""
    return write_settings(tmp_path_factory.mktemp("settings"))


@pytest.fixture(scope="session")
def undisturbed(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A finished run, made by the command line; not to be changed."""
    return run_undisturbed(settings, tmp_path_factory.mktemp("undisturbed") / "run")
