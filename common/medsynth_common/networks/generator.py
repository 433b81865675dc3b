"""The generator: a label map, noise and a style become T1, T1Gd, T2 and FLAIR."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from medsynth_common.labels import CONTRASTS, TISSUES
from medsynth_common.networks.any_grid import AnyGrid
from medsynth_common.networks.settings import NetworkSettings
from medsynth_common.style import CODE_LENGTH, Style


class Generator(nn.Module):
    """Label map to four contrasts.

    A calibration layer paints each tissue with its mean (offset) and adds noise, fine and slow, of
    its standard deviation (gain); a U-Net without normalisation layers (they would wash out exactly
    what the calibration says) looks at the anatomy, and a head at full resolution turns paint,
    noise and context into an image: partial volume, texture, bias field.

    The last layer starts at zero, so that an untrained generator already gives the calibrated
    painting, and training only adds what paint lacks.
    """

    def __init__(self, settings: NetworkSettings) -> None:
        from monai.networks.nets import UNet  # late, as in build.py

        super().__init__()
        contrasts, tissues = len(CONTRASTS), len(TISSUES)
        context = settings.detail_channels
        self.spatial_dims = settings.spatial_dims
        conv = nn.Conv3d if settings.spatial_dims == 3 else nn.Conv2d
        levels = len(settings.generator_channels)
        unet = UNet(
            spatial_dims=settings.spatial_dims,
            in_channels=tissues + 3 * contrasts + CODE_LENGTH,
            out_channels=context,
            channels=settings.generator_channels,
            strides=(2,) * (levels - 1),
            num_res_units=0,
            norm=None,
        )
        self.context = AnyGrid(unet, levels=levels)
        self.blend = conv(context + 4 * contrasts + CODE_LENGTH, context, 3, padding=1)
        self.paint = conv(context, contrasts, 3, padding=1)
        nn.init.zeros_(self.paint.weight)
        assert self.paint.bias is not None
        nn.init.zeros_(self.paint.bias)

    def forward(self, classes: Tensor, style: Style, noise: Tensor) -> Tensor:
        """Make images.

        Args:
            classes: (n, len(TISSUES), *grid) one-hot (or soft) label maps.
            style: calibration with a leading batch axis of n.
            noise: (n, 8, *grid) as `draw_noise` makes it: one fine and one slow channel for each
                contrast.

        Returns:
            (n, 4, *grid) images, not negative, 0 being air.

        """
        contrasts = len(CONTRASTS)
        mean = torch.einsum("ntc,nt...->nc...", style.offset, classes)
        scale = torch.einsum("ntc,nt...->nc...", style.gain, classes)
        code = _spread_out(style.code, classes)
        # Half the variance of a tissue is taken for grain, half for shading.
        fine = scale * noise[:, :contrasts] * 0.5**0.5
        slow = scale * noise[:, contrasts:] * 0.5**0.5
        context = self.context(torch.cat([classes, mean, fine, slow, code], dim=1))
        seen = torch.cat([context, mean, scale, fine, slow, code], dim=1)
        refined = torch.nn.functional.leaky_relu(self.blend(seen), 0.2)
        brain = 1 - classes[:, :1]
        residual = self.paint(refined)
        # Air stays air: skull-stripped volumes hold zeros outside the brain.
        return torch.relu(mean + fine + slow + residual) * brain

    def draw_noise(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Draw the noise input for label maps (n, ..., *grid), on the CPU so that seeds hold.

        The slow channels vary over a fifth of the grid, as a coil's shading does; a network of
        small convolutions could not make them out of white noise.
        """
        grid = like.shape[-self.spatial_dims :]
        shape = (like.shape[0], len(CONTRASTS))
        fine = torch.randn(*shape, *grid, generator=generator)
        coarse = torch.randn(*shape, *(5 for _ in grid), generator=generator)
        mode = "trilinear" if self.spatial_dims == 3 else "bilinear"
        slow = functional.interpolate(coarse, size=grid, mode=mode, align_corners=True)
        slow = slow / slow.flatten(2).std(-1).view(*shape, *(1 for _ in grid)).clamp(min=1e-6)
        return torch.cat([fine, slow], dim=1).to(like.device)


def _spread_out(code: Tensor, like: Tensor) -> Tensor:
    """Repeat a (n, k) code over the grid of `like`: (n, k, *grid)."""
    grid = like.shape[2:]
    return code.reshape(*code.shape, *(1 for _ in grid)).expand(*code.shape, *grid)
