"""The U-Net that the generators share: residual blocks on planes folded space-to-depth."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from torchptycho.models.generators.generator import Generator

__all__ = ["UNetGenerator"]

_CHANNELS_PER_NORM = 8


def _make_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // _CHANNELS_PER_NORM, channels)


class _ResidualBlock(nn.Module):
    """x + conv(SiLU(conv(SiLU(norm(x))))), the identity at the start because the last convolution begins at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _make_norm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.silu(self.first(functional.silu(self.norm(x)))))  # type: ignore[no-any-return]


class UNetGenerator(Generator):
    """A generator whose network is a U-Net with residual blocks and additive skip connections.

    The input is folded space-to-depth, so that no convolution runs at full resolution; the edge is halved between the
    widths. The last layer is near zero at the start and is unfolded again.

    Arguments:
        inputs, outputs: planes at full resolution.
        fold: edge of the cells that are folded into channels.
        widths: channels from the finest level to the coarsest, multiples of 8.
    """

    def __init__(self, inputs: int, outputs: int, fold: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.fold = fold
        steps = list(pairwise(widths))
        self.stem = nn.Conv2d(inputs * fold**2, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(_ResidualBlock(width) for width in widths)
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in steps)
        self.decoder = nn.ModuleList(_ResidualBlock(width) for width in widths[:-1])
        self.norm = _make_norm(widths[0])
        self.head = nn.Conv2d(widths[0], outputs * fold**2, 3, padding=1)
        nn.init.normal_(self.head.weight, std=1e-3)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    @property
    def multiple_px(self) -> int:
        """Number of which the edges of the planes must be a multiple."""
        return self.fold * int(2 ** len(self.down))

    def apply_unet(self, planes: Tensor) -> Tensor:
        """Apply the U-Net to [B, inputs, H, W]; return [B, outputs, H, W] in float32."""
        x = self.stem(functional.pixel_unshuffle(planes, self.fold))
        fine = []
        for encode, down in zip(self.encoder, self.down, strict=False):
            x = encode(x)
            fine.append(x)
            x = down(x)
        x = self.encoder[-1](x)
        for up, decode, skip in reversed(list(zip(self.up, self.decoder, fine, strict=True))):
            # The 1x1 convolution commutes with nearest-neighbour upsampling; applied before it, it costs a quarter.
            x = decode(functional.interpolate(up(x), scale_factor=2) + skip)
        return functional.pixel_shuffle(self.head(functional.silu(self.norm(x))).float(), self.fold)
