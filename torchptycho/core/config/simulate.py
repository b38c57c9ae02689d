"""Options of a simulated experiment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from torchptycho.core.config.base import Count, Fraction, NonNegative, Positive, validated_dataclass

__all__ = ["SimulateConfig"]


@validated_dataclass
class SimulateConfig:
    """A simulated experiment: object, probe, scan positions, dose."""

    n_px: Annotated[int, Field(ge=8, multiple_of=2)] = 64
    """Frame size N in pixels."""
    object_kind: Literal["dead_leaves", "lines", "gaussian_field", "siemens_star", "natural"] = "dead_leaves"
    """Kind of object."""
    object_px: Count = 256
    """Edge of the square object in object pixels."""
    amplitude_min: Fraction = 0.5
    """Lowest transmission |O|; the highest is 1."""
    phase_range_rad: NonNegative = 1.6
    """Difference between the largest and the smallest phase of the object, in each slice of a thick one."""
    n_slices: Annotated[int, Field(ge=1, le=64)] = 1
    """Slices of the object, each drawn on its own; in each the lowest transmission is the n-th root of
    `amplitude_min`."""
    slice_spacing_m: Positive | None = None
    """Distance between neighbouring slices; None takes the depth of focus, 5.2 p^2 / wavelength for a pixel p."""
    probe_kind: Literal["disk", "gaussian", "zone_plate", "electron"] = "zone_plate"
    """Shape of the probe; electron is that of a round aperture in an electron microscope."""
    probe_diameter_px: Positive | None = None
    """Width of the probe (disk: diameter; gaussian, zone plate: full width at half maximum); None takes 0.4 N."""
    probe_defocus_waves: float = 2.0
    """Zone plate only: defocus phase at the edge of the aperture, in waves."""
    energy_eV: Positive = 80e3
    """Electron probe only: kinetic energy, as are the next four options."""
    convergence_mrad: Positive = 20.0
    """Semi-angle of the aperture."""
    angle_per_pixel_mrad: Positive = 2.0
    """Angle between neighbouring detector pixels; with N and the wavelength it gives the object pixel."""
    probe_defocus_m: float = 0.0
    """Distance from the focus to the sample, positive for overfocus."""
    aberrations: tuple[str, ...] = ()
    """Other aberrations in metres, by their Krivanek names, such as C30=1e-3."""
    probe_modes: Count = 1
    """Number of incoherent modes."""
    probe_file: str | None = None
    """NPZ whose `probeGuess` (or `probe`) replaces the simulated probe."""
    probe_drift_px: NonNegative = 0.0
    """Distance by which the probe drifts from the first to the last frame, in pixels."""
    power_fluctuation: Fraction = 0.0
    """Standard deviation of the probe's power from frame to frame, relative to its mean."""
    probe_wander: NonNegative = 0.0
    """Root mean square by which the shape of the probe wanders during the scan, in three components, relative to the
    probe."""
    propagation: Literal["far", "near"] = "far"
    """What the detector records: diffraction patterns (far), or Fresnel images in a parallel beam (near)."""
    fresnel_number: Positive = 0.1
    """Near field: Fresnel number of an object pixel, p^2 / (wavelength * distance)."""
    position_kind: Literal["raster", "fermat", "random"] = "fermat"
    """Pattern of the scan positions."""
    n_frames: Count = 1000
    """Number of frames (raster: at least this many)."""
    position_jitter_px: NonNegative = 1.0
    """Largest random displacement of each raster position along each axis, uniformly distributed."""
    photons_per_frame: Positive = 1e6
    """Expected photons per frame with a fully transparent object."""
    noise: bool = True
    """Draw Poisson counts; if False, the frames are the expected counts in float32."""
    simulation_seed: int = 0
    """Seed of all random numbers."""
