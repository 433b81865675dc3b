"""Where `synthesize` takes label maps from: drawn ones, or a folder that says they are public.

The generator may see public label maps only: a label map shows where a patient's tumour lies, and
what is painted from a private one would carry that out of its hospital past all noise. A folder
cannot be asked whose it is, so whoever gives it must say so, in writing, beside the maps:

    LABELS.toml      source = "public" or "synthetic", its licence, whom to credit
    dataset.json     of a set that medsynth made: "source": "synthetic"
"""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from medsynth_common.dataset.brain import bounding_box
from medsynth_common.dataset.config import NamedTissue
from medsynth_common.dataset.frame import Shape, fit_frame
from medsynth_common.dataset.prepare import to_tissue
from medsynth_common.errors import BadConfig, BadData, PolicyRefusal, Problem
from medsynth_common.labels import BRATS_VALUES, Tissue
from medsynth_common.phantom import draw_labels
from medsynth_common.phantom.anatomy import Labels
from medsynth_common.plan import problems_of
from medsynth_common.privacy.mechanism import Value
from medsynth_common.set_layout import phantom_affine
from medsynth_common.synthetic_set import DATASET_FILE
from medsynth_common.volumes import read_volume

STATEMENT: Final = "LABELS.toml"
_PUBLIC: Final = ("public", "synthetic")
ANATOMY_ENDING, _TUMOUR_ENDING = "-anatomy.nii.gz", "-seg.nii.gz"
#: Phantoms are drawn as they come, then with a tumour, then without: some edits want either.
_TUMOURS: Final = (None, 1, 0)

Affine = NDArray[np.float64]


class Statement(Value):
    """What a person says of a folder of label maps.

    Attributes:
        source: `public` or `synthetic`; anything else is refused.
        licence: under which the maps may be used.
        credit: whom to name, such as a paper or a DOI.
        values: what the maps' values mean, where they are not `Tissue`'s own; `background` for a
            value to pass over.

    """

    source: str
    licence: str = Field(min_length=1)
    credit: str = ""
    values: Mapping[Annotated[int, Field(ge=0)], NamedTissue] = {
        int(tissue): tissue for tissue in Tissue
    }


PHANTOMS: Final = Statement(source="synthetic", licence="Apache-2.0", credit="medsynth phantoms")


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelMap:
    """A label map to paint: its name, `Tissue` values (x, y, z), and voxels to mm, (4, 4)."""

    name: str
    labels: Labels
    affine: Affine


class LabelSource(Protocol):
    """Public label maps."""

    @property
    def statement(self) -> Statement:
        """What is said of them."""

    def candidates(self, index: int) -> Iterator[LabelMap]:
        """Give maps for volume `index`, the next for when one cannot be edited as asked."""


@dataclass(frozen=True, kw_only=True)
class PhantomLabels:
    """Procedural anatomy and tumours; they belong to nobody."""

    seed: int
    grid: Shape
    statement: Statement = PHANTOMS

    def candidates(self, index: int) -> Iterator[LabelMap]:
        """Draw heads; the same seed and index draw the same ones."""
        for attempt, tumours in enumerate(_TUMOURS):
            rng = np.random.default_rng([self.seed, index, attempt])
            yield LabelMap(
                name=f"phantom {self.seed}/{index}/{attempt}",
                labels=draw_labels(rng, self.grid, tumours=tumours),
                affine=phantom_affine(self.grid),
            )


@dataclass(frozen=True, kw_only=True)
class FolderLabels:
    """Maps of a folder that says they are public, each fitted to the run's grid."""

    folder: Path
    grid: Shape
    statement: Statement
    maps: Sequence[Path]

    @classmethod
    def open(cls, folder: Path, grid: Shape) -> "FolderLabels":
        """Read the folder's statement and check every map.

        Raises:
            PolicyRefusal: nobody says that the maps are public or synthetic.
            BadConfig: the statement cannot be read.
            BadData: there are no maps, or some cannot be used; all are told.

        """
        statement = read_statement(folder)
        pairs = sorted(folder.rglob(f"*{ANATOMY_ENDING}"))
        found = pairs or sorted([*folder.rglob("*.nii.gz"), *folder.rglob("*.nii")])
        source = cls(folder=folder, grid=grid, statement=statement, maps=found)
        source._check()
        return source

    def candidates(self, index: int) -> Iterator[LabelMap]:
        """Give every map, beginning with the one whose turn it is."""
        for step in range(len(self.maps)):
            yield self._read(self.maps[(index + step) % len(self.maps)])

    def _check(self) -> None:
        problems = []
        if not self.maps:
            problems.append(
                Problem(name=str(self.folder), value="no .nii or .nii.gz file", wanted="label maps")
            )
        for path in self.maps:
            try:
                self._tissues(path)
            except BadData as error:
                problems.extend(error.problems)
        if problems:
            raise BadData(problems)

    def _tissues(self, path: Path) -> tuple[Labels, Affine]:
        """Read a map as it is, with its affine."""
        read = read_volume(path)
        labels = tissues_of(path, read.data, self.statement)
        if not (labels != Tissue.BACKGROUND).any():
            raise BadData(Problem(name=str(path), value="background alone", wanted="a brain"))
        return labels, read.affine

    def _read(self, path: Path) -> LabelMap:
        labels, affine = self._tissues(path)
        box = bounding_box(labels != Tissue.BACKGROUND)
        affine = affine.copy()
        affine[:3, 3] = (affine @ [*(side.start for side in box), 1.0])[:3]
        cut = labels[box]
        frame = fit_frame((cut.shape[0], cut.shape[1], cut.shape[2]), affine, self.grid)
        return LabelMap(
            name=str(path.relative_to(self.folder)),
            labels=frame.resample_labels(cut),
            affine=frame.affine,
        )


def tissues_of(path: Path, data: NDArray[np.float32], statement: Statement) -> Labels:
    """Translate the map `path`, whose voxels are `data`, to `Tissue` as its folder says.

    Raises:
        BadData: the map has a value that nobody explains, or its tumour map beside it is missing
            or on another grid.

    """
    labels = _translated(path, data, statement.values)
    if path.name.endswith(ANATOMY_ENDING):  # the other half of the map lies beside it
        beside = path.with_name(path.name.removesuffix(ANATOMY_ENDING) + _TUMOUR_ENDING)
        tumour = _translated(beside, read_volume(beside).data, BRATS_VALUES)
        if tumour.shape != labels.shape:
            raise BadData(Problem(name=str(beside), value="another grid", wanted=path.name))
        labels = np.where(tumour > 0, tumour, labels)
    return labels


def read_statement(folder: Path) -> Statement:
    """Read who says that the maps in `folder` are public; see `FolderLabels.open`."""
    if not folder.is_dir():
        raise BadConfig(
            Problem(name=str(folder), value="no such folder", wanted="a folder of label maps")
        )
    statement = _from_toml(folder / STATEMENT) or _from_dataset(folder / DATASET_FILE)
    if statement is None or statement.source not in _PUBLIC:
        said = "no statement" if statement is None else f'source = "{statement.source}"'
        problem = Problem(
            name=str(folder),
            value=said,
            wanted=f'{STATEMENT} with source = "public" or "synthetic", and a licence',
            mend="what is painted from a patient's label map shows where that patient's tumour "
            "lies; only maps that are public or synthetic may be given here",
        )
        raise PolicyRefusal(str(problem))
    return statement


def _from_toml(path: Path) -> Statement | None:
    if not path.exists():
        return None
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        # As JSON, where the keys of a table are text and numbers at once.
        return Statement.model_validate_json(json.dumps(values, default=str))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(Problem(name=str(path), value=str(error), wanted="valid TOML")) from error
    except ValidationError as error:
        raise BadConfig(problems_of(error, name=str(path))) from error


def _from_dataset(path: Path) -> Statement | None:
    """Take the word of a set that medsynth made."""
    if not path.exists():
        return None
    try:
        told: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise BadConfig(Problem(name=str(path), value="not JSON", wanted="JSON")) from error
    source = told.get("source") if isinstance(told, dict) else None
    if not isinstance(source, str):
        return None
    return Statement(source=source, licence=str(told.get("licence") or "that of the set"))


def _translated(path: Path, data: NDArray[np.float32], values: Mapping[int, Tissue]) -> Labels:
    unknown = [value for value in np.unique(data).tolist() if value not in (0, *values)]
    if unknown:
        raise BadData(
            Problem(
                name=str(path),
                value=f"label values {', '.join(f'{value:g}' for value in unknown[:5])}",
                wanted=f"0 or one of {', '.join(map(str, sorted(values)))}",
                mend=f"say what they mean in [values] of {STATEMENT}",
            )
        )
    return to_tissue(data, values)
