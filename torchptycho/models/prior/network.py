"""The network of the prior: a bias-free U-Net that corrects an object by at most a few times its photon noise."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PriorConfig", "PriorNetwork"]

_FOLD = 2
"""Edge of the cells that are folded into channels, so that no convolution runs at full resolution."""
_SMOOTHING_PX = 9
"""Edge of the mean that is taken out of the object: in half precision, fine detail on top of 1 would be rounded off."""
_PLANES = 5
# Relative to the object's mean amplitude: noise beyond this says no more than that nothing is known ...
_MAX_SIGMA = 2.0
# ... and with less than the first of these, counts need no prior; it acts in full from the second.
_OFF_SIGMA, _FULL_SIGMA = 0.002, 0.006


@dataclasses.dataclass(frozen=True)
class PriorConfig:
    """Size and reach of the network.

    Arguments:
        widths: channels from the finest level, at half the resolution, to the coarsest.
        deepest_blocks: residual blocks at the coarsest level.
        max_correction: farthest that a pixel is moved, in units of its sigma.
    """

    widths: tuple[int, ...] = (48, 96, 128)
    deepest_blocks: int = 2
    max_correction: float = 8.0


class _ResidualBlock(nn.Module):
    """x + conv(ReLU(conv(x))) without biases: what is scaled before it is scaled after it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.first.weight)
        nn.init.normal_(self.second.weight, std=0.1 * (2 / (9 * channels)) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.relu(self.first(x)))  # type: ignore[no-any-return]


class PriorNetwork(nn.Module):
    """Object and photon noise to an object with less noise.

    Bias-free throughout, so that f(s O, s sigma) = s f(O, sigma): neither dose nor transmission has a unit in it. The
    correction of a pixel is at most `max_correction` sigma and fades to nothing where sigma is below a few thousandths
    of the mean amplitude.
    Reference: Zhang, Li, Zuo, Zhang, Van Gool, Timofte, IEEE Trans. Pattern Anal. Mach. Intell. 44, 6360 (2022), for
    denoising with a map of the noise level by a network without biases.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        steps = list(pairwise(widths))
        self.stem = nn.Conv2d(_PLANES * _FOLD**2, widths[0], 3, padding=1, bias=False)
        self.encoder = nn.ModuleList(_ResidualBlock(width) for width in widths[:-1])
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2, bias=False) for fine, coarse in steps)
        self.deepest = nn.Sequential(*[_ResidualBlock(widths[-1]) for _ in range(config.deepest_blocks)])
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine, 1, bias=False) for fine, coarse in steps)
        self.decoder = nn.ModuleList(_ResidualBlock(width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], 2 * _FOLD**2, 3, padding=1, bias=False)
        nn.init.normal_(self.head.weight, std=1e-2)

    @property
    def multiple_px(self) -> int:
        """What the edges of an object must be a multiple of."""
        return int(_FOLD * 2 ** len(self.down))

    def forward(
        self,
        object: Complex[Tensor, "b h w"],
        sigma: Float[Tensor, "b h w"],
        scale: Float[Tensor, "b 1 1"] | None = None,
    ) -> Complex[Tensor, "b h w"]:
        """Return the object with less noise.

        Arguments:
            sigma: standard deviation of the object's real and imaginary part, in the same unit.
            scale: amplitude that sigma is compared with; None measures the object's own.
        """
        scale = measure_amplitude(object, sigma) if scale is None else scale
        object = object / scale
        sigma = (sigma / scale).clamp(max=_MAX_SIGMA)
        parts = torch.stack([object.real, object.imag], 1)
        smooth = functional.avg_pool2d(parts, _SMOOTHING_PX, 1, _SMOOTHING_PX // 2, count_include_pad=False)
        change = self._apply_unet(torch.cat([parts - smooth, smooth, sigma[:, None]], 1))
        limit = self.config.max_correction * sigma
        shrink = limit / (change.square().sum(1) + limit.square()).sqrt()
        gate = ((sigma - _OFF_SIGMA) / (_FULL_SIGMA - _OFF_SIGMA)).clamp(0, 1)
        change = change * (shrink * gate)[:, None]
        return (object + torch.complex(change[:, 0], change[:, 1])) * scale

    def _apply_unet(self, planes: Tensor) -> Tensor:
        """[B, 2, H, W] in float32 from [B, 5, H, W]."""
        with torch.autocast(planes.device.type, enabled=False):
            x = self.stem(functional.pixel_unshuffle(planes, _FOLD))
        fine = []
        for encode, down in zip(self.encoder, self.down, strict=True):
            x = encode(x)
            fine.append(x)
            x = down(x)
        x = self.deepest(x)
        for up, decode, skip in reversed(list(zip(self.up, self.decoder, fine, strict=True))):
            # The 1x1 convolution commutes with the nearest-neighbour upsampling and is four times cheaper before it.
            x = decode(functional.interpolate(up(x), scale_factor=2) + skip)
        return functional.pixel_shuffle(self.head(x).float(), _FOLD)


def measure_amplitude(object: Complex[Tensor, "b h w"], sigma: Float[Tensor, "b h w"]) -> Float[Tensor, "b 1 1"]:
    """Measure the root mean square amplitude, each pixel weighted by its photons."""
    weight = sigma.clamp_min(1e-12).square().reciprocal()
    power = object.real.square() + object.imag.square()
    mean = (weight * power).sum((-2, -1), keepdim=True) / weight.sum((-2, -1), keepdim=True).clamp_min(1e-30)
    return mean.sqrt().clamp_min(1e-12)
