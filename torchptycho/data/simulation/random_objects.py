"""Random objects for training a prior: any family, amplitude and phase coupled or not, weak phase to wrapping phase."""

from __future__ import annotations

import numpy as np
from jaxtyping import Complex64, Float64
from scipy import ndimage

from torchptycho.data.simulation.textures import TRAINING_FAMILIES, draw_family

__all__ = ["draw_random_object", "make_transmission"]

Map = Float64[np.ndarray, "n n"]

_MIXTURE_FRACTION = 0.2
_ISLAND_FRACTION = 0.12


def draw_random_object(
    size_px: int, rng: np.random.Generator, families: tuple[str, ...] = tuple(TRAINING_FAMILIES)
) -> tuple[Complex64[np.ndarray, "n n"], str]:
    """Draw an object from one of the families, or a mixture of two, and return it with the families' names."""
    names = [str(rng.choice(families))]
    first, second = draw_family(names[0], size_px, rng)
    if rng.random() < _MIXTURE_FRACTION:
        names.append(str(rng.choice(families)))
        first, second = _mix((first, second), draw_family(names[1], size_px, rng), rng)
    coupling = rng.choice(["coupled", "loose", "independent"], p=[0.35, 0.35, 0.3])
    if coupling == "independent":
        other, _ = draw_family(str(rng.choice(families)), size_px, rng)
    else:
        share = 0.0 if coupling == "coupled" else rng.uniform(0.3, 1)
        other = (1 - share) * first + share * second
    if rng.random() < _ISLAND_FRACTION:
        island = _draw_island(size_px, rng)
        first, other = first * island, other * island
    return make_transmission(other, first, rng), "+".join(names)


def make_transmission(absorption: Map, phase: Map, rng: np.random.Generator) -> Complex64[np.ndarray, "n n"]:
    """Make a complex transmission of two maps from 0 to 1, of random contrast, sharpness and sign.

    A third has a phase of less than half a radian, a quarter a phase that wraps; a fifth hardly absorbs.
    """
    blur_px = 0.0 if rng.random() < 0.25 else rng.uniform(0.2, 1.0)
    absorption, phase = (ndimage.gaussian_filter(m, blur_px, mode="reflect") for m in (absorption, phase))
    lowest = 1 - 10 ** rng.uniform(-2.5, -1) if rng.random() < 0.2 else rng.uniform(0, 0.9)
    if rng.random() < 0.4:
        absorption = 1 - absorption
    amplitude = 1 - (1 - lowest) * absorption
    if rng.random() < 0.06:
        range_rad = 0.0
    else:
        range_rad = rng.uniform(0.5, 2.5) if rng.random() < 0.4 else 10 ** rng.uniform(-1.3, 0.9)
    sign = rng.choice([-1.0, 1.0])
    return np.asarray(amplitude * np.exp(1j * sign * range_rad * phase), dtype=np.complex64)


def _mix(one: tuple[Map, Map], two: tuple[Map, Map], rng: np.random.Generator) -> tuple[Map, Map]:
    """Add two textures, or let them meet at the edge of an island."""
    if rng.random() < 0.5:
        weight = rng.uniform(0.3, 0.7)
        share: float | Map = weight
    else:
        share = _draw_island(len(one[0]), rng)
    return share * one[0] + (1 - share) * two[0], share * one[1] + (1 - share) * two[1]


def _draw_island(size_px: int, rng: np.random.Generator) -> Map:
    """Draw a region with a sharp, bent outline: 1 inside, 0 outside."""
    smooth = ndimage.gaussian_filter(rng.standard_normal((size_px, size_px)), size_px / rng.uniform(8, 20), mode="wrap")
    return np.asarray(smooth > np.quantile(smooth, rng.uniform(0.2, 0.7)), dtype=np.float64)
