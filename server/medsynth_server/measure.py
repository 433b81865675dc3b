"""Step evaluate: which segmenters are compared, and what the report is given to show."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import nn

from medsynth_common.durable import write_bytes
from medsynth_common.labels import Region
from medsynth_common.learning.volumes import Volume
from medsynth_common.networks import build_segmenter, load_network
from medsynth_server.arm import choose_device
from medsynth_server.config import RunConfig
from medsynth_server.evaluation import (
    Dices,
    compare_intensities,
    dice_of_patients,
    evaluation_events,
)
from medsynth_server.model import Model
from medsynth_server.progress import Progress
from medsynth_server.record import (
    BEFORE_TRAINING,
    FEDERATED,
    SYNTHETIC_ONLY,
    Arm,
    NoteEvent,
    RunLog,
)
from medsynth_server.run_folder import RunFolder
from medsynth_server.segmenter_training import train_on
from medsynth_server.simulated_sites import SimulatedSite
from medsynth_server.synthesis import Painter, crop_batches, repeat_batches

_PICTURED = 1  # patients of each site in the report's sample grid
_SHOWN_WHEN_NONE_IS_HELD_OUT = 2  # training patients of each site; it has no more than two then


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Measures the models of a run on patients that nobody trained on."""

    config: RunConfig
    folder: RunFolder
    sites: Sequence[SimulatedSite]
    seed: int
    log: RunLog
    progress: Progress

    def run(self, public: Model, models: Mapping[Arm, Model]) -> None:
        """Measure every segmenter and the images; write record and samples."""
        self.progress.note("measuring")
        cohorts = {site.name: site.load_held_out(self.config) for site in self.sites}
        if not any(cohorts.values()):
            self._without_held_out(public, models)
            return
        device = choose_device(self.config.device)
        before = self._segmenter(
            public.segmenter(device),
            cohorts,
            arm=Arm.PRIVATE,
            model=BEFORE_TRAINING,
            trained_on="public phantoms of randomised scanners",
        )
        for arm, model in models.items():
            self._segmenter(
                model.segmenter(device),
                cohorts,
                arm=arm,
                model=FEDERATED,
                trained_on="public phantoms, synthetic pairs, then the sites' patients",
                before=before,
            )
            self._synthetic_only(public, model, cohorts, arm, before)
        self._samples(public, models[Arm.PRIVATE], cohorts, held_out=True)

    def _without_held_out(self, public: Model, models: Mapping[Arm, Model]) -> None:
        """Show training patients, and say so; a simulation's researcher owns them all."""
        self._note(
            "No site has enough patients to hold any out. Pictures and intensities are those of "
            "training patients; Dice was not measured, since on training patients it would flatter."
        )
        seen = {
            site.name: site.load_trained_on(self.config, count=_SHOWN_WHEN_NONE_IS_HELD_OUT)
            for site in self.sites
        }
        for arm, model in models.items():
            self._intensities(self._made(model, list(seen)), seen, arm)
        self._samples(public, models[Arm.PRIVATE], seen, held_out=False)

    def _segmenter(
        self,
        segmenter: nn.Module,
        cohorts: Mapping[str, Sequence[Volume]],
        *,
        arm: Arm,
        model: str,
        trained_on: str,
        before: Dices | None = None,
    ) -> Dices:
        scores = dice_of_patients(
            segmenter,
            cohorts,
            crop=self.config.crop,
            spatial_dims=self.config.networks.spatial_dims,
            device=choose_device(self.config.device),
        )
        events = evaluation_events(
            scores, arm=arm, model=model, trained_on=trained_on, before=before
        )
        for event in events:
            self.log.append(event)
        whole = next(event for event in events if event.region is Region.WHOLE)
        if whole.dice_mean is not None:
            self.progress.note(f"{arm} arm, {model}: whole tumour Dice {whole.dice_mean:.3f}")
        return scores

    def _synthetic_only(
        self,
        public: Model,
        model: Model,
        cohorts: Mapping[str, Sequence[Volume]],
        arm: Arm,
        before: Dices,
    ) -> None:
        """Train a segmenter on a synthetic set alone; it starts from the public weights."""
        device = choose_device(self.config.device)
        made = self._made(model, list(cohorts))
        volumes = [volume for _, volume in made]
        weights, _ = train_on(
            crop_batches(
                repeat_batches(volumes, batch=2, seed=self.seed),
                crop=self.config.crop,
                seed=self.seed,
                device=device,
            ),
            public.segmenter(device),
            steps=self.config.evaluation.steps,
            spatial_dims=self.config.networks.spatial_dims,
            seed=self.seed + 3,
        )
        segmenter = load_network(build_segmenter, self.config.networks, weights, device=device)
        self._segmenter(
            segmenter,
            cohorts,
            arm=arm,
            model=SYNTHETIC_ONLY,
            trained_on=f"public phantoms, then {len(volumes)} synthetic volumes and no patient",
            before=before,
        )
        self._intensities(made, cohorts, arm)

    def _made(self, model: Model, sites: Sequence[str]) -> list[tuple[str, Volume]]:
        """The synthetic set, each volume with the site whose style it has."""
        device = choose_device(self.config.device)
        painter = Painter(model, sites, grid=self.config.grid, device=device)
        return list(painter.volumes(seed=self.seed, count=self.config.evaluation.synthetic))

    def _intensities(
        self,
        made: Sequence[tuple[str, Volume]],
        cohorts: Mapping[str, Sequence[Volume]],
        arm: Arm,
    ) -> None:
        by_site = {site: [v for name, v in made if name == site] for site in cohorts}
        for event in compare_intensities(cohorts, by_site, arm=arm):
            self.log.append(event)

    def _samples(
        self,
        public: Model,
        model: Model,
        cohorts: Mapping[str, Sequence[Volume]],
        *,
        held_out: bool,
    ) -> None:
        """Paint patients' label maps: real beside synthetic, for the report."""
        device = choose_device(self.config.device)
        chosen = [(site, v) for site, vs in cohorts.items() for v in vs[:_PICTURED]]
        sites = [site for site, _ in chosen]
        labels = torch.stack([volume.labels for _, volume in chosen])
        painted = {}
        for name, painted_by in (("synthetic.image", model), ("public.image", public)):
            painter = Painter(painted_by, list(cohorts), grid=self.config.grid, device=device)
            draw = torch.Generator().manual_seed(self.seed)
            painted[name] = painter.paint(labels, sites, draw).cpu().contiguous()
        real = torch.stack([volume.image for _, volume in chosen])
        source = "real" if self.sites[0].source["kind"] == "folder" else "phantom"
        metadata: dict[str, Any] = {
            "sites": json.dumps(sites),
            "source": source,
            "held_out": json.dumps(held_out),
        }
        tensors = {"real.image": real, "real.labels": labels, **painted}
        write_bytes(self.folder.samples, safetensors.torch.save(tensors, metadata=metadata))

    def _note(self, text: str) -> None:
        self.log.append(NoteEvent(text=text))
        self.progress.note(text)
