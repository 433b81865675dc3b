"""What the coordinator holds: every weight of the run as named tensors, in one immutable value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medsynth_common.learning.moments import Prior
from medsynth_common.learning.variation import Variation
from medsynth_common.networks import (
    Generator,
    Network,
    NetworkSettings,
    build_critic,
    build_segmenter,
    load_network,
)
from medsynth_common.style import Style
from medsynth_common.tensors import state_of, under, with_prefix


@dataclass(frozen=True, kw_only=True)
class Model:
    """The weights of a run.

    Attributes:
        networks: their sizes.
        tensors: `generator.*`, `segmenter.*`, `critic.*`, `prior.*`, `variation.*`, `features.*`
            and, for every site, `style.SITE.*`.

    """

    networks: NetworkSettings
    tensors: Mapping[str, Tensor]

    @classmethod
    def fresh(cls, networks: NetworkSettings, *, seed: int) -> "Model":
        """Initialise all networks; the same seed gives the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts: dict[str, nn.Module] = {
                "generator": Generator(networks),
                "segmenter": build_segmenter(networks),
                "critic": build_critic(networks),
            }
        tensors = {
            name: tensor
            for part, module in parts.items()
            for name, tensor in with_prefix(part, state_of(module)).items()
        }
        return cls(networks=networks, tensors=tensors)

    def updated(self, tensors: Mapping[str, Tensor]) -> "Model":
        """The same model with these tensors put in place of, or beside, its own."""
        return Model(networks=self.networks, tensors={**self.tensors, **tensors})

    def without(self, part: str) -> "Model":
        """The same model without the tensors under `part`."""
        gone = self.part(part).keys()
        kept = {name: tensor for name, tensor in self.tensors.items() if name not in gone}
        return Model(networks=self.networks, tensors=kept)

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors under `name`, with their full names."""
        return with_prefix(name, under(name, self.tensors))

    def generator(self, device: torch.device) -> Generator:
        """Build the generator with its weights."""
        return self._network("generator", Generator, device)

    def segmenter(self, device: torch.device) -> nn.Module:
        """Build the segmenter with its weights."""
        return self._network("segmenter", build_segmenter, device)

    def critic(self, device: torch.device) -> nn.Module:
        """Build the publicly trained critic with its weights."""
        return self._network("critic", build_critic, device)

    def _network(
        self, part: str, build: Callable[[NetworkSettings], Network], device: torch.device
    ) -> Network:
        return load_network(build, self.networks, under(part, self.tensors), device=device)

    @property
    def prior(self) -> Prior:
        """What public phantoms say about intensities."""
        return Prior.from_tensors(under("prior", self.tensors))

    @property
    def variation(self) -> Variation:
        """What public phantoms say about how patients differ."""
        return Variation.from_tensors(under("variation", self.tensors))

    @property
    def styled_sites(self) -> list[str]:
        """The sites that have released a style, in the order of their names."""
        names = [name.removeprefix("style.") for name in self.tensors if name.startswith("style.")]
        return sorted({name.rpartition(".")[0] for name in names})

    def style(self, site: str) -> Style:
        """A site's style, or the public average where the site has released none."""
        tensors = under(f"style.{site}", self.tensors)
        if tensors.keys() == Style.neutral().tensors().keys():
            return Style.from_tensors(tensors)
        return Style.from_tensors({**self.prior.style().tensors(), **tensors})
