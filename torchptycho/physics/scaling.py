"""The one place where units change: file units <-> photon counts <-> the network's input.

With A the amplitude in the file's own unit, X = a A is the network's input, and s X = sqrt(counts).
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float, Float64, Shaped
from torch import Tensor

from torchptycho.core.config.base import Domain
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import DEFAULT_PHOTONS_PER_FRAME, Scan
from torchptycho.physics.diffraction import measurement
from torchptycho.physics.propagation import compute_detector_wave

__all__ = [
    "Scaling",
    "compute_gauge_factor",
    "compute_probe_factor",
    "counts_per_squared_amplitude",
    "measure_scaling",
    "sum_frames",
]

Number = TypeVar("Number", float, Tensor)

_MIN_SEEN_FRACTION = 1e-6
# Power of a probe that is not refined, relative to the photons of a mean frame, within which it is taken as known.
_MIN_FIXED_POWER, _MAX_FIXED_POWER = 0.95, 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
    """How the frames of one scan become counts and network input.

    Arguments:
        domain: content of the frames.
        input_scale: a, from the root of a frame's intensity in file units to the network's input.
        photons_per_frame: mean photons in a frame, over its good pixels.
        n_px: frame edge N.
    """

    domain: Domain
    input_scale: float
    photons_per_frame: float
    n_px: int

    @property
    def intensity_scale(self) -> float:
        """s = sqrt(photons per frame) / (N/2)."""
        return math.sqrt(self.photons_per_frame) / (self.n_px / 2)

    @property
    def counts_per_intensity(self) -> float:
        """Photon counts per unit of the file's intensity (amplitude squared), (s a)^2.

        Exactly 1 for counts. For amplitudes photons_per_frame / mean intensity, in float64 to rounding: the mean frame
        then has `photons_per_frame`.
        """
        if self.domain == "counts":
            return 1.0
        return counts_per_squared_amplitude(self.photons_per_frame, self.input_scale, self.n_px)


def counts_per_squared_amplitude(photons_per_frame: Number, input_scale: Number, n_px: int) -> Number:
    """Compute (s a)^2, for one scan or for a tensor of several."""
    return photons_per_frame * (input_scale / (n_px / 2)) ** 2


def measure_scaling(mean_intensity: float, n_px: int, domain: Domain, nphotons: float | None = None) -> Scaling:
    """Compute the scaling of a scan from the summed intensity of its mean training frame, in float64.

    a = sqrt((N/2)^2 / mean_frames(sum_pixels A^2)).

    Arguments:
        mean_intensity: mean of the sum over good pixels of A^2 (of the counts, for counts).
        nphotons: photons of a mean frame, for amplitudes; not used for counts.
    """
    if not 0 < mean_intensity < math.inf:
        raise ValueError(f"mean_intensity: expected a positive number; found {mean_intensity}")
    photons = mean_intensity if domain == "counts" else (nphotons or DEFAULT_PHOTONS_PER_FRAME)
    return Scaling(
        domain=domain, input_scale=n_px / 2 / math.sqrt(mean_intensity), photons_per_frame=photons, n_px=n_px
    )


def to_intensity(frames: Shaped[Tensor, "*shape"], domain: Domain) -> Float[Tensor, "*shape"]:
    """Convert frames of any dtype to float32 intensity in file units. The cast comes first: uint16 squared
    overflows."""
    values = frames.to(torch.float32)
    return values if domain == "counts" else values.square()


def sum_frames(frames: Shaped[np.ndarray, "k n n"], domain: Domain) -> Float64[np.ndarray, " k"]:
    """Sum the intensity of each frame in file units, in float64 without a float64 copy of the frames."""
    if domain == "counts":
        # Integer sums are twice as fast and exact, as long as no sum can overflow.
        small = frames.dtype.kind == "u" and int(np.iinfo(frames.dtype).max) * frames.shape[1] ** 2 < 2**32
        return np.asarray(frames.sum(axis=(1, 2), dtype=np.uint32 if small else np.float64), dtype=np.float64)
    return np.array([np.square(frame, dtype=np.float64).sum() for frame in frames])


def compute_gauge_factor(
    probe: Complex[Tensor, "p n n"],
    photons_per_frame: float,
    mask: Bool[Tensor, "n n"] | None = None,
    geometry: Geometry = Geometry(),  # noqa: B008 -- frozen
) -> float:
    """Compute the factor f that scales a probe of unknown power to the counts gauge.

    With a transparent object, f P predicts the photons that the good pixels measured:
    sum_good sum_m |D(f P_m)|^2 = photons per frame, D being the propagation to the detector. When all pixels are good
    this is sum |f P|^2, by Parseval.

    Arguments:
        photons_per_frame: photons that good pixels count in a mean frame.
        mask: True where the detector pixel can be trusted; None for everywhere.
        geometry: of the experiment; only its near-field lengths matter.

    Raises:
        ValueError: less than 1e-6 of the probe's power reaches the good pixels, which therefore do not determine it.
    """
    wide = probe.to(torch.complex128)
    power = float(wide.abs().square().sum())
    if mask is not None and not bool(mask.all()):
        seen = float(measurement(compute_detector_wave(wide, geometry))[mask].sum())
        if not seen > _MIN_SEEN_FRACTION * power:
            raise ValueError(
                f"mask: expected good pixels where the probe's light arrives; they get {seen / power:.1e} of it"
            )
        power = seen
    return math.sqrt(photons_per_frame / power)


def compute_probe_factor(scan: Scan, scaling: Scaling, *, probe_is_fixed: bool = False) -> float:
    """Compute the factor that brings a scan's probe to the counts gauge at this scaling.

    Arguments:
        probe_is_fixed: the probe is not refined. One whose power can be the incident photons of the frames is taken as
            it is, because an object that absorbs leaves fewer of them than it receives.

    Raises:
        ScanError: the probe's far field misses the good pixels.
    """
    if not scan.probe_is_calibrated:
        try:
            factor = compute_gauge_factor(
                torch.from_numpy(scan.probe), scaling.photons_per_frame, torch.from_numpy(scan.mask), scan.geometry
            )
            is_plausible = _MIN_FIXED_POWER <= factor**-2 <= _MAX_FIXED_POWER
            return 1.0 if probe_is_fixed and scan.domain == "counts" and is_plausible else factor
        except ValueError as error:
            raise ScanError(
                scan.source,
                "probeGuess",
                expected="a probe whose far field reaches good pixels",
                found=str(error),
                remedy="Give another probe with --probe FILE, or a calibrated one.",
            ) from None
    if scan.domain == "counts":
        return 1.0
    # The power of a calibrated probe corresponds to the dose stated in its file.
    return math.sqrt(scaling.photons_per_frame / (scan.photons_per_frame or DEFAULT_PHOTONS_PER_FRAME))
