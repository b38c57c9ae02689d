"""What a planned scan will give: error and resolution of its image before a photon is counted.

A stand-in object is scanned in thought: the information of the expected counts about object and probe, inverted by
conjugate gradients, gives errors such as a refinement makes, and these are compared with the object as an image would
be.
References: Wei, Fannjiang, arXiv 2003.05475 (Cramer-Rao bounds of ptychography); Dwyer, Paganin, Phys. Rev. B 110,
024110 (2024) (classical and quantum information).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float, Float64
from torch import Tensor

from torchptycho.analysis import metrics as m
from torchptycho.analysis.evaluation import evaluate, half_period_px
from torchptycho.core.errors import ConfigError, EvaluationError
from torchptycho.core.reconstruction import MIN_COVERAGE, Reconstruction
from torchptycho.data.simulation.probes import border_fraction
from torchptycho.physics.fisher import Change, FisherInformation
from torchptycho.physics.illumination import compute_illumination
from torchptycho.physics.patches import extract_inside
from torchptycho.reconstructors.iterative.probe_modes import compute_area_px
from torchptycho.reconstructors.scan_design import ScanDesign, find_middle_frames, require_positive

__all__ = ["ScanPrediction", "compute_efficiency", "predict_scan"]

# Frames of the compact part that is computed, from the middle of the scan.
_MAX_FRAMES = 200
# Drawn errors, and steps of conjugate gradients: a refinement, too, leaves the weakest directions as they began. With
# these the errors are nearest to those of refinements (benchmarks/trust.py).
_SAMPLES, _STEPS = 2, 18
# Pixels with less of the largest coverage are not judged, as in `evaluate`.
_MIN_JUDGED_COVERAGE = 0.1
_COUNT_OFFSET = 1.0
# Spatial frequencies of the efficiency, in cycles per pixel, and phase waves drawn at each.
_FREQUENCIES, _WAVES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.24, 0.32, 0.4), 2
# Bytes of a frame's pixel in a file, and arrays of a canvas that are alive while it is refined, 8 bytes a number.
_FRAME_BYTES, _CANVAS_BYTES = 2, 64

# Below, or above, these a scan is worth changing.
_MIN_OVERLAP, _MAX_BORDER_FRACTION, _MIN_EVENNESS, _MIN_EFFICIENCY = 0.6, 0.01, 0.4, 0.05


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScanPrediction:
    """What to expect of a scan, over the pixels with at least a tenth of the largest coverage.

    Arguments:
        complex_nrmse: relative root-mean-square error of the complex image, as `evaluate` has it.
        amplitude_sigma, phase_sigma_rad: root-mean-square errors.
        half_period_px, half_period_m: smallest line that is resolved, at a Fourier ring correlation of 0.5.
        frequency_cycles_per_px, frc: the expected correlation with the object, ring by ring.
        photons_per_px: median through an object pixel.
        photons_per_frame, n_frames, n_px: of the design.
        step_px, overlap: distance of a frame's nearest neighbour (median), and 1 - step / probe diameter.
        probe_diameter_px: of the disc with the probe's effective area.
        border_fraction: part of the probe's power in the outer tenth of the frame, which would wrap around.
        evenness: fifth percentile over median of the photons through the pixels of the part that was computed.
        efficiency: part of the quantum limit of the information about phases, at each of `efficiency_cycles_per_px`.
        frames_bytes, canvas_bytes: of the whole scan.
        advice: what to change, one sentence each.
    """

    complex_nrmse: float
    amplitude_sigma: float
    phase_sigma_rad: float
    half_period_px: float
    half_period_m: float | None
    frequency_cycles_per_px: tuple[float, ...]
    frc: tuple[float, ...]
    photons_per_px: float
    photons_per_frame: float
    n_frames: int
    n_px: int
    step_px: float
    overlap: float
    probe_diameter_px: float
    border_fraction: float
    evenness: float
    efficiency_cycles_per_px: tuple[float, ...]
    efficiency: tuple[float, ...]
    frames_bytes: int
    canvas_bytes: int
    advice: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return dataclasses.asdict(self)


def predict_scan(
    design: ScanDesign,
    *,
    resolution_px: float | None = None,
    photons_per_px: float | None = None,
    fits_probe: bool = True,
    seed: int = 0,
) -> ScanPrediction:
    """Predict error and resolution of the image of a scan that is refined without a prior.

    Arguments:
        resolution_px: half period that is wanted, in object pixels; advice says how to reach it.
        photons_per_px: what the sample bears, through each pixel; advice says how not to exceed it.
        fits_probe: whether the probe is refined too.
        seed: of the drawn errors.

    Raises:
        ConfigError: the frames cover no field together, or what is asked for is not above 0.
    """
    require_positive("resolution_px", resolution_px)
    require_positive("photons_per_px", photons_per_px)
    part, corners_px, origin_px = _take_part(design)
    n_px = design.n_px
    diameter_px = 2 * math.sqrt(float(compute_area_px(torch.from_numpy(design.probe))) / math.pi)
    step_px = _measure_step_px(design.positions_px)
    object, probe = torch.from_numpy(part), torch.from_numpy(design.probe)
    photons = compute_illumination(probe, corners_px, (part.shape[0], part.shape[1])).numpy()
    coverage = (photons / photons.max()).astype(np.float32)
    with torch.no_grad():
        information = FisherInformation(object, probe, corners_px, offset_counts=_COUNT_OFFSET, fits_probe=fits_probe)
        scores = information.draw_scores(_SAMPLES, torch.Generator().manual_seed(seed))
        errors = information.solve(scores, _STEPS).object.numpy()
        efficiency = compute_efficiency(object, probe, corners_px, _FREQUENCIES, seed=seed)
    found = []
    for error in errors:
        image = Reconstruction(
            object=part + error, coverage=coverage, valid=coverage >= MIN_COVERAGE, origin_px=origin_px
        )
        try:
            found.append(evaluate(image, design.object, min_coverage=_MIN_JUDGED_COVERAGE, max_shift_px=0))
        except EvaluationError as error:
            raise ConfigError(
                f"positions: expected frames that cover a field together; found steps of {step_px:.3g} px with a probe "
                f"of {diameter_px:.3g} px. Take smaller steps or a larger probe."
            ) from error
    frequency, frc = found[0].frc.frequency_cycles_per_px, np.mean([one.frc.correlation for one in found], axis=0)
    used = coverage > _MIN_JUDGED_COVERAGE
    turned = errors * np.exp(-1j * np.angle(part))
    resolved_px = half_period_px(m.frc_crossing(frequency, frc, 0.5))
    prediction = ScanPrediction(
        complex_nrmse=float(np.mean([one.complex_nrmse for one in found])),
        amplitude_sigma=float(np.sqrt(np.mean(turned.real[:, used] ** 2))),
        phase_sigma_rad=float(np.sqrt(np.mean((turned.imag / np.maximum(np.abs(part), 1e-3))[:, used] ** 2))),
        half_period_px=resolved_px,
        half_period_m=None if design.object_pixel_m is None else resolved_px * design.object_pixel_m,
        frequency_cycles_per_px=tuple(frequency.tolist()),
        frc=tuple(frc.tolist()),
        photons_per_px=float(np.median(photons[used])),
        photons_per_frame=design.photons_per_frame,
        n_frames=len(design.positions_px),
        n_px=n_px,
        step_px=step_px,
        overlap=min(1.0, max(0.0, 1 - step_px / diameter_px)),
        probe_diameter_px=diameter_px,
        border_fraction=border_fraction(design.probe),
        evenness=_measure_evenness(design, photons, origin_px),
        efficiency_cycles_per_px=_FREQUENCIES,
        efficiency=efficiency,
        frames_bytes=len(design.positions_px) * n_px**2 * _FRAME_BYTES,
        canvas_bytes=_CANVAS_BYTES * int(np.prod(np.ceil(np.ptp(design.positions_px, axis=0)) + n_px + 2)),
    )
    advice = _advise(prediction, resolution_px, photons_per_px)
    return dataclasses.replace(prediction, advice=advice)


def compute_efficiency(
    object: Complex[Tensor, "h w"],
    probe: Complex[Tensor, "p n n"],
    corners_px: Float[Tensor, "m 2"],
    frequencies_cycles_per_px: tuple[float, ...],
    *,
    seed: int = 0,
) -> tuple[float, ...]:
    """Compute how much of the quantum limit of the information about phases the counts hold, by spatial frequency.

    A phase wave z(r) changes the exit wave psi = P O by dpsi = i psi z. No measurement has more information about its
    strength than 4 <dpsi|dpsi>, summed over frames and modes, which Zernike's phase contrast attains; the counts have
    z^T F z, about half of it with a speckled, spread probe, and less where a wave is longer than the probe is wide.
    Waves have random directions and phases. The probe is taken as known.
    Reference: Dwyer, Paganin, Phys. Rev. B 110, 024110 (2024).
    """
    information = FisherInformation(object, probe, corners_px)
    y, x = (torch.arange(n, dtype=object.real.dtype) for n in object.shape)
    drawn = np.random.default_rng(seed)
    found = []
    for frequency in frequencies_cycles_per_px:
        ratios = []
        for _ in range(_WAVES):
            angle, phase = drawn.uniform(0, np.pi), drawn.uniform(0, 2 * np.pi)
            along = y[:, None] * math.sin(angle) + x * math.cos(angle)
            wave = torch.cos(2 * math.pi * frequency * along + phase)
            change = Change((1j * object * wave)[None])
            classical = float(change.dot(information.apply(change)))
            ratios.append(classical / _compute_quantum_information(change.object[0], probe, corners_px))
        found.append(float(np.mean(ratios)))
    return tuple(found)


def _compute_quantum_information(
    change: Complex[Tensor, "h w"], probe: Complex[Tensor, "p n n"], corners_px: Float[Tensor, "m 2"]
) -> float:
    total = 0.0
    for corners in torch.split(corners_px, 32):
        moved = extract_inside(change, corners, probe.shape[-1])[:, None] * probe
        total += 4 * float(moved.abs().square().sum())
    return max(total, 1e-30)


def _take_part(design: ScanDesign) -> tuple[Complex[np.ndarray, "h w"], Float[Tensor, "m 2"], tuple[int, int]]:
    """Return the object around the frames nearest the middle, their corners on it, and its origin."""
    places = design.positions_px
    corners = places[find_middle_frames(places, _MAX_FRAMES)] - design.n_px // 2
    low = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
    high = np.minimum(np.floor(corners.max(axis=0)).astype(int) + design.n_px + 1, design.object.shape)
    part = np.ascontiguousarray(design.object[low[0] : high[0], low[1] : high[1]])
    # One row and column more than a patch reaches, for the interpolation.
    part = np.pad(part, [(0, max(0, int(c) + design.n_px + 2 - n)) for c, n in
                         zip(np.floor(corners.max(axis=0)) - low, part.shape, strict=True)], mode="edge")  # fmt: skip
    return part, torch.from_numpy(corners - low), (int(low[0]), int(low[1]))


def _measure_step_px(positions_px: Float64[np.ndarray, "m 2"]) -> float:
    from scipy.spatial import cKDTree

    if len(positions_px) < 2:
        return 0.0
    return float(np.median(cKDTree(positions_px).query(positions_px, k=2)[0][:, 1]))


def _measure_evenness(design: ScanDesign, photons: Float[np.ndarray, "h w"], origin_px: tuple[int, int]) -> float:
    """Measure the fifth percentile over the median of the photons inside the scanned field."""
    low, high = (np.percentile(design.positions_px, q, axis=0) - origin_px for q in (20, 80))
    rows, columns = (slice(max(0, int(a)), max(1, int(b) + 1)) for a, b in zip(low, high, strict=True))
    inside = photons[rows, columns]
    return float(np.percentile(inside, 5) / max(float(np.median(inside)), 1e-30)) if inside.size else 1.0


def _advise(found: ScanPrediction, resolution_px: float | None, photons_per_px: float | None) -> tuple[str, ...]:
    """Say what to change, one sentence each."""
    advice = []
    if resolution_px is not None and resolution_px < 1:
        advice.append(
            f"A half period of {resolution_px:.3g} px is below one pixel: take a larger detector or a shorter distance."
        )
    elif resolution_px is not None and found.half_period_px > resolution_px:
        factor = _find_dose_factor(found, resolution_px)
        per_frame, frames = factor * found.photons_per_frame, factor * found.n_frames
        advice.append(
            f"A half period of {resolution_px:.3g} px needs about {factor:.2g} times the photons: {per_frame:.3g} per "
            f"frame, or {frames:.4g} frames on the same field."
            if math.isfinite(factor)
            else f"The object has no contrast at a half period of {resolution_px:.3g} px that more photons would show."
        )
    if photons_per_px is not None and found.photons_per_px > photons_per_px:
        factor = photons_per_px / found.photons_per_px
        advice.append(
            f"{found.photons_per_px:.3g} photons pass a pixel; for {photons_per_px:.3g}, lower the photons per frame "
            f"to {factor * found.photons_per_frame:.3g} or take {factor * found.n_frames:.4g} frames. The error grows "
            f"by a factor of {factor**-0.5:.2g}."
        )
    if found.overlap < _MIN_OVERLAP:
        advice.append(
            f"Neighbouring frames overlap by {found.overlap:.0%} of the probe's diameter; {_MIN_OVERLAP:.0%} and more "
            f"need steps of at most {(1 - _MIN_OVERLAP) * found.probe_diameter_px:.3g} px."
        )
    if found.border_fraction > _MAX_BORDER_FRACTION:
        advice.append(
            f"{found.border_fraction:.1%} of the probe's power reach the outer tenth of the frame and wrap around: "
            "take a smaller probe, or smaller detector pixels."
        )
    if found.evenness < _MIN_EVENNESS:
        advice.append(
            f"A twentieth of the pixels get less than {found.evenness:.0%} of the median photons: take smaller "
            "steps, a spiral, or a larger probe."
        )
    low = found.efficiency[2]
    if low < _MIN_EFFICIENCY:
        advice.append(
            f"At {found.efficiency_cycles_per_px[2]:g} cycles per pixel the counts hold {low:.0%} of the information "
            "about phases that the photons carry, of at most about half: a structured probe (diffuser, defocus) "
            "measures smooth phases better."
        )
    return tuple(advice)


def _find_dose_factor(found: ScanPrediction, resolution_px: float) -> float:
    """Find how many times the photons bring the correlation to 0.5 up to a half period, where it is least before.

    FRC = sqrt(SNR / (SNR + 1)) against a truth without noise, so that 0.5 is an SNR of 1/3, which grows with the dose.
    """
    frequency = np.array(found.frequency_cycles_per_px)
    # As for the crossing, the lowest rings may be low.
    rings = (frequency <= max(0.5 / resolution_px, float(frequency[3]))) & (frequency >= frequency[2])
    curve = float(np.array(found.frc)[rings].min())
    if curve <= 0.02:
        return math.inf
    snr = curve**2 / max(1 - curve**2, 1e-12)
    return float((1 / 3) / snr)
