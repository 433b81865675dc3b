"""The generated messages are those of site.proto; every command shows an example."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from grpc_tools import protoc
from typer.testing import CliRunner

from medsynth_client import cli as client_cli
from medsynth_server import cli as server_cli

COMMON = Path(__file__).resolve().parents[2] / "common"
PROTO = Path("medsynth_common/wire/site.proto")
#: The generator writes its own version down; another version of it may write the same messages.
VERSION = re.compile(r"# Protobuf Python Version: .*|^    \d+,$", re.MULTILINE)


def generated(root: Path, out: Path) -> dict[str, str]:
    """What protoc makes of the contract in `root`."""
    out.mkdir()
    arguments = [
        "protoc",
        f"-I{root}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        str(root / PROTO),
    ]
    assert protoc.main(arguments) == 0
    return files(out)


def files(root: Path) -> dict[str, str]:
    made = [(root / PROTO).with_name(f"site_pb2{suffix}") for suffix in (".py", ".pyi")]
    return {path.name: VERSION.sub("", path.read_text(encoding="utf-8")) for path in made}


def test_the_messages_are_those_of_the_contract(tmp_path: Path) -> None:
    assert generated(COMMON, tmp_path / "out") == files(COMMON)


def test_a_field_that_was_slipped_into_the_contract_is_found(tmp_path: Path) -> None:
    contract = (COMMON / PROTO).read_text(encoding="utf-8")
    changed = contract.replace("string name = 1;", "string name = 1; string text = 2;")
    assert changed != contract
    (tmp_path / PROTO).parent.mkdir(parents=True)
    (tmp_path / PROTO).write_text(changed, encoding="utf-8")
    assert generated(tmp_path, tmp_path / "out") != files(COMMON)


def commands(app: typer.Typer) -> Iterator[list[str]]:
    """The words that lead to each command of a program."""

    def walk(command: Any, words: list[str]) -> Iterator[list[str]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            yield words
        for name, below in (inner or {}).items():
            yield from walk(below, [*words, name])

    return walk(typer.main.get_command(app), [])


PROGRAMS = {"medsynth-client": client_cli.app, "medsynth-server": server_cli.app}
COMMANDS = [(name, words) for name, app in PROGRAMS.items() for words in commands(app)]


@pytest.mark.parametrize(("program", "words"), COMMANDS, ids=lambda value: "-".join(value))
def test_every_command_shows_an_example(program: str, words: list[str]) -> None:
    shown = CliRunner().invoke(PROGRAMS[program], [*words, "--help"])
    assert shown.exit_code == 0
    assert f"Example: {' '.join([program, *words])}" in " ".join(shown.output.split())


def test_the_commands_are_all_looked_at() -> None:
    assert {"trainer", "privacy", "audit", "simulate", "report"} <= {w[0] for _, w in COMMANDS}
