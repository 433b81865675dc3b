"""The sizes of the three networks, and the presets that fit a CPU or a GPU."""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Feature channels of each level. Bounded, since a plan decides what a site builds.
Channels = Annotated[
    tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=2, max_length=6)
]
#: SegResNet normalises in groups of this many channels.
_GROUPS: Final = 8


class NetworkSettings(BaseModel):
    """Sizes; the same on every site, since weights are averaged.

    Attributes:
        spatial_dims: 3 for volumes, 2 for axial slices.
        generator_channels: feature channels of the generator's U-Net, from fine to coarse.
        detail_channels: channels of the generator's full-resolution head.
        critic_channels: channels of the PatchGAN's first layer; they double at each level.
        critic_layers: its strided levels.
        segmenter: which MONAI network segments.
        segmenter_channels: its feature channels, from fine to coarse.

    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    spatial_dims: Literal[2, 3] = 3
    generator_channels: Channels = (16, 32, 64)
    detail_channels: int = Field(default=8, ge=4, le=256)
    critic_channels: int = Field(default=16, ge=4, le=256)
    critic_layers: int = Field(default=2, ge=1, le=5)
    segmenter: Literal["unet", "segresnet"] = "unet"
    segmenter_channels: Channels = (8, 16, 32)

    @model_validator(mode="after")
    def _segmenter_can_be_built(self) -> "NetworkSettings":
        if self.segmenter == "segresnet" and self.segmenter_channels[0] % _GROUPS:
            raise ValueError(
                f"segresnet's first segmenter_channels must be a multiple of {_GROUPS}, "
                f"got {self.segmenter_channels[0]}"
            )
        return self

    def check_sides(self, grid: Sequence[int], crop: Sequence[int]) -> None:
        """Raise ValueError unless the networks can take volumes and crops of these sides."""
        if any(part > side for part, side in zip(crop, grid, strict=True)):
            raise ValueError(f"a crop that fits the grid {tuple(grid)}, got {tuple(crop)}")
        sides = (*grid[: self.spatial_dims], *crop[: self.spatial_dims])
        # At its coarsest, a network that normalises each channel needs more than one voxel.
        deepest = 2 ** (len(self.segmenter_channels) - 1)
        if all(side <= deepest for side in crop[: self.spatial_dims]):
            raise ValueError(
                f"a crop side above {deepest}, as deep as the segmenter is, got {tuple(crop)}"
            )
        # Below this the critic's last normalised map is a single voxel, which has no deviation.
        least = 3 * 2**self.critic_layers
        if any(side < least for side in sides):
            raise ValueError(f"crop sides of at least {least} for the critic, got {tuple(crop)}")


#: The CPU preset trains 48^3 volumes in minutes; the GPU preset is sized for 128^3.
PRESETS: Final = {
    "cpu": NetworkSettings(),
    "gpu": NetworkSettings(
        generator_channels=(32, 64, 128, 256, 256),
        detail_channels=32,
        critic_channels=32,
        critic_layers=3,
        segmenter="segresnet",
        segmenter_channels=(16, 32, 64, 128),
    ),
}
