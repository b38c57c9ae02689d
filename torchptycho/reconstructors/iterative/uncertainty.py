"""Standard deviations of amplitude and phase at each pixel of a refined image.

Two ways. `bootstrap` simulates the scan again from the image (with the noise taken out, where no prior did), and
refines the simulated counts as those of the scan were: what the two images differ by is the error, whatever made it.
`fisher` draws the errors that the counts' noise causes to first order, from the information about object, probe and
positions.
Reference: Efron, Tibshirani, An Introduction to the Bootstrap (1993), sec. 6.5 (parametric bootstrap).
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from scipy.ndimage import gaussian_filter

from torchptycho.analysis.truth_alignment import align_to_truth
from torchptycho.core.config import RefineConfig, as_config
from torchptycho.core.devices import find_devices
from torchptycho.core.errors import ConfigError
from torchptycho.core.reconstruction import MIN_COVERAGE, Reconstruction, find_regularization
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.io.inputs import as_reconstruction, as_scan
from torchptycho.io.near_field import state_propagation
from torchptycho.physics.fisher import FisherInformation
from torchptycho.physics.propagation import build_propagator
from torchptycho.reconstructors.iterative.counts_model import CountsModel, has_prior
from torchptycho.reconstructors.iterative.job import refine

__all__ = ["MAX_PHASE_SIGMA_RAD", "estimate_uncertainty"]

_log = logging.getLogger(__name__)

MAX_PHASE_SIGMA_RAD = math.pi / math.sqrt(3)
"""Standard deviation of a phase of which nothing is known: uniform over a turn."""

# Width of the Gaussian over which squared errors are averaged, in object pixels, for one drawn image.
_WIDTH_PX = 3.0
# Drawn errors, and steps of conjugate gradients: a refinement, too, leaves the weakest directions as they began.
_SAMPLES, _STEPS = 3, 16
# Added to the expected counts in the weights of a refinement, see `physics.wave_correction`.
_COUNT_OFFSET = 1.0
# A prior likes the image that it made: the detail that it took away is missing from the simulated scan, and its loss
# from the error. This part of the photon noise 1 / sqrt(2 n) stands for it (benchmarks/trust.py).
_PRIOR_SHARE = 0.3
# A pixel that fewer photons pass tells nothing.
_MIN_PHOTONS_PER_PX = 1.0
# With fewer, errors of the phase are of the order of the object, and no error bar is right (benchmarks/trust.py).
_FEW_PHOTONS_PER_PX = 30.0


def estimate_uncertainty(
    image: Reconstruction | str | Path,
    scan: Scan | str | Path,
    *,
    method: Literal["bootstrap", "fisher"] = "bootstrap",
    replicas: int = 1,
    config: RefineConfig | dict[str, Any] | None = None,
    start: Reconstruction | str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Reconstruction:
    """Estimate the standard deviation of amplitude and phase at each pixel of a refined image.

    After shift, phase plane, constant phase and scale are removed, which the counts do not determine. Where the counts
    scatter more than photon noise explains, standard deviations grow with the root of the misfit.

    Arguments:
        image: by `refine`, or its file.
        scan: that it was refined from, or its file.
        method: `bootstrap` takes the time of a refinement for each replica, at any dose and with a prior; `fisher` a
            third of it, without a prior and where a detector pixel counts many photons.
        replicas: simulated scans of the bootstrap. One suffices, because errors are averaged over a few pixels.
        config: of the refinement; None takes that in the image's provenance.
        start: image that the refinement began with, if any.
        seed: of the simulated noise.

    Returns:
        the image with `amplitude_sigma` and `phase_sigma_rad`, NaN where nothing was measured, and in its provenance
        under `uncertainty` how they were found.

    Raises:
        ConfigError: the image is not a refinement of this scan.
        KeyboardInterrupt: it was interrupted.
    """
    begun = time.perf_counter()
    image, scan = as_reconstruction(image), as_scan(scan)
    if image.probe is None or image.positions_px is None or "refine" not in image.provenance:
        raise ConfigError("image: expected an image by `refine`, with probe and positions; found another one.")
    if image.object.ndim > 2:
        raise ConfigError(
            f"image: expected a thin object; found {len(image.object)} slices, of which no error bars are estimated."
        )
    if image.positions_px.shape != scan.positions_px.shape or image.probe.shape[-1] != scan.n_px:
        raise ConfigError(
            f"image: expected a refinement of {scan.source} ({scan.n_frames} frames of {scan.n_px} px); found one of "
            f"{len(image.positions_px)} frames of {image.probe.shape[-1]} px."
        )
    if replicas < 1:
        raise ConfigError(f"replicas: expected 1 or more; found {replicas}.")
    settings = as_config(RefineConfig, image.provenance["refine"] if config is None else config)
    place = find_devices(device, 1, option="device")[0]
    with torch.no_grad():
        model = CountsModel.build(image, scan, place)
        if method == "bootstrap":
            drawn, misfit = _draw_replicas(model, image, scan, settings, start, replicas, device, seed)
        else:
            drawn, misfit = _draw_first_order(model, settings, seed), 1.0
    observed = image.history["misfit"][-1] if image.history.get("misfit") else 1.0
    excess = max(1.0, observed / max(misfit, 1e-12))
    measured = image.valid & (model.photons_per_px >= _MIN_PHOTONS_PER_PX)
    radial, tangential = _average_squares(drawn, model.photons_per_px, measured)
    if has_prior(image):
        lost = _PRIOR_SHARE**2 / (2 * np.maximum(model.photons_per_px, 1e-9))
        radial, tangential = radial + lost, tangential + lost
    per_px = float(np.median(model.photons_per_px[measured])) if measured.any() else 0.0
    limits = _find_limits(image, scan, method, per_px)
    amplitude = np.abs(image.object).astype(np.float64)
    phase_sigma = np.sqrt(excess * tangential) / np.maximum(amplitude, 1e-12)
    return dataclasses.replace(
        image,
        amplitude_sigma=np.where(measured, np.sqrt(excess * radial), np.nan).astype(np.float32),
        phase_sigma_rad=np.where(measured, np.minimum(phase_sigma, MAX_PHASE_SIGMA_RAD), np.nan).astype(np.float32),
        provenance=image.provenance
        | {
            "uncertainty": {
                "method": method,
                "draws": len(drawn),
                "photons_per_px": per_px,
                "reliable": not limits,
                "limits": limits,
                "excess_of_misfit": float(excess),
                "seconds": round(time.perf_counter() - begun, 3),
            }
        },
    )


def _find_limits(image: Reconstruction, scan: Scan, method: str, photons_per_px: float) -> list[str]:
    """Warn of what makes error bars unreliable; return it in few words."""
    limits = []
    if photons_per_px < _FEW_PHOTONS_PER_PX:
        limits.append("few photons")
        _log.warning(
            "%s: only %.3g photons pass an object pixel (median); with fewer than %g error bars can be wrong by a "
            "factor of two, those of the phase mostly too small.",
            scan.source,
            photons_per_px,
            _FEW_PHOTONS_PER_PX,
        )
    if method == "fisher" and has_prior(image):
        limits.append("fisher with a prior")
        _log.warning(
            "%s: the image has a prior, which Fisher information does not include: error bars can be too large by a "
            "factor of two. Take bootstrap.",
            scan.source,
        )
    if scan.domain == "amplitude" and scan.photons_per_frame is None:
        limits.append("no dose")
        _log.warning(
            "%s: the amplitudes state no dose, so that error bars follow from the misfit alone. Give the photons per "
            "frame in the file.",
            scan.source,
        )
    return limits


def _draw_replicas(
    model: CountsModel,
    image: Reconstruction,
    scan: Scan,
    config: RefineConfig,
    start: Reconstruction | str | Path | None,
    replicas: int,
    device: str,
    seed: int,
) -> tuple[list[Complex[np.ndarray, "h w"]], float]:
    """Refine simulated counts; return the errors relative to the phase of the model, NaN where not compared, and the
    misfit."""
    # The prior that was chosen, without the time of choosing.
    prior = find_regularization(image) if has_prior(image) else None
    plain = config.without_prior()
    if prior is not None:
        weights = config.prior_weights if prior["kind"] == "learned" else None
        strength = float(prior["strength"])
        plain = dataclasses.replace(
            plain, regularization=prior["kind"], regularization_strength=strength, prior_weights=weights
        )
    config = dataclasses.replace(plain, position_search_px=0.0)
    truth = np.where(image.valid, model.object.cpu().numpy(), np.nan).astype(np.complex64)
    errors, misfits = [], []
    for number in range(replicas):
        frames = ArrayFrames(model.draw_counts(seed + number))
        replica = dataclasses.replace(
            state_propagation(scan),
            frames=frames,
            domain="counts",
            truth=None,
            truth_patches=None,
            files=(),
            source="simulated counts",
        )
        again = refine(replica, start, config=config, device=device, judge=False)
        # An interrupted refinement returns the image so far, whose errors are those of too few epochs.
        if not again.provenance["complete"]:
            raise KeyboardInterrupt
        pair = align_to_truth(again, truth, truth_origin_px=image.origin_px, min_coverage=MIN_COVERAGE)
        error = np.full(truth.shape, np.nan, np.complex128)
        y, x = (a - b for a, b in zip(pair.origin_px, image.origin_px, strict=True))
        height, width = pair.truth.shape
        turned = (pair.object - pair.truth) * np.exp(-1j * np.angle(pair.truth))
        error[y : y + height, x : x + width] = np.where(pair.mask, turned, np.nan)
        errors.append(error)
        misfits.append(again.history["misfit"][-1])
    return errors, float(np.mean(misfits))


def _draw_first_order(model: CountsModel, config: RefineConfig, seed: int) -> list[Complex[np.ndarray, "h w"]]:
    """Draw errors to first order in the noise; return them relative to the phase of the model."""
    image, scan = model.image, model.scan
    propagator = build_propagator(scan.geometry, scan.n_px, device=model.probe.device)
    mask, background = model.mask, model.background
    if propagator.zero_frequency_first:
        mask, background = torch.fft.ifftshift(mask), torch.fft.ifftshift(background)
    varies = image.opr_modes is not None or image.frame_scale is not None
    scale = None if image.frame_scale is None else torch.from_numpy(image.frame_scale).to(model.probe.device)
    information = FisherInformation(
        model.object,
        model.probe,
        model.corners_px,
        mask=None if bool(mask.all()) else mask,
        background=background if config.background else None,
        propagator=propagator,
        offset_counts=_COUNT_OFFSET,
        fits_probe=config.probe_update,
        fits_positions=config.position_update in ("frames", "both"),
        build_probe=model.build_probe if varies else None,
        frame_scale=scale,
    )
    scores = information.draw_scores(_SAMPLES, torch.Generator().manual_seed(seed))
    drawn = information.solve(scores, _STEPS).object.cpu().numpy()
    truth = model.object.cpu().numpy()
    return [_remove_gauge(one * np.exp(-1j * np.angle(truth)), np.abs(truth), image.valid) for one in drawn]


def _remove_gauge(
    error: Complex[np.ndarray, "h w"], amplitude: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]
) -> Complex[np.ndarray, "h w"]:
    """Remove from a small error what is a change of scale, of the constant phase or of a phase plane."""
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]]
    planes = np.stack([amplitude, amplitude * (y - y[mask].mean()), amplitude * (x - x[mask].mean())], -1)
    scale = float(error.real[mask] @ amplitude[mask]) / float(amplitude[mask] @ amplitude[mask])
    found, *_ = np.linalg.lstsq(planes[mask], error.imag[mask], rcond=None)
    return np.asarray(error - scale * amplitude - 1j * (planes @ found))


def _average_squares(
    errors: list[Complex[np.ndarray, "h w"]],
    photons_per_px: Float[np.ndarray, "h w"],
    measured: Bool[np.ndarray, "h w"],
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Average the squares of radial and tangential errors over the draws and over a few pixels.

    In units of the photon noise 1 / (2 n), which holds what changes from pixel to pixel.
    """
    width_px = max(1.0, _WIDTH_PX / math.sqrt(len(errors)))
    weight, sums = np.zeros(measured.shape), [np.zeros(measured.shape) for _ in range(2)]
    for error in errors:
        known = measured & np.isfinite(error)
        weight += known
        for total, part in zip(sums, (error.real, error.imag), strict=True):
            total[known] += part[known] ** 2 * photons_per_px[known]
    smooth = np.maximum(gaussian_filter(weight, width_px), 1e-9)
    photons = np.maximum(photons_per_px, 1e-9)
    radial, tangential = (gaussian_filter(total, width_px) / smooth / photons for total in sums)
    return radial, tangential
