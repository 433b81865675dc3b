"""A site's patients: where they come from, and how they get onto the training grid.

Preparing is done once; the prepared volumes are cached in the site's own folder, keyed by the
content they were made from, so that a restarted trainer is ready at once. They are mapped from
disk, not read: memory holds what training touches, and may drop it again.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError

from medsynth_common.dataset import DataConfig, PatientFiles, find_patients, prepare
from medsynth_common.dataset.digests import digests
from medsynth_common.dataset.layouts.sessions import split_session
from medsynth_common.dataset.prepare import PREPARATION
from medsynth_common.durable import write_bytes
from medsynth_common.errors import BadData, Problem
from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom import Scanner, make_phantom
from medsynth_common.privacy.mechanism import Value


class PhantomSource(Value):
    """Procedural patients of one scanner: a simulation's stand-in for a hospital.

    Attributes:
        scanner: that images them.
        patients: how many.
        seed: of the first; the others follow.

    """

    kind: Literal["phantom"] = "phantom"
    scanner: Scanner
    patients: int = Field(ge=1, le=100_000)
    seed: int = Field(ge=0, lt=2**62)

    def names(self) -> list[str]:
        """Name the patients."""
        return [f"phantom-{self.seed + index}" for index in range(self.patients)]

    def people(self) -> list[str]:
        """Say who they are, in order; see `FolderSource.people`."""
        return self.names()


class FolderSource(Value):
    """Patients in a folder of NIfTI files.

    Attributes:
        root: the data set's folder.
        data: how its files are named and labelled.
        site: which of the data set's sites this is; None when the folders in `root` are this
            site's patients, and nobody else's.
        patients: which of its patients to train on.

    """

    kind: Literal["folder"] = "folder"
    root: str
    data: DataConfig
    site: str | None = None
    patients: tuple[str, ...] = Field(min_length=1)

    def names(self) -> list[str]:
        """Name the patients, as their files do."""
        return list(self.patients)

    def people(self) -> list[str]:
        """Say who they are, in order, for the ledger's per-patient sums.

        A patient with one visit is named after it (BraTS-GLI-00001-000), and no longer when
        another comes (BraTS-GLI-00001). He stays who he is: a visit's name is left off.
        """
        return [split_session(name)[0] for name in self.patients]


Source = Annotated[PhantomSource | FolderSource, Field(discriminator="kind")]


def load_patients(
    source: Source, grid: tuple[int, ...], *, cache: Path, names: Sequence[str] | None = None
) -> Sequence[Volume]:
    """Read a site's patients on the training grid: every one, or those of these names.

    Raises:
        BadData: files are missing or cannot be read.

    """
    shape = (grid[0], grid[1], grid[2])
    if isinstance(source, PhantomSource):
        folder = cache / _key(source.model_dump(mode="json"), shape)
        return [
            _cached(folder / f"{index}.safetensors", partial(_phantom, source, index, shape))
            for index, name in enumerate(source.names())
            if names is None or name in names
        ]
    if names is not None:
        source = source.model_copy(update={"patients": tuple(names)})
    files = files_of(source)
    return [
        _cached(
            cache / _key(_made_from(patient, source.data, cache), shape) / "volume.safetensors",
            partial(_prepared, patient, shape, source.data),
        )
        for patient in files
    ]


def _phantom(source: PhantomSource, index: int, shape: tuple[int, int, int]) -> Volume:
    phantom = make_phantom(source.seed + index, shape, source.scanner)
    return Volume(image=torch.from_numpy(phantom.image), labels=torch.from_numpy(phantom.labels))


def _prepared(files: PatientFiles, shape: tuple[int, int, int], data: DataConfig) -> Volume:
    patient = prepare(files, shape, data)
    return Volume(image=torch.from_numpy(patient.image), labels=torch.from_numpy(patient.labels))


def files_in(root: Path, data: DataConfig, site: str | None) -> list[PatientFiles]:
    """Find a site's patients, by name; with `site` None, all folders in `root`. Raises BadData."""
    if site is not None:
        return find_patients(root, data).get(site, [])
    every = find_patients(root, data.model_copy(update={"one_site_per_patient": True}))
    return [replace(files, site=root.name) for found in every.values() for files in found]


def files_of(source: FolderSource) -> list[PatientFiles]:
    """Find the files of a site's patients. Raises `BadData` with every patient not found."""
    found = files_in(Path(source.root), source.data, source.site)
    by_name = {files.name: files for files in found}
    place = source.site or source.root
    missing = [
        Problem(name=f"{place}/{name}", value="no such patient", wanted="a patient folder")
        for name in source.patients
        if name not in by_name
    ]
    if missing:
        raise BadData(missing)
    return [by_name[name] for name in source.patients]


def _cached(path: Path, make: Callable[[], Volume]) -> Volume:
    if path.parent.is_dir():
        os.utime(path.parent)  # a use: whoever removes what is old counts from here
    try:
        tensors = safetensors.torch.load_file(path)
        return Volume(image=tensors["image"], labels=tensors["labels"])
    except (FileNotFoundError, SafetensorError, KeyError):  # not there yet, or damaged
        volume = make()
        tensors = {"image": volume.image.contiguous(), "labels": volume.labels.contiguous()}
        write_bytes(path, safetensors.torch.save(tensors))
        return volume


def _made_from(files: PatientFiles, data: DataConfig, cache: Path) -> Mapping[str, object]:
    """What a prepared patient is made from: a changed file or setting prepares it anew."""
    roles = sorted(files.matches)
    content = digests([files.path(role) for role in roles], cache / "digests")
    return {
        "preparation": PREPARATION,
        "content": dict(zip(roles, content, strict=True)),
        "channels": dict(files.channels),
        "tumour_values": dict(files.tumour_values),
        "anatomy_values": dict(data.anatomy_values),
        "tissues": _tissues_by(data, cache),
    }


def _tissues_by(data: DataConfig, cache: Path) -> str:
    """Name what finds tissues, a network by its content: another one prepares all anew."""
    if data.tissue_weights is None:
        return "map" if data.anatomy is not None else data.tissues
    (digest,) = digests([data.tissue_weights], cache / "digests")
    return digest


def _key(made_from: Mapping[str, object], shape: tuple[int, int, int]) -> str:
    text = json.dumps([made_from, shape], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
