"""Model of the experiment around the object: constraints of the probe, scale, blur, background."""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float, Int64
from torch import Tensor, nn

from torchptycho.core.config import ExperimentConfig
from torchptycho.physics.probe_constraints import scale_probe_power, smoothing_envelope, soft_disc

__all__ = ["MeasurementModel"]

# Smallest initial value of a trained background, relative to the mean count: its logarithm needs a finite start.
_MIN_INITIAL_BACKGROUND = 1e-3


class MeasurementModel(nn.Module):
    """Brings a probe under its constraints, and expected counts to those that the detector shows.

    Only enabled options have parameters or buffers, so that checkpoints without them have no entries.

    Arguments:
        n_px: frame edge N.
        n_scans: scans with a scale and a background of their own.
    """

    support: Tensor | None
    envelope: Tensor | None
    power: Tensor | None

    def __init__(self, config: ExperimentConfig, n_px: int, n_scans: int) -> None:
        super().__init__()
        self._config = config
        diameter_px, sigma_px = config.probe_support_px, config.exit_smoothing_px
        disc = None if diameter_px is None else soft_disc(n_px, diameter_px, config.probe_support_edge_px)
        self.register_buffer("support", disc, persistent=False)
        self.register_buffer("envelope", smoothing_envelope(n_px, sigma_px) if sigma_px else None, persistent=False)
        fixed = config.probe_power == "fixed"
        self.register_buffer("power", torch.full((n_scans,), math.nan, dtype=torch.float64) if fixed else None)
        # Logarithms keep scale and background positive, and make steps relative to their size.
        self.log_scale = nn.Parameter(torch.zeros(n_scans)) if config.scale_trainable else None
        self.log_background = nn.Parameter(torch.zeros(n_scans)) if config.background_trainable else None

    def initialize(
        self, probe: Complex[Tensor, "s p n n"], mean_counts: Float[Tensor, " s"], floor_counts: Float[Tensor, " s"]
    ) -> None:
        """Take the power to keep, and where the background begins, from the scans.

        Arguments:
            probe: of each scan, before any constraint.
            mean_counts: photons per pixel of a mean frame of each scan.
            floor_counts: photons in its darkest pixels.
        """
        if self.power is not None:
            self.power = probe.abs().double().square().sum(dim=(1, 2, 3))
        if self.log_background is not None:
            first = self._config.background_counts or floor_counts.clamp_min(_MIN_INITIAL_BACKGROUND * mean_counts)
            self.log_background.data = (
                torch.as_tensor(first, dtype=torch.float32).log().expand(len(mean_counts)).clone()
            )

    def constrain_probe(self, probe: Complex[Tensor, "s p n n"]) -> Complex[Tensor, "s p n n"]:
        """Constrain the probe to its support and its fixed power."""
        if self.support is not None:
            probe = probe * self.support
        return probe if self.power is None else scale_probe_power(probe, self.power)

    def apply_to_counts(
        self, counts: Float[Tensor, "b c n n"], scan: Int64[Tensor, " b"], *, background: bool = True
    ) -> Float[Tensor, "b c n n"]:
        """Compute expected counts after the blur of the exit wave, in the scan's scale, with its background."""
        if self.envelope is not None:
            counts = counts * self.envelope
        if self.log_scale is not None:
            counts = counts * self.log_scale.exp()[scan][:, None, None, None]
        if not background:
            return counts
        if self.log_background is not None:
            return counts + self.log_background.exp()[scan][:, None, None, None]
        return counts + self._config.background_counts if self._config.background_counts else counts

    @property
    def scale(self) -> Float[Tensor, " s"] | None:
        """Factor of the expected counts of each scan, where it is learnt."""
        return None if self.log_scale is None else self.log_scale.detach().exp()

    @property
    def background(self) -> Float[Tensor, " s"] | float:
        """Counts per pixel that do not come from the sample."""
        return self._config.background_counts if self.log_background is None else self.log_background.detach().exp()
