"""What a bench has done so far: models and rows as files, so that it goes on where it was cut."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import benchmarks.utility
import medsynth_client
import medsynth_common
import medsynth_server
from medsynth_common.durable import write_json
from medsynth_common.tensors import tensors_digest
from medsynth_server.checkpoint import Checkpoint, Done
from medsynth_server.config import RunConfig, dump_config
from medsynth_server.model import Model


def _sources() -> str:
    digest = hashlib.sha256()
    for root in (medsynth_common, medsynth_client, medsynth_server, benchmarks.utility):
        folder = Path(root.__path__[0])
        for file in sorted(folder.rglob("*.py")):
            digest.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


#: Digest of all code that a row depends on, as it was when this process began.
SOURCES: Final = _sources()


@dataclass(frozen=True)
class Kept:
    """A folder of finished work; work of other settings or start weights has another name."""

    folder: Path

    def model(
        self,
        config: RunConfig,
        stages: Iterable[str],
        start: Model,
        sites: Iterable[str],
        train: Callable[[], Model],
    ) -> Model:
        """Give the model that these settings lead to, trained once."""
        name = _digest(dump_config(config), *stages, *sites, tensors_digest(start.tensors).hex())
        checkpoint = Checkpoint(self.folder / f"{name}.safetensors")
        if checkpoint.path.exists():
            return checkpoint.load(start)[0]
        model = train()
        checkpoint.store(model, Done())
        return model

    @staticmethod
    def about(public: Model, setting: str) -> str:
        """Say what rows depend on beside their names."""
        return _digest(tensors_digest(public.tensors).hex(), setting)

    def row(
        self, name: str, about: str, measure: Callable[[], Mapping[str, float]]
    ) -> Mapping[str, float]:
        """Give a row's figures, measured once; `about` says of what beside its name."""
        path = self.folder / f"row-{_digest(name, about)}.json"
        if path.exists():
            found: dict[str, float] = json.loads(path.read_text())["measured"]
            return found
        measured = dict(measure())
        write_json(path, {"row": name, "measured": measured})
        return measured


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]
