"""Files stay short, are named for what they hold, and run nothing they were sent."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("common", "client", "server", "tests", "benchmarks", "deploy")
PACKAGES = ("common", "client", "server")
LONGEST = 500
#: Modules that run what they read, or read what may run.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal"}
UNSAFE_MODULES |= {"shelve"}
UNSAFE_BUILTINS = {"eval", "exec", "__import__"}


def python_files(house: Path, folders: tuple[str, ...]) -> Iterator[Path]:
    for folder in folders:
        for file in sorted((house / folder).rglob("*.py")):
            if not file.name.endswith(("_pb2.py", "_pb2_grpc.py")):
                yield file


def too_long(house: Path) -> list[str]:
    counted = {
        file.name: len(file.read_text(encoding="utf-8").splitlines())
        for file in python_files(house, FOLDERS)
    }
    return [f"{name}: {lines} lines" for name, lines in counted.items() if lines > LONGEST]


def named_for_nothing(house: Path) -> list[str]:
    names = {"utils.py", "util.py", "helpers.py", "misc.py"}
    return [file.name for file in python_files(house, FOLDERS) if file.name in names]


def unsafe(house: Path) -> list[str]:
    return [
        f"{file.name}:{line}: {what}"
        for file in python_files(house, PACKAGES)
        for line, what in _unsafe_parts(ast.parse(file.read_text(encoding="utf-8")))
    ]


def _unsafe_parts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save"):
                yield node.lineno, f"torch.{node.attr}"
            case ast.ImportFrom(module="torch", names=names):
                yield from ((node.lineno, a.name) for a in names if a.name in ("load", "save"))
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in UNSAFE_MODULES:
                yield node.lineno, module
            case ast.Import(names=names):
                roots = (alias.name.split(".")[0] for alias in names)
                yield from ((node.lineno, root) for root in roots if root in UNSAFE_MODULES)
            case ast.Call(func=ast.Name(id=name)) if name in UNSAFE_BUILTINS:
                yield node.lineno, name
            case ast.keyword(arg="allow_pickle", value=value):
                if not (isinstance(value, ast.Constant) and value.value is False):
                    yield node.lineno, "allow_pickle"


def test_files_are_short() -> None:
    assert too_long(ROOT) == []


def test_files_are_named_for_what_they_hold() -> None:
    assert named_for_nothing(ROOT) == []


def test_nothing_that_was_sent_is_run() -> None:
    assert unsafe(ROOT) == []


def plant(house: Path, name: str, text: str) -> None:
    path = house / "client" / name
    path.parent.mkdir()
    path.write_text(text)


@pytest.mark.parametrize(
    "line",
    [
        "weights = torch.load(path)",
        "torch.save(weights, path)",
        "from torch import load",
        "import pickle",
        "import numpy, pickle as p",
        "from pickle import loads",
        "from joblib.memory import x",
        "def f():\n    import shelve",
        "x = eval(text)",
        "exec(text)",
        "__import__(name)",
        "numpy.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=flag)",
    ],
)
def test_a_planted_danger_is_found(tmp_path: Path, line: str) -> None:
    plant(tmp_path, "planted.py", line)
    assert len(unsafe(tmp_path)) == 1


def test_what_only_looks_dangerous_passes(tmp_path: Path) -> None:
    harmless = "network.eval()\nsafetensors.torch.load(content)\nnumpy.load(p, allow_pickle=False)"
    plant(tmp_path, "planted.py", f'"""Never pickle; never torch.load."""\n{harmless}')
    assert unsafe(tmp_path) == []


def test_a_planted_long_or_nameless_file_is_found(tmp_path: Path) -> None:
    plant(tmp_path, "utils.py", "x = 1\n" * (LONGEST + 1))
    assert too_long(tmp_path) == ["utils.py: 501 lines"]
    assert named_for_nothing(tmp_path) == ["utils.py"]
