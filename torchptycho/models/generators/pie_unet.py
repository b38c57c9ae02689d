"""rPIE iterations on a group, a correction by a U-Net, and further iterations for consistency with the data."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Complex
from torch import Tensor, nn

from torchptycho.core.config import ModelConfig
from torchptycho.models.generators.generator import GroupInput
from torchptycho.models.generators.unet import UNetGenerator
from torchptycho.physics.pie import GroupProjection, extrapolate, upsample_2x

__all__ = ["PieUNet"]

# Edge, in cells, of the grid onto which a frame is folded, for any N. A coarse grid suffices, because the projections
# reconstruct fine structure.
_GRID = 16
# Scales the computed update to the magnitude of the object's structure.
_STEP_SCALE = 5.0
# Real and imaginary part of the object and of its update, and the illumination.
_INPUT_PLANES = 5


class PieUNet(UNetGenerator):
    """One object per group: rPIE iterations, a correction by a U-Net, and final rPIE iterations.

    The first iterations run at half resolution. The input of the network is the group's canvas, so that frames are at
    their positions and a group can have any number of frames: the object, the update by the next iteration at full
    resolution, and the illumination. The network adds its correction to that update; it starts at zero, so that the
    untrained generator is regularised PIE. At inference, `finish_projections` more iterations restore consistency with
    the counts.

    Arguments:
        n_px: frame edge N, one of `supported_n_px`.
        widths: channels at N/4, N/8 and N/16 pixels (N = 64), multiples of 8.
        start_projections, finish_projections: numbers of iterations before and after the network.
    """

    supported_n_px: ClassVar[tuple[int, ...]] = (32, 64, 128, 256)
    patches_agree: ClassVar[bool] = True

    def __init__(
        self,
        n_px: int,
        widths: tuple[int, ...] = (32, 64, 96),
        start_projections: int = 12,
        finish_projections: int = 5,
    ) -> None:
        super().__init__(_INPUT_PLANES, 2, n_px // _GRID, widths)
        # Exactly zero: a random initial output, however weak, adds low-frequency phase errors that projections remove
        # slowly.
        nn.init.zeros_(self.head.weight)
        self.start_projections, self.finish_projections = start_projections, finish_projections

    @classmethod
    def from_config(cls, config: ModelConfig, n_px: int, channels: int) -> PieUNet:
        width = 16 * config.n_filters_scale
        return cls(n_px, (width, 2 * width, 3 * width), config.start_projections, config.finish_projections)

    def forward(self, group: GroupInput) -> Complex[Tensor, "b c n n"]:
        edge_px = -(-group.canvas_px // self.multiple_px) * self.multiple_px
        arguments = (
            group.amplitude,
            group.probe,
            group.offset_px,
            group.mask,
            group.intensity_per_count,
            group.background,
            edge_px,
            group.patch_operators,
        )
        # Half-precision FFTs do not exist on every backend, and there is no complex bfloat16.
        with torch.autocast(device_type=group.amplitude.device.type, enabled=False):
            with torch.no_grad():
                projection = GroupProjection(*arguments)
                begin, velocity = projection.make_transparent_objects(), None
                if self.start_projections:
                    coarse = GroupProjection.at_half_resolution(*arguments)
                    rough, movement = coarse.run(coarse.make_transparent_objects(), self.start_projections)
                    begin, velocity = upsample_2x(rough), None if movement is None else upsample_2x(movement)
                further = extrapolate(begin, velocity)
                change = projection.preconditioned_step(further)
                canvas = further + change
                velocity = canvas - begin
            structure, change = further - 1, _STEP_SCALE * change
            planes = torch.stack(
                [structure.real, structure.imag, change.real, change.imag, projection.illumination], dim=1
            )
        parts = self.apply_unet(planes)
        canvas = canvas + torch.complex(parts[:, 0], parts[:, 1])
        if not self.training and self.finish_projections:
            with torch.no_grad():
                canvas, _ = projection.run(canvas, self.finish_projections, velocity)
        return projection.extract_patches(canvas)
