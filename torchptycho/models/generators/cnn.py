"""The plain convolutional encoder with two decoders, the shape of the original PtychoPINN.

Hoidn, Mishra, Mehta, Scientific Reports 13, 22789 (2023). No skip connections, no normalisation layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Complex
from torch import Tensor, nn
from torch.nn import functional

from torchptycho.core.config import ModelConfig
from torchptycho.models.generators.generator import Generator, GroupInput

__all__ = ["CNN"]

_ENCODER_FILTERS = {64: (32, 64, 128), 128: (16, 32, 64, 128), 256: (8, 16, 32, 64, 128)}
_DECODER_FILTERS = {64: (64, 32), 128: (128, 64, 32), 256: (256, 128, 64, 32)}
_BORDER_CHANNELS = 4

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "swish": functional.silu,
    "softplus": functional.softplus,
    "relu": functional.relu,
}


def _make_conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


class _Decoder(nn.Module):
    """Decoder from the code to one real map: the central half, and optionally the border by a separate block."""

    def __init__(self, inputs: int, filters: tuple[int, ...], border_filters: int, channels: int, border: bool) -> None:
        super().__init__()
        stages = []
        for outputs in filters:
            stages += [
                _make_conv(inputs, outputs),
                nn.ReLU(),
                _make_conv(outputs, outputs),
                nn.ReLU(),
                nn.Upsample(scale_factor=2),
            ]
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.central = _make_conv(inputs - _BORDER_CHANNELS, channels)
        self.border = (
            nn.Sequential(
                _make_conv(_BORDER_CHANNELS, border_filters),
                nn.ReLU(),
                _make_conv(border_filters, border_filters),
                nn.ReLU(),
                nn.Upsample(scale_factor=2),
                _make_conv(border_filters, channels),
            )
            if border
            else None
        )

    def forward(self, code: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        features = self.stages(code)
        central = activation(self.central(features[:, :-_BORDER_CHANNELS]))
        quarter = central.shape[-1] // 2
        central = functional.pad(central, (quarter,) * 4)
        if self.border is None:
            return central
        outside = torch.ones_like(central)
        outside[..., quarter:-quarter, quarter:-quarter] = 0
        return central + functional.silu(self.border(features[:, -_BORDER_CHANNELS:])) * outside


class CNN(Generator):
    """Amplitude (bounded by the chosen activation) and phase (pi tanh) from two decoders.

    Arguments:
        n_px: frame edge N, one of `supported_n_px`.
        channels: frames per group.
        n_filters_scale: multiplies the filter counts of both halves.
        amplitude_activation: name of the activation of the amplitude.
        probe_big: predict the border of the patch as well; otherwise it is 0 outside the central half.
    """

    supported_n_px: ClassVar[tuple[int, ...]] = tuple(_ENCODER_FILTERS)

    def __init__(
        self, n_px: int, channels: int, n_filters_scale: int, amplitude_activation: str, probe_big: bool
    ) -> None:
        super().__init__()
        encoder = tuple(n * n_filters_scale for n in _ENCODER_FILTERS[n_px])
        decoder = tuple(n * n_filters_scale for n in _DECODER_FILTERS[n_px])
        stages: list[nn.Module] = []
        inputs = channels
        for outputs in encoder:
            stages += [_make_conv(inputs, outputs), nn.ReLU(), _make_conv(outputs, outputs), nn.ReLU(), nn.MaxPool2d(2)]
            inputs = outputs
        self.encoder = nn.Sequential(*stages)
        self.amplitude = _Decoder(inputs, decoder, encoder[0], channels, probe_big)
        self.phase = _Decoder(inputs, decoder, encoder[0], channels, probe_big)
        self._activation = _ACTIVATIONS[amplitude_activation]

    @classmethod
    def from_config(cls, config: ModelConfig, n_px: int, channels: int) -> CNN:
        return cls(n_px, channels, config.n_filters_scale, config.amplitude_activation, config.probe_big)

    def forward(self, group: GroupInput) -> Complex[Tensor, "b c n n"]:
        code = self.encoder(group.amplitude)
        modulus = self.amplitude(code, self._activation).float()
        phase = self.phase(code, lambda x: math.pi * torch.tanh(x)).float()
        return torch.complex(modulus * torch.cos(phase), modulus * torch.sin(phase))
