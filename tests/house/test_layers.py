"""client -> common <- server, and third-party packages show their faces in few files."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WINGS = ("common", "client", "server")
PACKAGES = {wing: f"medsynth_{wing}" for wing in WINGS}
#: Where a third-party package may be imported: paths, or beginnings of paths.
FACES = {
    "pydicom": ("client/medsynth_client/dicom.py",),
    "nibabel": ("common/medsynth_common/volumes.py",),
    "grpc": (
        "common/medsynth_common/wire/",
        "server/medsynth_server/engines/",
        "client/medsynth_client/trainer_link.py",
    ),
    "grpc_health": ("common/medsynth_common/wire/",),
    "httpx": ("client/medsynth_client/flower.py",),
    "opacus": ("common/medsynth_common/privacy/",),
    "dp_accounting": ("common/medsynth_common/privacy/pld.py",),
    "typer": (
        "client/medsynth_client/cli.py",
        "server/medsynth_server/cli.py",
        "server/medsynth_server/federation_commands.py",
        "server/medsynth_server/pretrain_commands.py",
    ),
    "click": ("common/medsynth_common/command_line.py",),
}
FACES["fastapi"] = ("server/medsynth_server/flower/desk.py",)
FACES["starlette"] = ()
FACES["uvicorn"] = ("server/medsynth_server/coordinator/door.py",)
PUBLIC_FLOWER = ("flwr.app", "flwr.serverapp", "flwr.clientapp")
FLOWER_ADAPTERS = ("server/medsynth_server/flower/", "client/medsynth_client/flower.py")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the house to break."""
    ignored = shutil.ignore_patterns("__pycache__")
    for wing in WINGS:
        shutil.copytree(ROOT / wing, tmp_path / wing, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def add_line(file: Path, line: str) -> None:
    file.write_text(file.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")


def lint_imports(house: Path) -> subprocess.CompletedProcess[str]:
    roots = os.pathsep.join(str(house / wing) for wing in WINGS)
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", lint, "--no-cache"],
        cwd=house,
        env={**os.environ, "PYTHONPATH": roots},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_layers_hold() -> None:
    found = lint_imports(ROOT)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "1 kept, 0 broken" in found.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("client/medsynth_client/site.py", "import medsynth_server.arm"),
        ("server/medsynth_server/simulate.py", "from medsynth_client import trainer"),
        ("common/medsynth_common/plan.py", "import medsynth_client.site"),
        ("common/medsynth_common/wire/forms.py", "from medsynth_server.model import Model"),
    ],
)
def test_a_planted_import_across_the_layers_is_found(house: Path, file: str, line: str) -> None:
    add_line(house / file, line)
    found = lint_imports(house)
    assert found.returncode == 1, found.stdout + found.stderr
    assert "BROKEN" in found.stdout


def imports(house: Path) -> Iterator[tuple[str, str]]:
    """Every file with every module it imports; `from a import b` may be the module `a.b`."""
    for wing, package in PACKAGES.items():
        for file in sorted((house / wing / package).rglob("*.py")):
            name = file.relative_to(house).as_posix()
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    yield from ((name, alias.name) for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    yield from ((name, f"{node.module}.{alias.name}") for alias in node.names)


def faces_out_of_place(house: Path) -> list[str]:
    return [
        f"{file} imports {module}"
        for file, module in imports(house)
        if not file.startswith(FACES.get(module.partition(".")[0], ""))
    ]


def private_flower(house: Path) -> list[str]:
    return [
        f"{file} imports {module}"
        for file, module in imports(house)
        if module.split(".")[0] == "flwr"
        and not f"{module}.".startswith(tuple(f"{name}." for name in PUBLIC_FLOWER))
        and not file.startswith(FLOWER_ADAPTERS)
    ]


def test_third_party_packages_show_their_faces_in_few_files() -> None:
    assert faces_out_of_place(ROOT) == []


def test_flower_s_private_names_stand_in_one_package() -> None:
    assert private_flower(ROOT) == []


@pytest.mark.parametrize(
    ("check", "file", "line"),
    [
        (faces_out_of_place, "client/medsynth_client/site.py", "import nibabel as nib"),
        (faces_out_of_place, "client/medsynth_client/site.py", "from grpc import aio"),
        (faces_out_of_place, "client/medsynth_client/trainer.py", "import grpc"),
        (faces_out_of_place, "server/medsynth_server/budget.py", "from opacus import accountants"),
        (faces_out_of_place, "server/medsynth_server/simulate.py", "import typer"),
        (faces_out_of_place, "client/medsynth_client/cli.py", "def f():\n    import click"),
        (private_flower, "server/medsynth_server/federation.py", "from flwr import common"),
        (private_flower, "client/medsynth_client/site.py", "import flwr.supercore.run"),
        (private_flower, "common/medsynth_common/wire/records.py", "import flwr"),
        (private_flower, "server/medsynth_server/arm.py", "from flwr.application import x"),
    ],
)
def test_a_planted_face_is_found(
    house: Path, check: Callable[[Path], list[str]], file: str, line: str
) -> None:
    add_line(house / file, line)
    [found] = check(house)
    assert found.startswith(f"{file} imports ")
