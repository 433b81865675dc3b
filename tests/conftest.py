import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each file to one of the parallel workers, files with slow tests first.

    What a file's tests share is then made once, not once a worker; so is the finished run that
    tests of several files look at. And the end does not wait for a long file that began last.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        shared = "undisturbed" in getattr(item, "fixturenames", ())
        name = "undisturbed" if shared else str(item.path.relative_to(item.config.rootpath))
        item.add_marker(pytest.mark.xdist_group(name))


@pytest.hookimpl(tryfirst=True)  # before what tests of a module share is made, too
def pytest_runtest_setup() -> None:
    """Sums change with the number of threads, which a command that a test ran may have set."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _processes_find_the_packages() -> None:
    """Processes that tests start import what the tests do, installed or not."""
    house = Path(__file__).resolve().parents[1]
    roots = [str(house / root) for root in ("common", "client", "server")]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*roots, *([before] if before else [])])


@pytest.fixture
def volumes_folder() -> Path:
    """Where public volumes would be, whether they are there or not."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("MEDSYNTH_DATA", beside))


@pytest.fixture
def real_data(volumes_folder: Path) -> Path:
    """The folder of public volumes; tests that need it skip where it is absent."""
    if not volumes_folder.is_dir():
        pytest.skip(f"real volumes are absent: no folder {volumes_folder} (set MEDSYNTH_DATA)")
    return volumes_folder


@pytest.fixture
def socket() -> Iterator[Path]:
    """A short path: a Unix socket's holds about 100 characters."""
    folder = Path(tempfile.mkdtemp(prefix="medsynth-"))
    yield folder / "trainer.sock"
    shutil.rmtree(folder)
