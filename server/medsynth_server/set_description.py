"""What goes with a synthetic set: `dataset.json`, a data card for people, Croissant for machines.

The card follows the questions of Data Cards (Pushkarna et al. 2022): what it is, how it was made,
what it is for and not for, and what it may tell about the patients that were trained on.
"""

from dataclasses import dataclass
from typing import Any, Final

from medsynth_common import __version__
from medsynth_common.durable import write_bytes, write_json
from medsynth_common.labels import ANATOMY, CONTRASTS
from medsynth_common.set_layout import Layout, tumour_values
from medsynth_common.synthetic_set import DATASET_FILE
from medsynth_server.croissant import croissant
from medsynth_server.label_source import Statement
from medsynth_server.record import ArmPrivacy, PrivacyStatement, epsilon_words
from medsynth_server.set_folder import VOLUMES, SetFolder

_CARD: Final = "data-card.md"
_TITLE: Final = "Synthetic brain MRI with tumour and anatomy labels"
#: What every card says, of a set and of the model that makes sets.
NOT_INTENDED: Final = """\
## Not intended

Diagnosis, or any decision about a person. Epidemiology: sizes, places and frequencies of tumours
are those of the label maps and of the edits, not of any population."""
FAILURE_MODES: Final = """\
## Known failure modes

- Intensities and texture imitate the training sites' scanners; other scanners may look different.
- With few training patients or a small epsilon, contrast inside tumours is less true than tissue
  contrast around them.
- Label maps hold one kind of tumour (core, enhancing rim, oedema). No haemorrhage, calcification,
  cavity, artefact, motion, skull or vessel.
- Edits are geometry: a moved tumour presses on its surroundings only nearby, and what lies beneath
  a removed one is taken from the other side of the same brain."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the training of a set's generator may have told about a patient.

    Attributes:
        epsilon: the largest of the training sites'; None where nothing bounds it.
        delta: what epsilon is stated with, the largest of the sites'.
        unit: whose presence the bound is about.
        mechanisms: what was released, by name.
        training_sites: how many hospitals trained.
        seeded: the noise can be replayed: a rehearsal.

    """

    epsilon: float | None
    delta: float
    unit: str
    mechanisms: tuple[str, ...]
    training_sites: int
    seeded: bool

    @classmethod
    def of(cls, statement: PrivacyStatement, arm: ArmPrivacy) -> "Description":
        """Take it from a run's statement: hospitals are disjoint, so the largest counts."""
        spent = [site.epsilon for site in arm.sites.values()]
        bounded = [epsilon for epsilon in spent if epsilon is not None]
        whole = arm.protected and len(bounded) == len(spent)
        names = {one.name for site in arm.sites.values() for one in site.mechanisms}
        return cls(
            epsilon=max(bounded, default=0.0) if whole else None,
            delta=max(site.delta for site in arm.sites.values()),
            unit=statement.unit,
            mechanisms=tuple(sorted(names)),
            training_sites=len(arm.sites),
            seeded=statement.seeded,
        )

    def facts(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "epsilon": None if self.epsilon is None else float(epsilon_words(self.epsilon)),
            "delta": self.delta,
            "unit": self.unit,
            "mechanisms": list(self.mechanisms),
            "training_sites": self.training_sites,
            "seeded": self.seeded,
        }

    def words(self) -> str:
        """The guarantee in a sentence or two; an epsilon never stands alone."""
        names = ", ".join(self.mechanisms)
        if self.epsilon is None:
            told = (
                f"**None.** The generator was trained without differential privacy ({names}): "
                "nothing bounds what the set tells about a patient. Do not share it."
            )
        else:
            told = (
                f"epsilon {epsilon_words(self.epsilon)} at delta {self.delta:g}, unit: "
                f"{self.unit} (all slices, crops and visits together), mechanisms: {names}. It is "
                "the largest of the training sites'; a patient at two of them adds up. Painting "
                "from public label maps adds nothing to it."
            )
        if self.seeded:
            told += (
                " **The run was seeded: its noise can be replayed, so that this is a rehearsal "
                "and no guarantee.**"
            )
        return told


def describe(
    folder: SetFolder, statement: PrivacyStatement, arm: ArmPrivacy, labels: Statement
) -> None:
    """Write everything that is said about a finished set, `dataset.json` last."""
    request = folder.request
    description = Description.of(statement, arm)
    write_bytes(folder.path / _CARD, _card(folder, description, labels).encode())
    write_json(
        folder.path / "croissant.json",
        croissant(
            request,
            name=_TITLE,
            description=f"{_TITLE}, painted from public label maps. Privacy: {description.words()}",
            records=folder.path / VOLUMES,
        ),
    )
    if request.layout is Layout.BIDS:
        _describe_bids(folder)
    msd = {"tensorImageSize": "4D", "numTest": 0, "test": []}
    folder.describe(
        {
            "name": _TITLE,
            "description": "Synthetic brain MRI, made by a model and public label maps.",
            "source": "synthetic",
            "generator": f"medsynth {__version__}",
            "licence": request.licence,
            "layout": str(request.layout),
            "privacy": description.facts(),
            "modality": {str(i): str(contrast) for i, contrast in enumerate(CONTRASTS)},
            "labels": _names(request.layout),
            "anatomy_labels": {str(int(tissue)): tissue.name.lower() for tissue in ANATOMY},
            **(msd if request.layout is Layout.MSD else {}),
        }
    )


def _names(layout: Layout) -> dict[str, str]:
    values = {str(value): tissue.name.lower() for tissue, value in tumour_values(layout).items()}
    return {"0": "background", **values}


def _describe_bids(folder: SetFolder) -> None:
    about = {"BIDSVersion": "1.9.0", "License": folder.request.licence}
    made_by = {"GeneratedBy": [{"Name": "medsynth", "Version": __version__}]}
    raw = {"Name": _TITLE, "DatasetType": "raw", **about, **made_by}
    maps = {"Name": f"{_TITLE}: labels", "DatasetType": "derivative", **about, **made_by}
    write_json(folder.path / "dataset_description.json", raw)
    derived = folder.path / "derivatives" / "medsynth"
    write_json(derived / "dataset_description.json", maps)
    for name, values in (
        ("tumour", _names(folder.request.layout)),
        ("anatomy", {str(int(tissue)): tissue.name.lower() for tissue in ANATOMY}),
    ):
        rows = [f"{value}\t{tissue}\n" for value, tissue in values.items()]
        table = "index\tname\n" + "".join(rows)
        write_bytes(derived / f"desc-{name}_dseg.tsv", table.encode())
    write_bytes(folder.path / "README", f"{_TITLE}. See {_CARD}.\n".encode())
    ours = ("croissant.json", DATASET_FILE, _CARD, "synthesize.json", VOLUMES)
    write_bytes(folder.path / ".bidsignore", "".join(f"{name}\n" for name in ours).encode())


def _card(folder: SetFolder, description: Description, labels: Statement) -> str:
    request = folder.request
    edits = ", ".join(request.edits) or "none"
    style = "all sites' in turn" if request.style == "mix" else request.style
    values = ", ".join(f"{value} {name}" for value, name in _names(request.layout).items())
    anatomy = ", ".join(f"{int(tissue)} {tissue.name.lower()}" for tissue in ANATOMY)
    credit = f", credit: {labels.credit}" if labels.credit else ""
    return f"""# {_TITLE}

**Synthetic.** Made by a model and public label maps; every file says SYNTHETIC in its header.

| | |
|---|---|
| volumes | {folder.done}, four contrasts each: {", ".join(CONTRASTS)} |
| tumour map | {values} |
| anatomy map | {anatomy} |
| layout | {request.layout}; `dataset.json` lists every volume, its label map and its edits |
| licence | {request.licence} |
| made | {request.date}, medsynth {request.version}, seed {request.seed} |
| training sites | {description.training_sites} |

## Privacy

{description.words()}

This set itself has not been compared with patients. A hospital that trained can do so for sets in
BraTS names: `medsynth-client release-check`.

## How it was made

1. Hospitals trained a generator together (label map to MRI); only privatised weights left them.
2. Label maps: {request.labels} ({labels.source}, {labels.licence}{credit}).
3. Edits: {edits}. Their parameters stand beside every volume and can be replayed.
4. Each map was painted in the style of a training site's scanner: {style}.

Generator and styles: SHA-256 {request.weights}.

## Intended use

Training and testing segmentation methods, teaching, sharing data formats and pipelines. Adding to
real training data where it is scarce. Validate on real, held-out patients only.

{NOT_INTENDED}

{FAILURE_MODES}
- A segmenter that is trained on this set alone may do worse on real patients than one trained on
  real ones; measure by how much.
"""
