"""Diffraction patterns that an image and its probe predict, next to the measured ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Complex, Float64
from torch import Tensor

from torchptycho.core.errors import EvaluationError
from torchptycho.core.reconstruction import Reconstruction, get_frame_probe
from torchptycho.core.scan import Scan
from torchptycho.physics.diffraction import measurement
from torchptycho.physics.multislice import build_gap, pass_through_slices
from torchptycho.physics.patches import extract, locate_corner
from torchptycho.physics.propagation import Propagator, compute_detector_wave
from torchptycho.physics.scaling import measure_scaling, sum_frames
from torchptycho.visualization.plot.scan_figures import to_counts

__all__ = ["ComparedPatterns", "DetectorModel", "compare_patterns"]

_FRAMES_PER_CHUNK = 64

DetectorModel = Callable[[Tensor], Tensor]
"""Expected counts [K, N, N] as the detector shows them, from those of the far field alone."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ComparedPatterns:
    """Frames in photon counts, zero frequency at [N//2, N//2].

    Arguments:
        frames: which they are.
        measured, expected: [K, N, N].
    """

    frames: list[int]
    measured: Float64[np.ndarray, "k n n"]
    expected: Float64[np.ndarray, "k n n"]


def compare_patterns(
    scan: Scan,
    image: Reconstruction,
    probe: Complex[np.ndarray, "p n n"],
    *,
    n_frames: int = 4,
    detect: DetectorModel | None = None,
) -> ComparedPatterns:
    """Compare some frames, evenly spaced over the scan, with the counts that image and probe predict for them.

    Arguments:
        probe: modes in sqrt(photons), in the image's gauge.
        detect: background, scale and blur of the model that made the image; None adds the image's own background.
    """
    count = min(n_frames, scan.n_frames)
    # The central frame of each part of the scan, because the first and the last frames are at its edge.
    index = ((np.arange(count) + 0.5) * scan.n_frames / count).astype(np.int64)
    counts, total, start = np.zeros((count, scan.n_px, scan.n_px)), 0.0, 0
    # In one pass over all frames, because a compressed file is read from its beginning and amplitudes need the mean.
    for chunk in scan.frames.chunks(_FRAMES_PER_CHUNK):
        here = (index >= start) & (index < start + len(chunk))
        counts[here] = to_counts(scan, chunk[index[here] - start])
        if scan.domain == "amplitude":
            total += float(sum_frames(np.where(scan.mask, chunk, 0), scan.domain).sum())
        start += len(chunk)
    if scan.domain == "amplitude":
        mean = total / scan.n_frames
        counts *= measure_scaling(
            mean, scan.n_px, scan.domain, _find_photons_per_frame(scan, image)
        ).counts_per_intensity
    positions_px = scan.positions_px if image.positions_px is None else image.positions_px
    corners = locate_corner(torch.from_numpy(positions_px[index]), scan.n_px, image.origin_px)
    slices = torch.from_numpy(image.object.reshape(-1, *image.object.shape[-2:]))
    patches = torch.stack([extract(each, corners, scan.n_px) for each in slices])
    if probe is image.probe and (image.opr_modes is not None or image.frame_scale is not None):
        probe = np.stack([get_frame_probe(image, frame) for frame in index.tolist()])
    gap = _build_gap(scan, image)
    exit_waves = pass_through_slices(patches, torch.from_numpy(np.ascontiguousarray(probe)), gap).exit
    expected = measurement(compute_detector_wave(exit_waves, scan.geometry))
    if detect is not None:
        expected = detect(expected)
    elif image.background is not None:
        expected = expected + torch.from_numpy(image.background)
    return ComparedPatterns(frames=index.tolist(), measured=counts, expected=expected.double().numpy())


def _build_gap(scan: Scan, image: Reconstruction) -> Propagator | None:
    """Build the propagator between the slices of a thick object; its lengths are those of the scan."""
    pixel_m, wavelength_m = scan.geometry.with_object_pixel(scan.n_px).object_pixel_m, scan.geometry.wavelength_m
    if image.object.ndim == 2:
        return None
    if image.slice_spacing_m is None or pixel_m is None or wavelength_m is None:
        raise EvaluationError(
            f"{scan.source}: expected wavelength, object pixel and slice spacing of a thick object to predict its "
            "frames; found none. Give --energy-eV and --object-pixel-m."
        )
    return build_gap(scan.n_px, pixel_m, wavelength_m, image.slice_spacing_m)


def _find_photons_per_frame(scan: Scan, image: Reconstruction) -> float | None:
    """Find how many photons a mean frame of amplitudes stood for when the image was made."""
    origin = image.provenance
    configured = origin.get("config", {}).get("prepare", {}).get("nphotons")
    dose = origin.get("photons_per_frame") or configured or scan.photons_per_frame
    return None if dose is None else float(dose)
