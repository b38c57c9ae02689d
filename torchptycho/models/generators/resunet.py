"""A residual U-Net that starts from one step of classical phase retrieval."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from torchptycho.core.config import ModelConfig
from torchptycho.models.generators.generator import GroupInput
from torchptycho.models.generators.unet import UNetGenerator

__all__ = ["ResUNet", "estimate_object"]

# Edge, in cells, of the grid onto which a frame is folded, for any N, so that no convolution runs at detector
# resolution.
_GRID = 32


def estimate_object(
    amplitude: Float[Tensor, "b c n n"], probe: Complex[Tensor, "probe_b p n n"], regularisation: float = 0.1
) -> Complex[Tensor, "b c n n"]:
    """Estimate O - 1 by one amplitude projection of the transparent object O = 1.

    The far field of the probe gets the measured amplitudes and is propagated back, and the change is divided by the
    probe: sum_m conj(P_m) (psi_m' - P_m) / (sum_m |P_m|^2 + regularisation * its maximum). Without training, it already
    shows the edges of the object at their positions.
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


class ResUNet(UNetGenerator):
    """Real and imaginary part over the whole patch, starting from the transparent object 1 + 0i; frame by frame.

    The inputs, log(1 + 4 A) and the real and imaginary part of `estimate_object`, are folded onto 32 x 32 cells.

    Arguments:
        n_px: frame edge N, one of `supported_n_px`.
        channels: frames per group.
        widths: channels at 32, 16, 8 and 4 cells, multiples of 8.
    """

    supported_n_px: ClassVar[tuple[int, ...]] = (32, 64, 128, 256)

    def __init__(self, n_px: int, channels: int, widths: tuple[int, ...] = (32, 64, 128, 128)) -> None:
        super().__init__(3 * channels, 2 * channels, n_px // _GRID, widths)
        self.channels = channels

    @classmethod
    def from_config(cls, config: ModelConfig, n_px: int, channels: int) -> ResUNet:
        width = 16 * config.n_filters_scale
        return cls(n_px, channels, (width, 2 * width, 4 * width, 4 * width))

    def forward(self, group: GroupInput) -> Complex[Tensor, "b c n n"]:
        # Half-precision FFTs do not exist on every backend, and there is no complex bfloat16.
        with torch.autocast(device_type=group.amplitude.device.type, enabled=False):
            estimate = estimate_object(group.amplitude, group.probe)
            # Counts span orders of magnitude; the logarithm preserves the weak signal at high angles.
            planes = torch.cat([torch.log1p(4 * group.amplitude), estimate.real, estimate.imag], dim=1)
        parts = self.apply_unet(planes)
        return torch.complex(1 + parts[:, : self.channels], parts[:, self.channels :])
