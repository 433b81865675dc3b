"""Pages of settings are whole: configuration.md, data.md and hospital.md have every key."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from medsynth_client.policy import SitePolicy
from medsynth_common.dataset import DataConfig
from medsynth_server.config import Privacy, RunConfig, parse_config

_DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
#: What a plan needs to say and a person does not choose.
_FIXED: Final = {"segment.stage", "segment.sites", "adversarial.stage"}


def _example() -> str:
    page = (_DOCS / "configuration.md").read_text(encoding="utf-8")
    found = re.search(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    assert found
    return found[1]


def _keys(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = Privacy if name == "privacy" else field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from () if inner is DataConfig else _keys(inner, f"{name}.")
        elif above + name not in _FIXED:
            yield above + name


def _with_optional_ones(example: str) -> str:
    """The example, keys that have no default brought in."""
    return re.sub(r"^# (\w+ = )", r"\1", example, flags=re.MULTILINE)


def test_the_page_s_example_is_the_defaults() -> None:
    assert parse_config(tomllib.loads(_example()), name="page") == RunConfig(name="my-run")


def test_the_page_s_optional_keys_are_understood() -> None:
    parse_config(tomllib.loads(_with_optional_ones(_example())), name="page")


def test_the_page_has_every_key() -> None:
    said = tomllib.loads(_with_optional_ones(_example()))
    for key in _keys(RunConfig):
        *tables, last = key.split(".")
        table = said[tables[0]] if tables else said
        assert last in table, key


def test_the_page_about_data_has_every_key() -> None:
    page = (_DOCS / "data.md").read_text(encoding="utf-8")
    assert [key for key in DataConfig.model_fields if f"| `{key}` |" not in page] == []


def test_the_page_for_hospitals_has_every_key_of_a_policy() -> None:
    page = (_DOCS / "hospital.md").read_text(encoding="utf-8")
    table = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    said = "".join(table)
    assert [key for key in SitePolicy.model_fields if f"`{key}`" not in said] == []
