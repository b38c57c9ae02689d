"""What the figures of the page are called, and what they mean, for a reader who has not seen the program before."""

from __future__ import annotations

__all__ = ["CURVES", "LABELS", "explain_misfit"]

CURVES = {
    "loss": ("loss", "What training minimises, per detector pixel; lower is better."),
    "contrast": (
        "contrast of the predicted patches",
        "Standard deviation of the predicted object relative to its mean, within patches or between them, whichever is "
        "lower; near 0 the network shows nothing.",
    ),
    "misfit_over_empty": (
        "misfit relative to that of an empty sample",
        "Below 1 the prediction explains the counts better than a sample that shows nothing would.",
    ),
    "gradient_norm": ("norm of the gradient", "Length of the gradient before it is clipped."),
    "parameter_norm": ("norm of the weights", "Length of all weights of the network together."),
}
"""Logged quantity: its name on the axis, and what it says."""

LABELS = {
    "n_px": "frame edge (px)",
    "n_frames": "frames",
    "n_modes": "probe modes",
    "domain": "values of the frames",
    "position_min_px": "lowest position (y, x) (px)",
    "position_max_px": "highest position (y, x) (px)",
    "field_px": "extent of the positions (y, x) (px)",
    "field_m": "extent of the positions (y, x) (m)",
    "step_px": "step: median distance to the nearest position (px)",
    "probe_diameter_px": "probe diameter: circle with 90 % of the photons (px)",
    "overlap": "overlap: 1 − step / probe diameter",
    "photons_mean": "photons per frame, mean",
    "photons_min": "photons per frame, lowest",
    "photons_max": "photons per frame, highest",
    "brightest_pixel": "brightest detector pixel (y, x)",
    "beam_offset_px": "centre of mass of the mean frame from its middle (y, x) (px)",
    "n_dim_frames": "dim frames: below a tenth of the median",
    "n_bright_frames": "bright frames: above ten times the median",
    "probe_is_calibrated": "power of the probe known",
    "has_truth": "object in the file",
    "has_truth_patches": "object patches in the file",
}
"""Field of a `ScanSummary`: its name in the table."""

_NOISE_IS_FITTED = 0.9


def explain_misfit(misfit: float | None) -> str:
    """Explain the reduced chi-squared, and what it means that it is below 1 where it is."""
    text = (
        "The misfit is the mean of (counts − expected counts)² / variance over the detector pixels: 1 where photon "
        "noise is all that is left, more where the model does not explain the frames."
    )
    if misfit is not None and misfit < _NOISE_IS_FITTED:
        text += (
            f" It is {misfit:.3g} here. Below 1, object and probe have enough unknowns to follow a part of the noise, "
            "so that the image is noisier than the misfit shows."
        )
    return text
