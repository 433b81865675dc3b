"""What a training remembers after every round: model and place, in one file, whole or not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from medsynth_common.durable import write_pieces
from medsynth_common.errors import BadData, Problem
from medsynth_common.safetensors_writer import pieces
from medsynth_server.model import Model


@dataclass(frozen=True, kw_only=True)
class Done:
    """How many rounds of each stage are finished."""

    rounds: Mapping[str, int] = field(default_factory=dict)

    def covers(self, stage: str, rounds: int) -> bool:
        """Whether so many rounds of the stage are behind us."""
        return self.rounds.get(stage, 0) >= rounds

    def next_round(self, stage: str) -> int:
        """The stage's first unfinished round."""
        return self.rounds.get(stage, 0) + 1

    def with_round(self, stage: str, round: int) -> "Done":
        """The same, with this round finished too."""
        return Done(rounds={**self.rounds, stage: round})

    def with_stage(self, stage: str, rounds: int) -> "Done":
        """The same, with the whole stage finished: it may have ended early."""
        return self.with_round(stage, rounds)


@dataclass(frozen=True)
class Checkpoint:
    """The file that holds the model after the last finished round."""

    path: Path

    def load(self, start: Model) -> tuple[Model, Done]:
        """Read model and place; before the first round, `start` and nothing done."""
        if not self.path.exists():
            return start, Done()
        try:
            with safe_open(self.path, framework="pt") as stored:
                done = json.loads((stored.metadata() or {})["done"])
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise BadData(
                Problem(
                    name=str(self.path),
                    value="an unreadable checkpoint",
                    wanted="one that this version wrote",
                    mend="give another --out folder",
                )
            ) from error
        return Model(networks=start.networks, tensors=tensors), Done(rounds=done)

    def store(self, model: Model, done: Done) -> None:
        """Replace the checkpoint."""
        metadata = {"done": json.dumps(dict(done.rounds))}
        write_pieces(self.path, pieces(model.tensors, metadata))
