"""A run's folder: whose it is, what may go on in it, and that one process writes to it."""

import subprocess
import sys
from pathlib import Path

import pytest

from medsynth_common.durable import replacing
from medsynth_common.errors import BadConfig, BadData, BadInput
from medsynth_server.config import dump_config
from medsynth_server.run_folder import RunFolder, open_run
from tiny_run import tiny_config


def _contents(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_new_folder_is_begun_and_the_same_settings_go_on_with_it(tmp_path: Path) -> None:
    config = tiny_config({"seed": 5})
    with open_run(tmp_path / "a" / "b", config) as (folder, seed):
        assert seed == 5
        assert folder.config.exists()
    before = _contents(tmp_path)
    with open_run(tmp_path / "a" / "b", config) as (_, again):
        assert again == 5
    assert _contents(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_mark_is_told(tmp_path: Path, content: bytes) -> None:
    with open_run(tmp_path, tiny_config()):
        pass
    (tmp_path / "run.json").write_bytes(content)
    with (
        pytest.raises(BadData, match=r"run.json: got a damaged file, wanted the run's public seed"),
        open_run(tmp_path, tiny_config()),
    ):
        pytest.fail("it was opened")


def test_without_a_seed_one_is_drawn_once(tmp_path: Path) -> None:
    config = tiny_config({"seed": None})
    seeds = []
    for name in ("a", "a", "b"):
        with open_run(tmp_path / name, config) as (_, seed):
            seeds.append(seed)
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all of it")
    before = _contents(tmp_path)
    with pytest.raises(BadConfig, match=r"holds 'thesis.tex'"), open_run(tmp_path, tiny_config()):
        pytest.fail("it was opened")
    assert _contents(tmp_path) == before


def test_a_users_own_config_toml_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("# mine\nseed = 5\n")
    with pytest.raises(BadConfig, match=r"holds 'config.toml'"), open_run(tmp_path, tiny_config()):
        pytest.fail("it was opened")
    assert (tmp_path / "config.toml").read_text() == "# mine\nseed = 5\n"


def test_a_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("mine")
    with pytest.raises(BadConfig, match="a file, wanted a folder"), open_run(path, tiny_config()):
        pytest.fail("it was opened")
    assert path.read_text() == "mine"


def test_a_run_with_other_settings_is_left_alone_and_the_difference_told(tmp_path: Path) -> None:
    with open_run(tmp_path, tiny_config({"seed": 5})):
        pass
    before = _contents(tmp_path)
    other = tiny_config({"seed": 6, "privacy": {"epsilon": 1.0}})
    with (
        pytest.raises(BadConfig, match=r"other settings \(seed, privacy\)"),
        open_run(tmp_path, other),
    ):
        pytest.fail("it was opened")
    assert _contents(tmp_path) == before


_HOLD = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_that_another_process_works_in_is_left_alone_until_that_ends(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BadInput, match="in use by another"), open_run(tmp_path, tiny_config()):
            pytest.fail("it was opened twice")
        assert _contents(tmp_path) == {}
        other.kill()
    with open_run(tmp_path, tiny_config()), pytest.raises(BadInput, match="in use by another"):
        open_run(tmp_path, tiny_config()).__enter__()


def test_a_crash_while_the_folder_was_begun_is_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "config.toml").write_text(dump_config(tiny_config({"seed": 5})))
    (tmp_path / ".part-abc.json").write_text("{")
    with open_run(tmp_path, tiny_config({"seed": 5})) as (folder, seed):
        assert seed == 5
        assert "seed = 5" in folder.config.read_text()
    assert not list(tmp_path.glob(".part-*"))


def test_what_a_crash_left_half_written_is_swept_up_when_the_run_goes_on(tmp_path: Path) -> None:
    with open_run(tmp_path, tiny_config()):
        pass
    deep = tmp_path / "sites" / "site-1" / "prepared"
    deep.mkdir(parents=True)
    (deep / "whole.safetensors").touch()
    with replacing(deep / "x.safetensors") as part:
        name = part.name  # what it is called is what a crash leaves
    (deep / "x.safetensors").rename(deep / name)
    with open_run(tmp_path, tiny_config()):
        assert [path.name for path in deep.iterdir()] == ["whole.safetensors"]


def test_steps_that_are_done_stay_done(tmp_path: Path) -> None:
    with open_run(tmp_path, tiny_config()) as (folder, _):
        assert not folder.finished("evaluate")
        folder.finish("evaluate")
    assert RunFolder(tmp_path).finished("evaluate")
    assert not RunFolder(tmp_path).finished("synthesize")


def test_each_arm_has_its_own_sites() -> None:
    folder = RunFolder(Path("run"))
    assert folder.sites("private") == Path("run/sites")
    assert folder.sites("reference") == Path("run/sites/reference")
