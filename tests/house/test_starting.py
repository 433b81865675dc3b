"""What starts often or waits for a network does not load what takes seconds."""

import subprocess
import sys

import pytest

HEAVY = ("opacus", "monai", "matplotlib", "scipy.stats")
COMMAND_LINES = ("medsynth_client.cli", "medsynth_server.cli")


def loaded_by(module: str, packages: tuple[str, ...]) -> list[str]:
    told = f"import sys, {module}; print(*(m for m in {packages!r} if m in sys.modules))"
    command = [sys.executable, "-c", told]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("module", ["medsynth_client.supervisor", "medsynth_client.node"])
def test_a_node_waits_for_no_heavy_package(module: str) -> None:
    assert loaded_by(module, HEAVY) == []


@pytest.mark.parametrize("module", COMMAND_LINES)
def test_a_command_line_waits_for_no_torch(module: str) -> None:
    assert loaded_by(module, (*HEAVY, "torch", "flwr")) == []


def test_a_heavy_package_is_seen() -> None:
    assert loaded_by("medsynth_common.privacy.accountant", HEAVY) != []
