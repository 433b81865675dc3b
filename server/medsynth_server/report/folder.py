"""A run's folder as the report sees it: typed, and honest about what is not there."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from medsynth_common.errors import BadConfig, BadData, Problem
from medsynth_common.labels import CONTRASTS, TISSUES
from medsynth_common.release_check import ReleaseCheck
from medsynth_common.release_check.result import read_release_check
from medsynth_server.fidelity.results import FidelityResult, read_fidelity
from medsynth_server.record import (
    Arm,
    EvaluationEvent,
    IntensityEvent,
    NoteEvent,
    PrivacyStatement,
    RoundEvent,
    read_events,
    read_privacy,
)
from medsynth_server.table.results import TableResult, read_table

Volumes = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Volumes to look at: `samples.safetensors`.

    Attributes:
        sites: the site of each of the n patients.
        source: whether the patients are phantoms or people.
        real_labels: (n, x, y, z) `Tissue` values.
        real_image: (n, contrast, x, y, z).
        synthetic_image: the same shape, generated from the same labels.
        public_image: the same, by the generator as it was before federated training.
        held_out: whether nothing was trained on these patients.

    """

    sites: tuple[str, ...]
    source: Literal["phantom", "real"]
    real_labels: NDArray[np.int64]
    real_image: Volumes
    synthetic_image: Volumes
    public_image: Volumes | None
    held_out: bool = True

    def __post_init__(self) -> None:
        n, *grid = self.real_labels.shape
        images = {"real.image": self.real_image, "synthetic.image": self.synthetic_image}
        if self.public_image is not None:
            images["public.image"] = self.public_image
        wanted = (n, len(CONTRASTS), *grid)
        problems = [
            Problem(name=f"samples.safetensors: {name}", value=str(a.shape), wanted=str(wanted))
            for name, a in images.items()
            if a.shape != wanted
        ]
        if len(grid) != 3 or n == 0:
            shape = str(self.real_labels.shape)
            problems.append(
                Problem(name="samples.safetensors: real.labels", value=shape, wanted="(n, x, y, z)")
            )
        if len(self.sites) != n:
            problems.append(
                Problem(
                    name="samples.safetensors: sites",
                    value=str(self.sites),
                    wanted=f"{n} names, one a patient",
                )
            )
        if not np.isin(self.real_labels, TISSUES).all():
            problems.append(
                Problem(
                    name="samples.safetensors: real.labels",
                    value=f"{self.real_labels.min()}..{self.real_labels.max()}",
                    wanted=f"label values 0..{max(TISSUES)}",
                )
            )
        if problems:
            raise BadData(problems)


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """All that the report is made from; what the run has not written yet is empty or None."""

    path: Path
    rounds: tuple[RoundEvent, ...]
    evaluations: tuple[EvaluationEvent, ...]
    histograms: tuple[IntensityEvent, ...]
    notes: tuple[str, ...]
    privacy: PrivacyStatement | None
    samples: Samples | None
    settings: Mapping[str, Any] | None
    release: ReleaseCheck | None
    table: TableResult | None = None
    fidelity: FidelityResult | None = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a run's folder.

        Raises:
            BadInput: a file is there and is not what it must be.

        """
        if not path.is_dir():
            raise BadData(Problem(name="run folder", value=str(path), wanted="an existing folder"))
        events = read_events(path / "metrics.jsonl")
        return cls(
            path=path,
            rounds=tuple(event for event in events if isinstance(event, RoundEvent)),
            evaluations=tuple(event for event in events if isinstance(event, EvaluationEvent)),
            histograms=tuple(event for event in events if isinstance(event, IntensityEvent)),
            notes=tuple(event.text for event in events if isinstance(event, NoteEvent)),
            privacy=read_privacy(path / "privacy.json"),
            samples=_read_samples(path / "samples.safetensors"),
            settings=_read_settings(path / "config.toml"),
            release=read_release_check(path / "release-check.json"),
            table=read_table(path / "evaluation"),
            fidelity=read_fidelity(path / "evaluation"),
        )

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arms that the record speaks of."""
        told = {event.arm for event in self.rounds}
        told |= {event.arm for event in self.evaluations}
        told |= {event.arm for event in self.histograms}
        told |= set(self.privacy.arms) if self.privacy else set()
        return tuple(arm for arm in Arm if arm in told)

    @property
    def main_arm(self) -> Arm:
        """The arm that the run is about; the other one is there for comparison."""
        return next(iter(self.arms), Arm.PRIVATE)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that the record speaks of, sorted by name."""
        told = {site for event in self.rounds for site in (*event.sites, *event.refused)}
        if self.privacy:
            told |= {site for arm in self.privacy.arms.values() for site in arm.sites}
        return tuple(sorted(told))

    def protects(self, arm: Arm) -> bool:
        """Tell whether the record holds a privacy bound for `arm`."""
        return self.privacy is not None and self.privacy.protects(arm)


def _read_samples(path: Path) -> Samples | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as stored:
            about = stored.metadata() or {}
            named = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - not a mapping
        source = about["source"]
        if source not in ("phantom", "real"):
            raise BadData(
                Problem(name=f"{path.name}: source", value=source, wanted="phantom or real")
            )
        return Samples(
            sites=tuple(json.loads(about["sites"])),
            source=cast(Literal["phantom", "real"], source),
            held_out=bool(json.loads(about.get("held_out", "true"))),
            real_labels=named["real.labels"].astype(np.int64),
            real_image=named["real.image"].astype(np.float32),
            synthetic_image=named["synthetic.image"].astype(np.float32),
            public_image=(
                named["public.image"].astype(np.float32) if "public.image" in named else None
            ),
        )
    except KeyError as error:
        raise BadData(
            Problem(name=path.name, value=f"no {error}", wanted="it in the file")
        ) from error
    except (SafetensorError, json.JSONDecodeError) as error:
        raise BadData(
            Problem(name=path.name, value=str(error), wanted="a readable safetensors file")
        ) from error


def _read_settings(path: Path) -> Mapping[str, Any] | None:
    if not path.exists():
        return None
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(Problem(name=path.name, value=str(error), wanted="TOML")) from error
