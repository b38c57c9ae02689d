"""Scan positions: raster, Fermat spiral, random. A position's patch always lies within the object."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float64

from torchptycho.core.config import SimulateConfig
from torchptycho.core.errors import ConfigError

__all__ = ["check_positions", "make_fermat_spiral", "make_positions", "make_random", "make_raster"]

_GOLDEN_ANGLE_RAD = np.pi * (3 - np.sqrt(5))

Positions = Float64[np.ndarray, "m 2"]


def make_positions(config: SimulateConfig, rng: np.random.Generator, shape_px: tuple[int, int]) -> Positions:
    """Draw the scan positions configured by `config` on an object of shape (H, W).

    The patch at p covers p - N/2 ... p + N/2 - 1 and, between pixels, one more: positions run from N/2 to
    H - N/2 - 1.

    Arguments:
        config: `position_kind`, `n_frames`, `position_jitter_px` (raster) and `n_px` are used.
        rng: source of all that is random in it.
        shape_px: (H, W) of the object.

    Returns:
        [M, 2] as (y, x) in object pixels, in the order of the scan; M is `n_frames`, or more for a raster.

    Raises:
        ConfigError: the object is too small for the frame.
    """
    height, width = shape_px
    if min(height, width) <= config.n_px:
        raise ConfigError(
            f"object_px: an object of {height} x {width} px is too small for frames of {config.n_px} px; it needs at "
            f"least {config.n_px + 1} px each way. Raise object_px or lower n_px."
        )
    low_px = np.array([config.n_px / 2, config.n_px / 2])
    span_px = np.array([height, width]) - config.n_px - 1.0
    if config.position_kind == "raster":
        offset_px = make_raster(config.n_frames, span_px, config.position_jitter_px, rng)
    elif config.position_kind == "fermat":
        offset_px = make_fermat_spiral(config.n_frames, span_px, rng)
    else:
        offset_px = make_random(config.n_frames, span_px, rng)
    return np.asarray(low_px + np.clip(offset_px, 0, span_px))


def make_raster(count: int, span_px: np.ndarray, jitter_px: float, rng: np.random.Generator) -> Positions:
    """Make at least `count` points in rows over (0, 0) ... `span_px`, steps about equal both ways, each point jittered.

    The rows keep off the edges by the jitter (or by half the span, where that is less).
    """
    height, width = np.maximum(span_px, 1.0)
    columns = min(count, max(1, math.ceil(math.sqrt(count * width / height))))
    rows = math.ceil(count / columns)
    margin = np.minimum(jitter_px, span_px / 2)
    # A single row or column is centred.
    fractions = [np.linspace(0, 1, steps) if steps > 1 else np.array([0.5]) for steps in (rows, columns)]
    grid = np.stack(np.meshgrid(*fractions, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.asarray(margin + grid * (span_px - 2 * margin) + rng.uniform(-1, 1, size=grid.shape) * margin)


def make_fermat_spiral(count: int, span_px: np.ndarray, rng: np.random.Generator) -> Positions:
    """Place `count` points on Vogel's spiral r = c sqrt(n), golden angle apart, in the rectangle (0, 0) ... `span_px`.

    The spiral starts at the centre at a random angle; c is the largest for which `count` of its points lie inside.
    Reference: Vogel, Math. Biosci. 44, 179 (1979).
    """
    height, width = np.maximum(span_px, 1.0)
    candidates = 32 + math.ceil(1.1 * count * np.pi * (height**2 + width**2) / (4 * height * width))
    n = np.arange(candidates)
    angle = n * _GOLDEN_ANGLE_RAD + rng.uniform(0, 2 * np.pi)
    unit = np.sqrt(n)[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    # A point is inside while c times this is below 1.
    reach = np.max(np.abs(unit) / (np.array([height, width]) / 2), axis=1)
    limit = np.partition(reach, count - 1)[count - 1]
    inside = unit[np.flatnonzero(reach <= limit)[:count]]
    return np.asarray(span_px / 2 + inside / max(float(limit), 1e-12))


def make_random(count: int, span_px: np.ndarray, rng: np.random.Generator) -> Positions:
    """Draw `count` independent points, uniformly distributed over (0, 0) ... `span_px`."""
    return np.asarray(rng.random((count, 2)) * span_px)


def check_positions(positions_px: np.ndarray, n_px: int, shape_px: tuple[int, int]) -> None:
    """Refuse positions whose patch would leave the object.

    Raises:
        ConfigError: names the first such position and the object that would hold all of them.
    """
    if positions_px.ndim != 2 or positions_px.shape[1] != 2 or len(positions_px) == 0:
        raise ConfigError(f"positions_px: expected [M, 2] as (y, x), at least one; found shape {positions_px.shape}.")
    highest = np.array(shape_px) - n_px / 2
    outside = ~np.all((positions_px >= n_px / 2) & (positions_px <= highest), axis=1)
    if not outside.any():
        return
    index = int(np.flatnonzero(outside)[0])
    y, x = positions_px[index]
    if not np.isfinite(positions_px).all():
        remedy = "All of them must be finite numbers."
    else:
        needed = np.maximum(np.ceil(positions_px.max(axis=0) + n_px / 2), n_px + 1).astype(int)
        shift = np.maximum(np.ceil(n_px / 2 - positions_px.min(axis=0)), 0).astype(int)
        remedy = f"An object of at least {needed[0] + shift[0]} x {needed[1] + shift[1]} px would hold all of them"
        remedy += f", moved by ({shift[0]}, {shift[1]}) px." if shift.any() else "."
    raise ConfigError(
        f"positions_px[{index}] = ({y:g}, {x:g}): its frame of {n_px} px leaves the object of {shape_px[0]} x "
        f"{shape_px[1]} px; y must be in {n_px / 2:g} ... {highest[0]:g} and x in {n_px / 2:g} ... {highest[1]:g} "
        f"({int(outside.sum())} of {len(positions_px)} are not). {remedy}"
    )
