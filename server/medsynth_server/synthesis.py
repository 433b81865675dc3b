"""Making synthetic volumes: public label maps, painted in the sites' released styles."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from medsynth_common.intensity import CEILING
from medsynth_common.labels import one_hot
from medsynth_common.learning.label_bank import label_bank
from medsynth_common.learning.painting import paint
from medsynth_common.learning.volumes import Volume, draw_crops
from medsynth_common.privacy.randomness import SimulatedRandomness
from medsynth_common.style import stack
from medsynth_server.model import Model


class Painter:
    """Paints label maps; every volume is an invented patient of one of the sites' scanners."""

    def __init__(
        self, model: Model, sites: Sequence[str], *, grid: tuple[int, ...], device: torch.device
    ) -> None:
        self._generator = model.generator(device).eval()
        self._variation = model.variation
        self._styles = {site: model.style(site) for site in sites}
        self._grid, self._device = grid, device

    @torch.no_grad()
    def paint(self, labels: Tensor, sites: Sequence[str], draw: torch.Generator) -> Tensor:
        """Images (n, 4, *grid) for label maps (n, *grid), each in its site's style."""
        classes = one_hot(labels).to(self._device)
        patients = [
            self._variation.patient(self._styles[site], one, draw)
            for site, one in zip(sites, labels, strict=True)
        ]
        styles = stack(patients).to(self._device)
        # Patients' images end there too (`normalise`).
        return paint(self._generator, classes, styles, draw).clamp(max=CEILING)

    def volumes(self, *, seed: int, count: int) -> Iterator[tuple[str, Volume]]:
        """Make `count` volumes, sites taking turns; the same seed makes the same volumes."""
        names = sorted(self._styles)
        draw = torch.Generator().manual_seed(seed)
        for index, labels in enumerate(label_bank(seed, count, self._grid)):
            site = names[index % len(names)]
            image = self.paint(labels.unsqueeze(0), [site], draw)[0]
            yield site, Volume(image=image.cpu(), labels=labels)

    def batches(self, *, seed: int, batch: int, fresh: int) -> Iterator[list[Volume]]:
        """Give endless batches of `fresh` label maps, painted anew each time they come up."""
        names = sorted(self._styles)
        bank = label_bank(seed, fresh, self._grid)
        draw = torch.Generator().manual_seed(seed)
        while True:
            labels = bank[torch.randint(len(bank), (batch,), generator=draw)]
            where = torch.randint(len(names), (batch,), generator=draw).tolist()
            images = self.paint(labels, [names[index] for index in where], draw).cpu()
            yield [Volume(image=i, labels=m) for i, m in zip(images, labels, strict=True)]


def repeat_batches(volumes: Sequence[Volume], *, batch: int, seed: int) -> Iterator[list[Volume]]:
    """Give endless random batches of fixed volumes."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        picks = torch.randint(len(volumes), (batch,), generator=draw).tolist()
        yield [volumes[index] for index in picks]


def crop_batches(
    batches: Iterator[list[Volume]], *, crop: tuple[int, ...], seed: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut two crops out of each volume of each batch: images (n, 4, *crop), labels (n, *crop)."""
    randomness = SimulatedRandomness("public crops", seed)
    for volumes in batches:
        pairs = [draw_crops(v, crop=crop, count=2, randomness=randomness) for v in volumes]
        images, labels = zip(*pairs, strict=True)
        yield torch.cat(images).to(device), torch.cat(labels).to(device)
