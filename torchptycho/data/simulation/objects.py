"""Simulated objects: seeded textures, converted to a complex transmission.

Every kind draws two maps, one for the transmission and one for the phase, in the same way: a function of the edge in
pixels and a generator. Where a real sample would be made of pieces (leaves, lines, spokes), both maps share the edges
of the pieces, as thickness delays and absorbs at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Complex64, Float64
from scipy import ndimage

from torchptycho.core.config import SimulateConfig

__all__ = [
    "BLUR_SIGMA_PX",
    "draw_dead_leaves",
    "draw_gaussian_field",
    "draw_lines",
    "draw_photographs",
    "draw_siemens_star",
    "make_object",
]

Map = Float64[np.ndarray, "n n"]
Maps = tuple[Map, Map]

BLUR_SIGMA_PX = 0.7
"""Every object is blurred by this much: a Gaussian that leaves 9 % at the Nyquist frequency, so that reading the
object bilinearly between its pixels means something."""

# Photographs that scikit-image ships inside its wheels; its other images would be downloaded.
_PHOTOGRAPHS = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "rocket",
)


def make_object(config: SimulateConfig, rng: np.random.Generator) -> Complex64[np.ndarray, "h w"]:
    """Draw the object configured by `config`.

    Arguments:
        config: `object_kind`, `object_px`, `amplitude_min` and `phase_range_rad` are used.
        rng: source of all that is random in it.

    Returns:
        Square complex transmission with |O| from `amplitude_min` to 1 and phases from -`phase_range_rad` / 2 to
        +`phase_range_rad` / 2.
    """
    transmission, phase = _KINDS[config.object_kind](config.object_px, rng)
    amplitude = config.amplitude_min + (1 - config.amplitude_min) * _blur_and_stretch(transmission)
    phase_rad = config.phase_range_rad * (_blur_and_stretch(phase) - 0.5)
    return np.asarray(amplitude * np.exp(1j * phase_rad), dtype=np.complex64)


def draw_dead_leaves(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw overlapping opaque discs of random greys, with edges and areas at all scales, as in natural images.

    Radii follow a power law p(r) ~ r^-3 from 2 px to an eighth of the edge; there are enough discs to cover six times.
    Reference: Lee, Mumford, Huang, Int. J. Comput. Vision 41, 35 (2001).
    """
    smallest_px, layers = 2.0, 6.0
    largest_px = max(size_px / 8, 2 * smallest_px)
    mean_area = 2 * np.pi * np.log(largest_px / smallest_px) / (smallest_px**-2 - largest_px**-2)
    count = int(np.ceil(layers * size_px**2 / mean_area))
    radius = (largest_px**-2 + rng.random(count) * (smallest_px**-2 - largest_px**-2)) ** -0.5
    center = rng.random((count, 2)) * size_px
    start = np.clip(np.ceil(center - radius[:, None]), 0, size_px).astype(int)
    stop = np.clip(np.floor(center + radius[:, None]) + 1, 0, size_px).astype(int)
    pixel = np.arange(size_px)
    leaf = np.zeros((size_px, size_px), dtype=np.int32)
    for number, ((y0, x0), (y1, x1), (cy, cx), r) in enumerate(zip(start, stop, center, radius, strict=True)):
        inside = (pixel[y0:y1, None] - cy) ** 2 + (pixel[x0:x1] - cx) ** 2 <= r * r
        leaf[y0:y1, x0:x1][inside] = number
    thickness, absorption = rng.random(count), rng.random(count)
    return (1 - _mix(thickness, absorption))[leaf], thickness[leaf]


def draw_lines(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw straight wires, 1 to 10 px wide, in all directions, one per 5 px of edge; thicknesses add at crossings."""
    y, x = np.meshgrid(*[np.arange(size_px) - size_px / 2] * 2, indexing="ij")
    thickness, absorption = np.zeros((size_px, size_px)), np.zeros((size_px, size_px))
    for _ in range(math.ceil(size_px / 5)):
        angle, shift = rng.uniform(0, np.pi), rng.uniform(-0.7, 0.7) * size_px
        width = 10.0 ** rng.uniform(0, 1)
        depth, opacity = rng.uniform(0.3, 1), rng.uniform(0, 1.3)
        from_axis = np.abs(y * np.cos(angle) + x * np.sin(angle) - shift)
        covered = np.clip(width / 2 - from_axis + 0.5, 0, 1)
        thickness += depth * covered
        absorption += _mix(depth, opacity) * covered
    return 1 - _stretch(absorption), thickness


def draw_gaussian_field(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw two Gaussian random fields, correlated by a half, with a power spectrum ~ |k|^-3: clouds without edges."""
    frequency = np.hypot(np.fft.fftfreq(size_px)[:, None], np.fft.rfftfreq(size_px))
    frequency[0, 0] = np.inf
    white = rng.standard_normal((2, size_px, size_px))
    first, second = np.fft.irfft2(np.fft.rfft2(white) * frequency**-1.5, s=(size_px, size_px))
    return 1 - _stretch(0.5 * first + np.sqrt(0.75) * second), first


def draw_siemens_star(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw 36 metal spokes around the centre, broken by rings, rotated by a random angle.

    Edges are anti-aliased analytically: a pixel's value is its signed distance to the edge, cut to one pixel, so that
    the spokes run into grey where they get finer than the pixels.
    """
    spokes, outer_px = 36, 0.48 * size_px
    y, x = np.meshgrid(*[np.arange(size_px) - (size_px - 1) / 2] * 2, indexing="ij")
    radius = np.hypot(y, x)
    turns = (np.arctan2(y, x) + rng.uniform(0, 2 * np.pi)) * spokes / (2 * np.pi)
    spoke = _cover_pixel((0.25 - np.abs(turns - np.round(turns))) * 2 * np.pi * radius / spokes)
    gap_px = np.maximum(0.02 * size_px, 1.0)
    gaps = [_cover_pixel(gap_px / 2 - np.abs(radius - fraction * outer_px)) for fraction in (0.25, 0.5, 0.75)]
    metal = spoke * (1 - np.max(gaps, axis=0)) * _cover_pixel(outer_px - radius)
    rim = _cover_pixel(gap_px / 2 - np.abs(radius - outer_px))
    metal = np.maximum(metal, rim)
    return 1 - metal, metal


def draw_photographs(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw two different photographs from scikit-image, one for the transmission and one for the phase.

    Squares are cropped at random and resized; the images are part of scikit-image's wheel, nothing is downloaded.
    """
    first, second = rng.choice(len(_PHOTOGRAPHS), size=2, replace=False)
    return _load_photograph(_PHOTOGRAPHS[first], size_px, rng), _load_photograph(_PHOTOGRAPHS[second], size_px, rng)


def _load_photograph(name: str, size_px: int, rng: np.random.Generator) -> Map:
    from skimage import color, data, transform  # a second to import, needed for one kind only

    resize: Callable[..., np.ndarray] = transform.resize
    image = np.asarray(getattr(data, name)())
    grey = color.rgb2gray(image) if image.ndim == 3 else image / 255
    edge = min(grey.shape)
    y, x = (int(rng.integers(0, extent - edge + 1)) for extent in grey.shape)
    square = resize(grey[y : y + edge, x : x + edge], (size_px, size_px), anti_aliasing=True)
    if rng.random() < 0.5:
        square = square[:, ::-1]
    # A few very bright pixels would leave the rest without contrast.
    darkest, brightest = np.quantile(square, [0.005, 0.995])
    return np.asarray(np.clip(square, darkest, brightest), dtype=np.float64)


def _mix(thickness: np.ndarray | float, other: np.ndarray | float) -> np.ndarray:
    """Mix the absorption, half of it following the thickness: materials differ."""
    return np.asarray(0.5 * thickness + 0.5 * other)


def _cover_pixel(distance_px: np.ndarray) -> np.ndarray:
    """Compute the coverage of a pixel whose centre lies this far inside an edge."""
    return np.clip(distance_px + 0.5, 0, 1)


def _stretch(values: np.ndarray) -> Map:
    lowest, highest = values.min(), values.max()
    # A map without contrast (an object of one pixel, say) is transparent rather than undefined.
    return np.ones_like(values) if highest == lowest else (values - lowest) / (highest - lowest)


def _blur_and_stretch(values: np.ndarray) -> Map:
    """Band-limit, then stretch, so that the result has the requested range."""
    return _stretch(ndimage.gaussian_filter(values, BLUR_SIGMA_PX, mode="reflect"))


_KINDS: dict[str, Callable[[int, np.random.Generator], Maps]] = {
    "dead_leaves": draw_dead_leaves,
    "lines": draw_lines,
    "gaussian_field": draw_gaussian_field,
    "siemens_star": draw_siemens_star,
    "natural": draw_photographs,
}
