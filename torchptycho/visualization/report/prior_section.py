"""The section about a prior: the image with it and without it, their difference, and where photons are few."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float

from torchptycho.analysis.registration import flatten_phase
from torchptycho.core.reconstruction import PRIOR_NAMES, Reconstruction, find_regularization
from torchptycho.physics.illumination import compute_illumination, compute_noise_level
from torchptycho.visualization.plot.panels import choose_phase_map, compute_limits, find_bounding_box
from torchptycho.visualization.report.html_blocks import (
    Block,
    Section,
    Table,
    make_mapped_figure,
    make_scale_bar,
)

__all__ = ["compute_sigma", "make_prior_section", "prior_acted"]

_EXPLANATION = (
    "A prior knows what objects look like and removes noise from the image; what it adds may be a guess. A structure "
    "that is there with and without it is measured. Where the difference is several sigma over many pixels, the prior "
    "has overruled the counts. Sigma is the least standard deviation of real and imaginary part that the photons of a "
    "pixel leave, 1 / sqrt(2 n): where it is large, little is measured."
)


def prior_acted(image: Reconstruction) -> bool:
    """Return whether a prior of some strength acted on a refined image."""
    return float((find_regularization(image) or {}).get("strength", 0)) > 0


def make_prior_section(image: Reconstruction, plain: Reconstruction | None) -> Section | None:
    """Show what a prior did to a refined image; None where none acted.

    Arguments:
        plain: the image without the prior, on the same canvas; None shows the noise level and the figures alone.
    """
    found = find_regularization(image)
    if found is None or not prior_acted(image) or image.probe is None or image.positions_px is None:
        return None
    rows: list[tuple[Any, list[Block]]] = []
    sigma = compute_sigma(image)
    everything = image.valid & np.isfinite(image.object) & np.isfinite(sigma)
    box = find_bounding_box(everything)
    mask = everything[box]
    mean = float(np.sqrt(np.mean(np.abs(image.object[everything]) ** 2))) or 1.0
    scale = make_scale_bar(mask.shape[1], image.object_pixel_m)
    shown: list[Block] = []
    if plain is not None and plain.object.shape == image.object.shape:
        other = _align(plain.object, image.object, everything, sigma)
        flat = flatten_phase(np.where(mask, image.object[box], 0), mask)
        # The same phase plane is taken from both, so that the two can be compared by eye.
        turned = np.divide(flat, image.object[box], out=np.ones_like(flat), where=mask)
        phase_map, limits = choose_phase_map(flat, mask)
        ratio = np.abs(image.object - other)[box] / np.where(mask, sigma[box], 1)
        for title, phase in (("Phase with the prior", flat), ("Phase without", np.where(mask, other[box] * turned, 0))):
            shown.append(make_mapped_figure(title, np.angle(phase), mask, phase_map, limits, unit="rad", scale=scale))
        shown.append(
            make_mapped_figure(
                "Difference in sigma",
                ratio,
                mask,
                "magma",
                (0.0, max(1.0, float(np.percentile(ratio[mask], 99.5)))),
                note="Length of the complex difference, in units of the photon noise of the pixel.",
            )
        )
    relative = sigma[box] / mean
    shown.append(
        make_mapped_figure(
            "Sigma",
            relative,
            mask,
            "cividis",
            compute_limits(relative, mask),
            note="Photon noise of a pixel relative to the mean amplitude.",
        )
    )
    rows.append(("wide", shown))
    rows.append(("", [Table(rows=_list_figures(found, plain))]))
    held_out = _list_likelihoods(found)
    if held_out:
        rows.append(("", [Table(rows=held_out, head=("prior in the trials", "log-likelihood of the held-out counts"))]))
    return Section(id="prior", title="With and without the prior", rows=rows, text=_EXPLANATION)


def compute_sigma(image: Reconstruction) -> Float[np.ndarray, "h w"]:
    """Compute the photon noise of real and imaginary part at each pixel of a refined image; infinite in the dark."""
    assert image.probe is not None
    assert image.positions_px is not None
    corners_px = image.positions_px - np.array(image.origin_px) - image.probe.shape[-1] // 2
    shape = (image.object.shape[0], image.object.shape[1])
    photons = compute_illumination(torch.from_numpy(image.probe), torch.from_numpy(corners_px), shape)
    return np.asarray(compute_noise_level(photons).numpy())


def _align(
    image: Complex[np.ndarray, "h w"], reference: Complex[np.ndarray, "h w"], mask: np.ndarray, sigma: np.ndarray
) -> Complex[np.ndarray, "h w"]:
    """Multiply an image by the complex number that brings it nearest to a reference."""
    weight = sigma[mask] ** -2.0
    overlap = np.sum(weight * image[mask].conj() * reference[mask])
    power = np.sum(weight * np.abs(image[mask]) ** 2)
    return np.asarray(image * (overlap / max(float(power), 1e-30)), dtype=np.complex64)


def _list_figures(found: dict[str, Any], plain: Reconstruction | None) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("prior", PRIOR_NAMES.get(found["kind"], found["kind"])),
        ("strength (in sigma)", f"{found['strength']:.3g}"),
    ]
    rows.append(("how it was chosen", found["reason"]))
    if found.get("photons_per_px") is not None:
        rows.append(("photons per object pixel, median", f"{found['photons_per_px']:.4g}"))
    if found.get("misfit_before") is not None:
        rows.append(
            ("misfit before and after the last step", f"{found['misfit_before']:.4g}, {found['misfit_after']:.4g}")
        )
        rows.append(("length of the last step", f"{found['step']:.2g}"))
    if plain is not None and plain.history.get("misfit"):
        rows.append(("misfit without the prior", f"{plain.history['misfit'][-1]:.4g}"))
    return rows


def _list_likelihoods(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """List the trials: log-likelihood of held-out counts above that under the mean frame, per count."""
    rows: list[tuple[str, ...]] = [
        ("none" if strength == 0 else f"total variation of strength {strength:g}", f"{gain:.5f} per count")
        for strength, gain in zip(found.get("strengths", ()), found.get("gains", ()), strict=True)
    ]
    if found.get("learned_gain") is not None:
        rows.append(("learnt prior", f"{found['learned_gain']:.5f} per count"))
    return rows
