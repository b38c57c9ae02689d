"""Families of textures from which objects for training a prior are drawn, and families that are kept out of it.

A family draws two maps with values from 0 to 1 that share their edges, as thickness and composition of a sample do:
the first is taken for the phase, and both for the transmission (see `random_objects`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64
from scipy import ndimage
from scipy.spatial import cKDTree

from torchptycho.data.simulation.objects import (
    draw_dead_leaves,
    draw_gaussian_field,
    draw_lines,
    draw_photographs,
    draw_siemens_star,
)

__all__ = ["HELD_OUT_FAMILIES", "TRAINING_FAMILIES", "Family", "draw_family"]

Map = Float64[np.ndarray, "n n"]
Maps = tuple[Map, Map]
Family = Callable[[int, np.random.Generator], Maps]


def draw_family(name: str, size_px: int, rng: np.random.Generator) -> Maps:
    """Draw both maps of a family, each stretched to 0 ... 1; a map without contrast is 0."""
    first, second = (TRAINING_FAMILIES | HELD_OUT_FAMILIES)[name](size_px, rng)
    return _stretch(first), _stretch(second)


def draw_power_law(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw Gaussian fields whose power spectrum falls with an exponent from 1 (rough) to 4.5 (clouds)."""
    exponent = rng.uniform(1.0, 4.5)
    first, second = (_draw_field(size_px, rng, exponent=exponent) for _ in range(2))
    return first, 0.5 * first + 0.5 * second


def draw_speckle(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw fields of one length scale, from 1.5 to 12 px, as emulsions and ripples have."""
    scale_px = 10 ** rng.uniform(np.log10(1.5), np.log10(12))
    first, second = (_draw_field(size_px, rng, scale_px=scale_px) for _ in range(2))
    sharpness = rng.uniform(0.5, 3)
    return np.tanh(sharpness * first), np.tanh(sharpness * second)


def draw_gratings(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw patches of parallel lines: square or sinusoidal, of periods from 2.5 to 30 px, straight or curved."""
    regions = _label_cells(size_px, int(rng.integers(1, 9)), rng)
    y, x = _grid(size_px)
    first, second = np.zeros((size_px, size_px)), np.zeros((size_px, size_px))
    for region in range(int(regions.max()) + 1):
        angle, period = rng.uniform(0, np.pi), 10 ** rng.uniform(np.log10(2.5), np.log10(30))
        bend = rng.choice([0.0, rng.normal(0, 0.3 / size_px)])
        along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
        wave = np.sin(2 * np.pi * (across + bend * along**2) / period + rng.uniform(0, 2 * np.pi))
        steepness = rng.choice([0.0, period / 2])
        profile = np.clip(steepness * (wave - rng.uniform(-0.5, 0.5)) + 0.5, 0, 1) if steepness else 0.5 + 0.5 * wave
        inside = regions == region
        depth = rng.uniform(0.3, 1, 2)
        first[inside], second[inside] = depth[0] * profile[inside], depth[1] * profile[inside] + rng.uniform(0, 0.3)
    return first, second


def draw_grains(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw Voronoi cells of random greys, some with dark boundaries or a slope inside each cell."""
    count = max(2, int((size_px / 10 ** rng.uniform(np.log10(6), np.log10(50))) ** 2))
    labels, boundary = _label_cells(size_px, count, rng), 0.0
    greys = rng.random((2, labels.max() + 1))
    first, second = greys[0][labels], greys[1][labels]
    if rng.random() < 0.4:
        y, x = _grid(size_px)
        slope = rng.normal(0, 1.5 / size_px, (2, labels.max() + 1))
        first = first + slope[0][labels] * y + slope[1][labels] * x
    if rng.random() < 0.4:
        edge = (labels != np.roll(labels, 1, 0)) | (labels != np.roll(labels, 1, 1))
        boundary = ndimage.binary_dilation(edge, iterations=int(rng.integers(1, 3))) * rng.uniform(0.2, 1)
    return first * (1 - boundary), second * (1 - boundary)


def draw_spheres(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw projected spheres and shells of one or many sizes, whose thicknesses add."""
    radius_px = 10 ** rng.uniform(np.log10(3), np.log10(size_px / 6))
    spread, shell = rng.choice([0.0, 0.4]), rng.choice([0.0, rng.uniform(0.5, 0.9)])
    count = max(1, int(rng.uniform(0.1, 1.2) * size_px**2 / (np.pi * radius_px**2)))
    y, x = _grid(size_px)
    first, second = np.zeros((size_px, size_px)), np.zeros((size_px, size_px))
    for _ in range(min(count, 400)):
        radius, (cy, cx) = radius_px * np.exp(spread * rng.normal()), rng.uniform(-0.5, 0.5, 2) * size_px
        squared = (y - cy) ** 2 + (x - cx) ** 2
        thickness = np.sqrt(np.maximum(radius**2 - squared, 0)) - np.sqrt(
            np.maximum((shell * radius) ** 2 - squared, 0)
        )
        first += thickness / radius
        second += rng.uniform(0.2, 1) * thickness / radius
    return first, second


def draw_blobs(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw a smooth field cut at one or more levels: islands, pores, terraces."""
    field = _draw_field(size_px, rng, scale_px=10 ** rng.uniform(np.log10(3), np.log10(25)))
    levels = np.sort(rng.uniform(-1.2, 1.2, int(rng.integers(1, 5))))
    steps = np.searchsorted(levels, field)
    greys = rng.random((2, len(levels) + 1))
    return greys[0][steps], greys[1][steps]


def draw_strokes(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw short bent strokes of a pen, as in writing, of one width or of several."""
    y, x = _grid(size_px)
    first, second = np.zeros((size_px, size_px)), np.zeros((size_px, size_px))
    width_px, length_px = 10 ** rng.uniform(0.1, 0.9), 10 ** rng.uniform(np.log10(5), np.log10(40))
    for _ in range(int(rng.uniform(0.15, 0.8) * size_px**2 / (width_px * length_px + 20))):
        center, angle, turn = rng.uniform(-0.5, 0.5, 2) * size_px, rng.uniform(0, 2 * np.pi), rng.normal(0, 1.0)
        steps = np.linspace(-0.5, 0.5, max(4, int(length_px)))
        points = center + length_px * np.cumsum(
            np.stack([np.cos(angle + turn * steps), np.sin(angle + turn * steps)], 1), 0
        ) / len(steps)
        low, high = points.min(0) - width_px - 1, points.max(0) + width_px + 1
        rows = slice(*np.clip([low[0] + size_px / 2, high[0] + size_px / 2 + 1], 0, size_px).astype(int))
        columns = slice(*np.clip([low[1] + size_px / 2, high[1] + size_px / 2 + 1], 0, size_px).astype(int))
        yy, xx = y[rows, columns], x[rows, columns]
        if yy.size == 0:
            continue
        distance = cKDTree(points).query(np.stack([yy.ravel(), xx.ravel()], 1))[0].reshape(yy.shape)
        ink = np.clip(width_px / 2 - distance + 0.5, 0, 1)
        first[rows, columns] = np.maximum(first[rows, columns], ink)
        second[rows, columns] = np.maximum(second[rows, columns], ink * rng.uniform(0.4, 1))
    return first, second


def draw_rectangles(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw sharp rectangles of flat greys that cover one another, upright or turned by one angle for all."""
    angle = rng.choice([0.0, rng.uniform(0, np.pi / 2)])
    y, x = _grid(size_px)
    v, u = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    first, second = np.zeros((size_px, size_px)), np.zeros((size_px, size_px))
    smallest, largest = 2.0, size_px * rng.uniform(0.1, 0.5)
    for _ in range(int(10 ** rng.uniform(0.7, 2.3))):
        half = np.exp(rng.uniform(np.log(smallest), np.log(largest), 2)) / 2
        center = rng.uniform(-0.7, 0.7, 2) * size_px
        inside = (np.abs(v - center[0]) <= half[0]) & (np.abs(u - center[1]) <= half[1])
        first[inside], second[inside] = rng.random(2)
    return first, second


def draw_polygons(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw flat wedges, triangles and half planes: intersections of two to four half planes."""
    y, x = _grid(size_px)
    first, second = np.zeros((size_px, size_px)), np.zeros((size_px, size_px))
    reach = size_px * 10 ** rng.uniform(-1.3, -0.4)
    for _ in range(int(10 ** rng.uniform(0.5, 2.0))):
        center, inside = rng.uniform(-0.5, 0.5, 2) * size_px, np.ones((size_px, size_px), bool)
        for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(2, 5))):
            inside &= (y - center[0]) * np.cos(angle) + (x - center[1]) * np.sin(angle) <= reach * rng.uniform(0.05, 1)
        first[inside], second[inside] = rng.random(2)
    return first, second


def draw_circuit(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw layers of wires that run along two directions with right-angled bends and contacts, whose heights add."""
    first, second = np.zeros((size_px, size_px)), np.zeros((size_px, size_px))
    for _ in range(int(rng.integers(1, 4))):
        width, gap = int(rng.integers(1, 9)), int(rng.integers(1, 10))
        layer = np.zeros((size_px, size_px))
        for start in range(int(rng.integers(0, gap + width)), size_px, width + gap):
            if rng.random() < 0.2:
                continue
            at, bend = 0, start
            while at < size_px:
                until = at + int(rng.integers(size_px // 8, size_px))
                layer[max(bend, 0) : max(bend + width, 0), at : until + width] = 1
                step = int(rng.choice([-1, 1])) * (width + gap) if rng.random() < 0.5 else 0
                low, high = min(bend, bend + step), max(bend, bend + step) + width
                layer[max(low, 0) : max(high, 0), until : until + width] = 1
                at, bend = until, bend + step
        for top, left in rng.integers(0, size_px, (int(rng.integers(0, 12)), 2)):
            layer[top : top + 2 * width, left : left + 2 * width] = 1
        layer = layer if rng.random() < 0.5 else layer.T
        first += rng.uniform(0.3, 1) * layer
        second += rng.uniform(0, 1) * layer
    return first, second


def draw_vessels(size_px: int, rng: np.random.Generator) -> Maps:
    """Draw branching tubes that bend, fork and become thinner, seen in projection."""
    y, x = _grid(size_px)
    thickness, walls = np.zeros((size_px, size_px)), np.zeros((size_px, size_px))
    edge = size_px / 2
    tips = [
        (rng.uniform(-edge, edge, 2), rng.uniform(0, 2 * np.pi), rng.uniform(3, 0.05 * size_px + 3)) for _ in range(6)
    ]
    for _ in range(400):
        if not tips:
            break
        place, angle, radius = tips.pop(0)
        for _ in range(int(rng.integers(8, 30))):
            rows, columns = (
                slice(max(int(c + edge - radius - 2), 0), max(int(c + edge + radius + 3), 0)) for c in place
            )
            squared = (y[rows, columns] - place[0]) ** 2 + (x[rows, columns] - place[1]) ** 2
            tube = np.sqrt(np.maximum(radius**2 - squared, 0))
            thickness[rows, columns] = np.maximum(thickness[rows, columns], tube)
            walls[rows, columns] = np.maximum(walls[rows, columns], squared <= radius**2)
            angle = angle + rng.normal(0, 0.15)
            place = place + 1.2 * np.array([np.cos(angle), np.sin(angle)])
        if np.abs(place).max() < edge and radius > 0.8:
            spread = rng.uniform(0.3, 0.8)
            tips += [(place, angle + turn, radius * rng.uniform(0.65, 0.95)) for turn in (-spread, spread)]
    return thickness, thickness / (thickness.max() or 1) + 0.5 * walls


def _grid(size_px: int) -> tuple[Map, Map]:
    y, x = np.meshgrid(*[np.arange(size_px) - size_px / 2] * 2, indexing="ij")
    return y, x


def _label_cells(size_px: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Label each pixel by the nearest of `count` random points."""
    points = rng.uniform(0, size_px, (count, 2))
    y, x = np.mgrid[:size_px, :size_px]
    return np.asarray(cKDTree(points).query(np.stack([y.ravel(), x.ravel()], 1))[1].reshape(size_px, size_px))


def _draw_field(
    size_px: int, rng: np.random.Generator, *, exponent: float | None = None, scale_px: float | None = None
) -> Map:
    """Draw a Gaussian field of unit variance: a power law, or a band around one length scale."""
    frequency = np.hypot(np.fft.fftfreq(size_px)[:, None], np.fft.rfftfreq(size_px))
    frequency[0, 0] = np.inf
    if exponent is not None:
        gain = frequency ** (-exponent / 2)
    else:
        assert scale_px is not None
        gain = np.exp(-((frequency * 2 * scale_px) ** 2))
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size_px, size_px))) * gain, s=(size_px, size_px))
    return np.asarray((field - field.mean()) / (field.std() or 1.0))


def _stretch(values: np.ndarray) -> Map:
    lowest, highest = float(values.min()), float(values.max())
    return np.zeros_like(values) if highest == lowest else np.asarray((values - lowest) / (highest - lowest))


TRAINING_FAMILIES: dict[str, Family] = {
    "dead_leaves": draw_dead_leaves,
    "lines": draw_lines,
    "gaussian_field": draw_gaussian_field,
    "power_law": draw_power_law,
    "speckle": draw_speckle,
    "gratings": draw_gratings,
    "grains": draw_grains,
    "spheres": draw_spheres,
    "blobs": draw_blobs,
    "strokes": draw_strokes,
    "rectangles": draw_rectangles,
    "polygons": draw_polygons,
    "circuit": draw_circuit,
}

HELD_OUT_FAMILIES: dict[str, Family] = {
    "siemens_star": draw_siemens_star,
    "vessels": draw_vessels,
    "photographs": draw_photographs,
}
"""Never drawn for training: what a prior makes of them shows what it makes of the unknown."""
