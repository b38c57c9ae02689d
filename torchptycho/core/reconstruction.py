"""The image that comes out."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Complex64, Float32, Float64

__all__ = [
    "MIN_COVERAGE",
    "PRIOR_NAMES",
    "Reconstruction",
    "describe_regularization",
    "find_regularization",
    "get_frame_probe",
    "project_slices",
]

MIN_COVERAGE = 0.02
"""A pixel that got less than this part of the largest weight is not an image of anything."""
PRIOR_NAMES = {"tv": "total variation", "learned": "learnt prior"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reconstruction:
    """A reconstructed object on the pixel grid of the positions.

    Arguments:
        object: [H, W] complex transmission; 0 where no frame reached. Of a thick object [S, H, W], that of each slice,
            the first one where the probe enters; see `project_slices`.
        coverage: [H, W] sum of the weights at a pixel, relative to the largest sum.
        valid: [H, W], True where the coverage suffices for a meaningful value, by default `MIN_COVERAGE`.
        origin_px: (y, x) position of pixel [0, 0] in the scan's object pixels.
        object_pixel_m: edge of a pixel, or None when only pixels are known.
        slice_spacing_m: distance between neighbouring slices of a thick object; None for a thin one.
        provenance: plain data: configuration, checkpoint hash, source, versions, timings.
        spread: [H, W] weighted standard deviation of the overlapping patches at a pixel, in its unit; 0 where there
            is only one patch. Stitched images only.
        amplitude_sigma, phase_sigma_rad: [H, W] standard deviations of amplitude and phase, NaN where nothing was
            measured; of a refinement whose uncertainty was estimated.
        probe: [P, N, N] refined modes in sqrt(photons); refinement only, as all that follows but `given_positions_px`.
        opr_modes: [V, N, N] modes of variation of the first mode of the probe, if it was refined frame by frame: that
            of frame j is s_j (probe[0] + sum_k opr_weights[j, k] opr_modes[k]), and the others are s_j probe[m].
        opr_weights: [M, V] real.
        frame_scale: [M] s_j, mean 1: square root of the power of the probe in each frame; None where it is 1.
        positions_px: [M, 2] (y, x) refined positions.
        given_positions_px: [M, 2] (y, x) positions given by the scan, by which a later refinement from this image
            detects that the scan is read with other options.
        background: [N, N] counts that do not come from the sample, zero frequency at [N//2, N//2]; if it was fitted.
        history: figures of each epoch, by name.
    """

    object: Complex64[np.ndarray, "*slices h w"]
    coverage: Float32[np.ndarray, "h w"]
    valid: Bool[np.ndarray, "h w"]
    origin_px: tuple[int, int]
    object_pixel_m: float | None = None
    slice_spacing_m: float | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    spread: Float32[np.ndarray, "h w"] | None = None
    amplitude_sigma: Float32[np.ndarray, "h w"] | None = None
    phase_sigma_rad: Float32[np.ndarray, "h w"] | None = None
    probe: Complex64[np.ndarray, "p n n"] | None = None
    opr_modes: Complex64[np.ndarray, "v n n"] | None = None
    opr_weights: Float32[np.ndarray, "m v"] | None = None
    frame_scale: Float32[np.ndarray, " m"] | None = None
    positions_px: Float64[np.ndarray, "m 2"] | None = None
    given_positions_px: Float64[np.ndarray, "m 2"] | None = None
    background: Float32[np.ndarray, "n n"] | None = None
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def has_coverage(self) -> bool:
        """Whether the coverage is informative; that of a file without one is 1 everywhere."""
        return bool(self.coverage.size) and float(self.coverage.min()) != float(self.coverage.max())


def project_slices(image: Reconstruction) -> Reconstruction:
    """Return an image of one slice: of a thick object the product of its slices, else the image itself.

    The product is what a thin object would transmit, without propagation between the slices.
    """
    if image.object.ndim == 2:
        return image
    return dataclasses.replace(image, object=image.object.prod(0), slice_spacing_m=None)


def find_regularization(image: Reconstruction) -> dict[str, Any] | None:
    """Find which prior a refined image was made with, its strength and how it was chosen; None for other images."""
    found: dict[str, Any] | None = image.provenance.get("refinement", image.provenance).get("regularization")
    return found


def get_frame_probe(image: Reconstruction, frame: int) -> Complex64[np.ndarray, "p n n"]:
    """Return the modes of the probe of one frame of a refined image.

    Raises:
        ValueError: the image has no probe.
    """
    if image.probe is None:
        raise ValueError("expected a refined image; found one without a probe")
    probe = image.probe.copy()
    if image.opr_modes is not None and image.opr_weights is not None:
        probe[0] += np.tensordot(image.opr_weights[frame], image.opr_modes, axes=1)
    return probe if image.frame_scale is None else probe * image.frame_scale[frame]


def describe_regularization(image: Reconstruction) -> str | None:
    """Describe in a few words the prior that a refined image was made with; None when none was asked for."""
    found = find_regularization(image)
    if not found or found["kind"] == "none":
        return None
    if found["strength"] == 0:
        return f"no prior ({found['reason']})"
    how = "" if found["reason"] == "given" else f" ({found['reason']}"
    if how and found.get("held_out_gain") is not None:
        how += f", by {found['held_out_gain']:.2g} per count than without"
    return (
        f"{PRIOR_NAMES.get(found['kind'], found['kind'])} of strength {found['strength']:.3g}{how}{')' if how else ''}"
    )
