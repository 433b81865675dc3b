"""A site's style: what its scanner makes of each tissue, as far as it has been released.

The generator is one for all sites; what differs is its calibration layer, one small table per
site: an offset and a gain per tissue and contrast, the spread of the offsets between patients,
and a short code for what is not a tissue's brightness (noise, blur, bias field, texture).
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from medsynth_common.labels import CONTRASTS, TISSUES
from medsynth_common.tensors import TensorParts

#: Length of a style code: noise, resolution, bias field, texture.
CODE_LENGTH: Final = 4
TABLE: Final = (len(TISSUES), len(CONTRASTS))


@dataclass(frozen=True, kw_only=True)
class Style(TensorParts):
    """Calibration of the generator to one scanner, or to one image of it.

    Attributes:
        offset: (tissue, contrast) mean intensity.
        gain: (tissue, contrast) standard deviation of the intensity inside a tissue.
        spread: (tissue, contrast) standard deviation of the mean between patients.
        code: (CODE_LENGTH,) standardised scanner properties; zero is the average scanner.

    """

    offset: Tensor
    gain: Tensor
    spread: Tensor
    code: Tensor

    @classmethod
    def neutral(cls) -> "Style":
        """Give a style of the right form that says nothing: the form a check compares with."""
        zero = torch.zeros(TABLE)
        return cls(offset=zero, gain=zero, spread=zero, code=torch.zeros(CODE_LENGTH))

    def to(self, device: torch.device) -> "Style":
        """Move every part to a device."""
        return Style(**{name: value.to(device) for name, value in self.tensors().items()})


def stack(styles: list[Style]) -> Style:
    """Put styles one behind the other: every part gains a leading batch axis."""
    parts = [style.tensors() for style in styles]
    return Style(**{name: torch.stack([one[name] for one in parts]) for name in parts[0]})
