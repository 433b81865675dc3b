"""The cells of the table: what a segmenter is trained on, and how."""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Literal

from pydantic import Field

from medsynth_common.privacy.mechanism import Value
from medsynth_server.config import Table
from medsynth_server.record import Arm

Architecture = Literal["unet", "segresnet"]


class Column(StrEnum):
    """What a segmenter is trained on, in the paper's order."""

    REAL = "real"
    BOTH = "real + synthetic"
    SYNTHETIC = "synthetic only"
    TUNED = "synthetic, then some real"


class Cell(Value):
    """One cell of the table, whatever the seed.

    Attributes:
        column: what it is trained on.
        generator: the training whose generator painted the synthetic volumes; None for none.
        architecture: of the segmenter.
        augmented: whether by the usual augmentation.

    """

    column: Column
    generator: Arm | None
    architecture: Architecture
    augmented: bool


class Training(Value):
    """One training of a cell, by a number that its random draws come from."""

    cell: Cell
    seed: int = Field(ge=0)


def trainings(settings: Table, generators: Sequence[Arm]) -> Iterator[Training]:
    """List all trainings; seed by seed, so that a table that was stopped is whole up to there."""
    for seed in range(settings.seeds):
        for architecture in settings.architectures:
            for augmented in (False, True):
                for column in Column:
                    for generator in [None] if column is Column.REAL else generators:
                        cell = Cell(
                            column=column,
                            generator=generator,
                            architecture=architecture,
                            augmented=augmented,
                        )
                        yield Training(cell=cell, seed=seed)
