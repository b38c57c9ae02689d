"""A residual U-Net that starts from one step of classical phase retrieval."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.nn import functional

from torchptycho.config import ModelConfig
from torchptycho.nn.base import Generator

__all__ = ["ResUNet", "first_estimate"]

# Edge in cells of the grid that a frame is folded onto, whatever N: no convolution runs at detector resolution.
_GRID = 32
_CHANNELS_PER_NORM = 8


def first_estimate(
    amplitude: Float[Tensor, "b c n n"], probe: Complex[Tensor, "probe_b p n n"], regularisation: float = 0.1
) -> Complex[Tensor, "b c n n"]:
    """O - 1 after one amplitude projection of the transparent object O = 1.

    The far field of the probe gets the measured amplitudes, is propagated back, and the change is divided by the
    probe: sum_m conj(P_m) (psi_m' - P_m) / (sum_m |P_m|^2 + regularisation * its maximum). It needs no training, knows
    the beam, and already shows edges where they are.
    Reference: Maiden and Rodenburg, Ultramicroscopy 109, 1256 (2009), eqs. 2 to 5, of which it is the first step.
    """
    probe = probe[:, None]
    far = torch.fft.fft2(probe, norm="ortho")
    modulus = (far.real.square() + far.imag.square()).sum(dim=-3, keepdim=True).sqrt()
    direction = far / modulus.clamp_min(1e-12)
    measured = torch.fft.ifftshift(amplitude, dim=(-2, -1))[:, :, None]
    change = torch.fft.ifft2(measured * direction, norm="ortho") - probe
    power = (probe.real.square() + probe.imag.square()).sum(dim=-3)
    floor = regularisation * power.amax(dim=(-2, -1), keepdim=True)
    estimate: Tensor = (change * probe.conj()).sum(dim=-3) / (power + floor)
    return estimate


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // _CHANNELS_PER_NORM, channels)


class _Residual(nn.Module):
    """x + conv(SiLU(conv(SiLU(norm(x))))), the identity at the start because the last convolution begins at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        assert self.second.bias is not None
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.silu(self.first(functional.silu(self.norm(x)))))  # type: ignore[no-any-return]


class ResUNet(Generator):
    """Real and imaginary part over the whole patch, starting from the transparent object 1 + 0i.

    The inputs, log(1 + 4 A) and the real and imaginary part of `first_estimate`, are folded space-to-depth onto
    32 x 32 cells. Residual blocks work at 32, 16, 8 and 4 cells and back with additive skip connections; the last layer
    is near zero at the start and is unfolded to the full patch.

    Arguments:
        n_px: frame edge N, one of `supported_n_px`.
        channels: frames per group.
        widths: channels at 32, 16, 8 and 4 cells, multiples of 8.
    """

    supported_n_px: ClassVar[tuple[int, ...]] = (32, 64, 128, 256)

    def __init__(self, n_px: int, channels: int, widths: tuple[int, ...] = (32, 64, 128, 128)) -> None:
        super().__init__()
        self.channels, self.fold = channels, n_px // _GRID
        cells = self.fold**2
        steps = list(pairwise(widths))
        self.stem = nn.Conv2d(3 * channels * cells, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(_Residual(width) for width in widths)
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in steps)
        self.decoder = nn.ModuleList(_Residual(width) for width in widths[:-1])
        self.norm = _norm(widths[0])
        self.head = nn.Conv2d(widths[0], 2 * channels * cells, 3, padding=1)
        nn.init.normal_(self.head.weight, std=1e-3)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    @classmethod
    def from_config(cls, config: ModelConfig, n_px: int, channels: int) -> ResUNet:
        width = 16 * config.n_filters_scale
        return cls(n_px, channels, (width, 2 * width, 4 * width, 4 * width))

    def forward(
        self, amplitude: Float[Tensor, "b c n n"], probe: Complex[Tensor, "probe_b p n n"]
    ) -> Complex[Tensor, "b c n n"]:
        # No half-precision FFT exists for every backend, and complex numbers have no bf16.
        with torch.autocast(device_type=amplitude.device.type, enabled=False):
            estimate = first_estimate(amplitude, probe)
            # Counts span orders of magnitude; the logarithm leaves the weak, wide-angle part visible.
            planes = torch.cat([torch.log1p(4 * amplitude), estimate.real, estimate.imag], dim=1)
        x = self.stem(functional.pixel_unshuffle(planes, self.fold))
        fine = []
        for encode, down in zip(self.encoder, self.down, strict=False):
            x = encode(x)
            fine.append(x)
            x = down(x)
        x = self.encoder[-1](x)
        for up, decode, skip in reversed(list(zip(self.up, self.decoder, fine, strict=True))):
            # The 1x1 convolution commutes with the nearest-neighbour upsampling and is four times cheaper before it.
            x = decode(functional.interpolate(up(x), scale_factor=2) + skip)
        parts = functional.pixel_shuffle(self.head(functional.silu(self.norm(x))).float(), self.fold)
        return torch.complex(1 + parts[:, : self.channels], parts[:, self.channels :])
