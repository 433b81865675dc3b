"""Where the weights stand that come with medsynth. Apart, so that asking for a path loads no torch.

They are trained on phantoms alone, and belong to nobody; the recipe beside each remakes it.
"""

from pathlib import Path
from typing import Final

SUFFIX: Final = ".safetensors"


def shipped(name: str) -> Path:
    """Give the path of the shipped weights called `name`, such as `anatomy`."""
    return Path(__file__).parent / f"{name}{SUFFIX}"
