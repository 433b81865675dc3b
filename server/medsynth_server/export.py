"""`medsynth-server export`: what a finished run learned, in one small folder for another machine.

    config.toml    the networks' sizes and the grid; nothing of how the run was made
    weights/       the generator, the sites' styles, and the segmenter where there is one
    privacy.json   what the training spent, by site
    model-card.md  the same for people: what it is for, what it may tell, how to use it
    SHA256SUMS     of the others, as `sha256sum -c` reads it

It holds nothing that did not leave the hospitals as a release, and nothing of the run's other
files: no simulated site, no sample of a patient, no seed, no evaluation. `synthesize` reads it as
it reads a run's folder.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tomli_w

from medsynth_common import __version__
from medsynth_common.durable import replacing_folder, write_bytes
from medsynth_common.errors import BadConfig, Problem
from medsynth_common.labels import CONTRASTS, TISSUES
from medsynth_server.record import Arm, write_privacy
from medsynth_server.run_folder import RunFolder
from medsynth_server.set_description import FAILURE_MODES, NOT_INTENDED, Description
from medsynth_server.synthesize import PAINTED_WITH, FinishedRun

#: What `synthesize` needs to know of a run's settings.
_KEPT: Final = ("name", "grid", "crop", "preset", "networks")
#: Not needed to paint, but what a run is for as well.
_WELCOME: Final = ("segmenter",)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported model.

    Attributes:
        folder: where it is.
        files: its files, below `folder`.
        digest: SHA-256 of what a set is painted with, as the sets made with them name it.
        privacy: what its training may have told about a patient.

    """

    folder: Path
    files: tuple[str, ...]
    digest: str
    privacy: Description

    def told(self, *, as_json: bool) -> str:
        """What the command says on standard output, as text or JSON."""
        if as_json:
            facts: dict[str, Any] = {"folder": str(self.folder), "files": list(self.files)}
            facts |= {"weights": self.digest, "privacy": self.privacy.facts()}
            return json.dumps(facts, indent=2)
        words = self.privacy.words().replace("**", "")
        return f"{', '.join(self.files)} in {self.folder}\nprivacy: {words}"


def export(run_folder: Path, out: Path, *, licence: str) -> Exported:
    """Write the model of a finished run to the new folder `out`, whole or not at all.

    Raises:
        BadData: the run is not finished, or its weights are damaged.
        PolicyRefusal: the run's own set failed its release check and is withheld.
        BadConfig: `out` holds something.

    """
    run = FinishedRun.open(run_folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        value = "something that is there already"
        raise BadConfig(Problem(name=str(out), value=value, wanted="a new folder"))
    source = RunFolder(run_folder)
    privacy = Description.of(run.statement, run.privacy)
    with replacing_folder(out) as part:
        target = RunFolder(part)
        settings = run.config.model_dump(mode="json", include=set(_KEPT))
        write_bytes(target.config, tomli_w.dumps(settings).encode())
        for name in (*PAINTED_WITH, *_WELCOME):
            weights = source.weights / f"{name}.safetensors"
            if name in PAINTED_WITH or weights.is_file():
                write_bytes(target.weights / weights.name, weights.read_bytes())
        # The reference arm has no privacy, and none of its weights are here.
        alone = run.statement.model_copy(update={"arms": {Arm.PRIVATE: run.privacy}})
        write_privacy(target.privacy, alone)
        write_bytes(part / "model-card.md", _card(run, privacy, licence).encode())
        files = sorted(path for path in part.rglob("*") if path.is_file())
        names = tuple(path.relative_to(part).as_posix() for path in files)
        sums = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n"
            for path, name in zip(files, names, strict=True)
        ]
        write_bytes(part / "SHA256SUMS", "".join(sums).encode())
    return Exported(folder=out, files=names, digest=run.digest, privacy=privacy)


def _card(run: FinishedRun, privacy: Description, licence: str) -> str:
    grid = "x".join(map(str, run.config.grid))
    tissues = ", ".join(f"{int(tissue)} {tissue.name.lower()}" for tissue in TISSUES)
    return f"""# Label map to brain MRI: {run.config.name}

A generator that paints label maps as {", ".join(CONTRASTS)}, trained across
{privacy.training_sites} hospitals with medsynth {__version__}.

| | |
|---|---|
| takes | label maps of {grid} voxels: {tissues} |
| gives | four contrasts, 0 to about 1 inside the brain, 0 outside |
| styles | {", ".join(run.sites)}: a training site's scanner each |
| licence | {licence} |
| weights | SHA-256 {run.digest} (generator and styles) |

## Privacy

{privacy.words()}

The same, site by site and mechanism by mechanism, is in `privacy.json`.

## Use

    medsynth-server synthesize THIS_FOLDER --out sets/a --count 100 --edit random

No other file of the run is needed. `sha256sum -c SHA256SUMS` says whether the files are whole.

## Intended use

Making labelled synthetic volumes: to train and test segmentation methods, to teach, to share data
formats and pipelines. Give it public or synthetic label maps alone: what is painted from a
patient's map shows where that patient's tumour lies. Validate on real, held-out patients only.

{NOT_INTENDED}

{FAILURE_MODES}
"""
