"""The hospitals of a simulation: their folders, their own site.toml, and who is held out.

The coordinator of a real federation never writes a site's files; a simulation plays both sides.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import TypeAdapter

from medsynth_common.dataset import Level, PatientFiles, examine, find_patients
from medsynth_common.dataset.source import Source, load_patients
from medsynth_common.dataset.telling import lines, progress_bar
from medsynth_common.durable import write_bytes
from medsynth_common.errors import BadConfig, BadData, Problem
from medsynth_common.learning.volumes import Volume
from medsynth_common.phantom import SITE_SCANNERS
from medsynth_common.plan import SITE_NAME, Stage
from medsynth_common.privacy.mechanism import MAX_NOISE
from medsynth_common.scoring.measured import Measured
from medsynth_server.config import RunConfig

log = logging.getLogger(__name__)

_SOURCE: TypeAdapter[Source] = TypeAdapter(Source)
#: Of a site's real patients, the share that is held out; a site of one or two holds out none.
_HELD_OUT = 0.2


@dataclass(frozen=True, kw_only=True)
class SimulatedSite:
    """One simulated hospital.

    Attributes:
        name: of the site.
        source: the `[source]` table of its site.toml: where its training patients are.
        declared: its public size.
        held_out: descriptions of patients it never trains on: phantom seeds, or real files.
        trained_on: the real patients it trains on; a simulation may look at them.

    """

    name: str
    source: Mapping[str, Any]
    declared: int
    held_out: Sequence[int] | Sequence[PatientFiles] = field(default_factory=tuple)
    trained_on: Sequence[PatientFiles] = field(default_factory=tuple)

    def load_held_out(self, config: RunConfig) -> list[Volume]:
        """Read the held-out patients on the training grid."""
        return [self._load(patient, config).volume for patient in self.held_out]

    def load_one_held_out(self, number: int, config: RunConfig) -> Measured:
        """Read one held-out patient, with the size of a voxel."""
        return self._load(self.held_out[number], config)

    def load_training(self, config: RunConfig, *, cache: Path) -> Sequence[Volume]:
        """Read all training patients on the training grid, from where the site prepared them."""
        source: Source = _SOURCE.validate_json(json.dumps(self.source))
        return load_patients(source, config.grid, cache=cache)

    def load_trained_on(self, config: RunConfig, *, count: int) -> list[Volume]:
        """Read the first real training patients on the training grid."""
        return [self._load(patient, config).volume for patient in self.trained_on[:count]]

    def _load(self, patient: int | PatientFiles, config: RunConfig) -> Measured:
        if isinstance(patient, PatientFiles):
            return Measured.patient(patient, config.grid, config.data)
        scanner = next(s for s in SITE_SCANNERS if s.name == self.source["scanner"]["name"])
        return Measured.phantom(patient, config.grid, scanner)


def phantom_sites(config: RunConfig, *, seed: int) -> list[SimulatedSite]:
    """Hospitals of phantoms, one scanner each; scanners repeat when there are more sites."""
    federation = config.federation
    sites = []
    for index in range(federation.sites):
        first = _seed(seed, "site", index)
        held_out = [first + federation.patients + k for k in range(federation.test_patients)]
        scanner = SITE_SCANNERS[index % len(SITE_SCANNERS)]
        sites.append(
            SimulatedSite(
                name=f"site-{index + 1:0{len(str(federation.sites))}d}",
                source={
                    "kind": "phantom",
                    "scanner": scanner.model_dump(mode="json"),
                    "patients": federation.patients,
                    "seed": first,
                },
                declared=federation.patients,
                held_out=held_out,
            )
        )
    return sites


def folder_sites(root: Path, config: RunConfig) -> list[SimulatedSite]:
    """Hospitals of real patients.

    Raises:
        BadData: with every problem of every patient, before anything is trained.

    """
    sites = []
    found = find_patients(root, config.data)
    with progress_bar() as progress:
        examination = examine(found, config.data, progress=progress)
    examination.raise_errors()
    _check_names(found)
    for line in lines(examination, [Level.WARNING]):
        log.warning(line)
    for name, patients in found.items():
        out = round(_HELD_OUT * len(patients)) if len(patients) >= 3 else 0
        out = max(out, 1) if len(patients) >= 3 else 0
        training = patients[: len(patients) - out]
        sites.append(
            SimulatedSite(
                name=name,
                source={
                    "kind": "folder",
                    "root": str(root.resolve()),
                    "data": config.data.model_dump(mode="json", exclude_none=True),
                    "site": name,
                    "patients": [files.name for files in training],
                },
                declared=len(training),
                held_out=patients[len(training) :],
                trained_on=training,
            )
        )
    return sites


def check_delta(delta: float, sizes: Mapping[str, int]) -> None:
    """Raise `BadConfig` unless delta is below one patient's share of every site.

    At 1/n a mechanism that publishes a patient picked at random would pass as private.
    """
    problems = [
        Problem(name="privacy.delta", value=f"{delta:g}", wanted=f"below 1/{n}, {site}'s patients")
        for site, n in sizes.items()
        if delta * n >= 1
    ]
    if problems:
        raise BadConfig(problems)


def write_site(
    folder: Path, site: SimulatedSite, config: RunConfig, *, coordinator: str | None = None
) -> None:
    """Write a simulated site's site.toml, unless it is there.

    `coordinator` is the public key whose seal its plans must bear, where they come over a network.

    Raises:
        BadData: it is there and says something else: a run goes on with the patients it began with.

    """
    path = folder / "site.toml"
    values: dict[str, Any] = {
        "name": site.name,
        "declared_patients": site.declared,
        "policy": _policy(config),
        "source": site.source,
    }
    if config.seed is not None:
        values["simulation_seed"] = config.seed
    if coordinator is not None:
        values["coordinator_key"] = coordinator
    content = tomli_w.dumps(json.loads(json.dumps(values))).encode()
    if not path.exists():
        write_bytes(path, content)
    elif path.read_bytes() != content:
        raise BadData(
            Problem(
                name=str(path),
                value="a site that began with other patients",
                wanted="the patients of this command",
                mend="give the --data and --engine that the run began with, or another --out",
            )
        )


def require_same_sites(folder: Path, sites: Iterable[SimulatedSite]) -> None:
    """Keep a run from going on with other hospitals than those it began with.

    Args:
        folder: of the run's sites, a folder each.
        sites: those of this command.

    Raises:
        BadData: the folder has sites that are not among them.

    """
    names = {site.name for site in sites}
    others = sorted({path.parent.name for path in folder.glob("*/site.toml")} - names)
    if others:
        raise BadData(
            Problem(
                name=str(folder),
                value=f"a run that began with {', '.join(others)}",
                wanted=f"the sites of this command: {', '.join(sorted(names))}",
                mend="give the --data that the run began with, or another --out",
            )
        )


def _check_names(sites: Iterable[str]) -> None:
    problems = [
        Problem(
            name=f"site {site!r}",
            value="a name that cannot be written in every record",
            wanted="at most 64 letters, digits, '.', '_' and '-', not beginning with a sign",
            mend="rename the folder, or name the site in a CSV",
        )
        for site in sites
        if not SITE_NAME.fullmatch(site)
    ]
    if problems:
        raise BadData(problems)


def _policy(config: RunConfig) -> dict[str, Any]:
    stages = [Stage.MOMENTS, Stage.SEGMENT, Stage.ADVERSARIAL]
    if config.metrics.enabled:
        stages.append(Stage.METRICS)
    policy: dict[str, Any] = {
        "stages": stages,
        "minimum_patients": 1,
        "minimum_noise_multiplier": 0.01,  # what the largest epsilon of a config comes to
        "maximum_noise_multiplier": MAX_NOISE,  # and the smallest
    }
    if config.privacy == "off":
        return policy | {"epsilon_cap": float("inf"), "delta": 0.5, "allow_unprotected": True}
    return policy | {
        "epsilon_cap": config.privacy.lifetime_cap,
        "delta": config.privacy.delta,
    }


def _seed(*material: object) -> int:
    digest = hashlib.sha256(json.dumps(material).encode()).digest()
    return int.from_bytes(digest[:5], "big") << 20
