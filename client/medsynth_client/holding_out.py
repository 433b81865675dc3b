"""Which of a site's patients are never trained on, so that what was trained can be measured.

The site decides: a list of names, or a share. A share is drawn by a hash of who each patient is
with the site's own key: patients who come or go, or come again, move nobody else, and nobody
without the key can tell.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsynth_client.ledger_file import LedgerFile
from medsynth_client.pseudonyms import Pseudonyms
from medsynth_client.site_file import SiteFile
from medsynth_common.dataset.source import Source, load_patients
from medsynth_common.errors import BadConfig, Problem
from medsynth_common.learning.volumes import Volume

#: Beside it stands the key.
LEDGER = "ledger.db"


@dataclass(frozen=True, kw_only=True)
class Patients:
    """A site's patients, told apart.

    Attributes:
        source: where all of them are.
        training: those that are trained on.
        held_out: those that never are.
        people: who the `training` ones are, in order, whatever visit they are named after; the
            ledger counts by it.

    """

    source: Source
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    people: tuple[str, ...]

    def load_training(self, grid: tuple[int, ...], *, cache: Path) -> Sequence[Volume]:
        """Read those that are trained on, on the training grid. Raises BadData."""
        return load_patients(self.source, grid, cache=cache, names=self.training)

    def load_held_out(self, grid: tuple[int, ...], *, cache: Path) -> Sequence[Volume]:
        """Read those that are not. Raises BadData."""
        return load_patients(self.source, grid, cache=cache, names=self.held_out)


def patients_of(file: SiteFile, folder: Path) -> Patients:
    """Tell a site's patients apart; a key is made where a share needs one and there is none.

    Raises:
        BadConfig: a name to hold out is none of the site's, nobody is left to train on, or two
            names are one patient's.
        BadRecord: the key is damaged.

    """
    names, wanted = file.source.names(), file.held_out
    people = dict(zip(names, file.source.people(), strict=True))
    _require_apart(people)
    if isinstance(wanted, tuple):
        held_out = set(wanted)
        strangers = sorted(held_out - set(names))
        if strangers:
            raise BadConfig([_stranger(name) for name in strangers])
    elif wanted == 0:
        held_out = set()
    else:
        key = _key(folder)
        held_out = {name for name in names if key.place(people[name]) < wanted}
    training = tuple(name for name in names if name not in held_out)
    if not training:
        value = f"all {len(names)} patients"
        raise BadConfig(
            Problem(name="site.toml: held_out", value=value, wanted="somebody left to train on")
        )
    return Patients(
        source=file.source,
        training=training,
        held_out=tuple(name for name in names if name in held_out),
        people=tuple(people[name] for name in training),
    )


def _key(folder: Path) -> Pseudonyms:
    """The ledger's key; of a ledger that is not begun, the one it will take."""
    ledger = LedgerFile(folder / LEDGER)
    return (Pseudonyms if ledger.path.exists() else Pseudonyms.begin)(ledger.key_path)


def _require_apart(people: Mapping[str, str]) -> None:
    names: dict[str, list[str]] = defaultdict(list)
    for name, person in people.items():
        names[person].append(name)
    problems = [
        Problem(
            name="site.toml: source",
            value=" and ".join(found),
            wanted=f"{person} once, whose visits they are",
            mend="rename the folders so that each visit has a name of its own",
        )
        for person, found in names.items()
        if len(found) > 1
    ]
    if problems:
        raise BadConfig(problems)


def _stranger(name: str) -> Problem:
    return Problem(
        name="site.toml: held_out", value=repr(name), wanted="one of the source's patients"
    )
