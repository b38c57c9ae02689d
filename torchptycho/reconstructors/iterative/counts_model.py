"""A refined image as a truth from which the counts of its scan can be drawn again."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Int64
from torch import Tensor

from torchptycho.core.errors import ConfigError
from torchptycho.core.reconstruction import Reconstruction, find_regularization
from torchptycho.core.scan import Scan
from torchptycho.physics.illumination import compute_illumination
from torchptycho.physics.noise import poisson_sample
from torchptycho.physics.patches import extract
from torchptycho.physics.propagation import build_propagator
from torchptycho.reconstructors.iterative.learned_prior import LearnedPrior
from torchptycho.reconstructors.iterative.variable_probe import build_image_probe

__all__ = ["CountsModel", "has_prior"]

_FRAMES_AT_ONCE = 32


def has_prior(image: Reconstruction) -> bool:
    """Return whether a prior acted on a refined image."""
    return float((find_regularization(image) or {}).get("strength", 0)) > 0


@dataclasses.dataclass(frozen=True, eq=False)
class CountsModel:
    """The image as a truth from which counts can be drawn, on the device.

    Arguments:
        object: [H, W], without the noise that a prior would remove.
        corners_px: of the patches, on its canvas.
        photons_per_px: [H, W] through each pixel.
    """

    object: Complex[Tensor, "h w"]
    probe: Complex[Tensor, "p n n"]
    corners_px: Float[Tensor, "m 2"]
    photons_per_px: Float[np.ndarray, "h w"]
    mask: Bool[Tensor, "n n"]
    background: Float[Tensor, "n n"]
    scan: Scan
    image: Reconstruction

    @classmethod
    def build(cls, image: Reconstruction, scan: Scan, device: torch.device) -> CountsModel:
        assert image.probe is not None
        assert image.positions_px is not None
        probe, values = torch.from_numpy(image.probe).to(device), torch.from_numpy(image.object).to(device)
        corners_px = torch.from_numpy(image.positions_px - np.array(image.origin_px) - scan.n_px // 2).to(device)
        photons = compute_illumination(probe, corners_px, (values.shape[0], values.shape[1]))
        known = torch.from_numpy(image.valid).to(device)
        if not known.any():
            raise ConfigError("image: expected valid pixels; found none.")
        # Outside, where the refinement left what it began with, and near its edge.
        values = torch.where(known, values, values[known].abs().square().mean().sqrt().to(values.dtype))
        if not has_prior(image):
            values = LearnedPrior(device=device).denoise(values, photons.clamp_min(1e-3).float(), 1.0)
        n_px = scan.n_px
        background = np.zeros((n_px, n_px), np.float32) if image.background is None else image.background
        return cls(
            values.to(torch.complex64),
            probe,
            corners_px,
            photons.cpu().numpy(),
            torch.from_numpy(scan.mask).to(device),
            torch.from_numpy(background).to(device),
            scan,
            image,
        )

    def build_probe(self, index: Int64[Tensor, " k"]) -> Complex[Tensor, "*frames p n n"]:
        """Build the probe of these frames."""
        return build_image_probe(self.image, index, self.probe.device)

    def draw_counts(self, seed: int) -> np.ndarray:
        """Simulate counts of all frames, laid out as those of the scan."""
        generator = torch.Generator().manual_seed(seed)
        propagator = build_propagator(self.scan.geometry, self.scan.n_px, device=self.probe.device)
        drawn = []
        for index in torch.split(torch.arange(len(self.corners_px), device=self.probe.device), _FRAMES_AT_ONCE):
            patches = extract(self.object, self.corners_px[index], self.scan.n_px)
            wave = propagator.forward(patches[:, None] * self.build_probe(index))
            expected = (wave.real.square() + wave.imag.square()).sum(1)
            if propagator.zero_frequency_first:
                expected = torch.fft.fftshift(expected, dim=(-2, -1))
            counts = poisson_sample((expected + self.background).cpu().double(), generator).numpy()
            drawn.append(counts.astype(np.uint16 if counts.max() < 2**16 else np.uint32))
        return np.concatenate(drawn)
