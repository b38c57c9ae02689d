"""The one adapter between this package's layouts and signs and those of the original PtychoPINN.

|            | here                                   | there                                            |
|------------|----------------------------------------|--------------------------------------------------|
| images     | (B, C, N, N)                           | (B, N, N, C)                                     |
| positions  | (G, C, 2) as (y, x)                    | (G, 1, 2, C), (x, y) on axis 2                   |
| members    | offset = position - center             | coords_relative = -(position - center)           |
| centers    | (G, 2) as (y, x)                       | coords_offsets, (G, 1, 2, 1) as (x, y)           |
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

__all__ = [
    "centers_from_offsets",
    "channels_first",
    "channels_last",
    "coords_from_positions",
    "offsets_from_centers",
    "offsets_from_relative",
    "positions_from_coords",
    "relative_from_offsets",
]


def channels_last(images: Shaped[np.ndarray, "b c h w"]) -> Shaped[np.ndarray, "b h w c"]:
    """Move the channels of images last, as in the original; contiguous."""
    return np.ascontiguousarray(np.moveaxis(images, 1, -1))


def channels_first(images: Shaped[np.ndarray, "b h w c"]) -> Shaped[np.ndarray, "b c h w"]:
    """Move the channels of images first, as in this package; contiguous."""
    return np.ascontiguousarray(np.moveaxis(images, -1, 1))


def coords_from_positions(positions_px: Float[np.ndarray, "g c 2"]) -> Float[np.ndarray, "g 1 2 c"]:
    """Convert positions (y, x) to the original's grouped coordinates."""
    return np.ascontiguousarray(np.swapaxes(positions_px[..., ::-1], 1, 2)[:, None])


def positions_from_coords(coords: Float[np.ndarray, "g 1 2 c"]) -> Float[np.ndarray, "g c 2"]:
    """Convert the original's grouped coordinates to positions (y, x)."""
    return np.ascontiguousarray(np.swapaxes(coords[:, 0], 1, 2)[..., ::-1])


def relative_from_offsets(offset_px: Float[np.ndarray, "g c 2"]) -> Float[np.ndarray, "g 1 2 c"]:
    """Convert offsets (y, x) from the center of a group to `coords_relative`."""
    return -coords_from_positions(offset_px)


def offsets_from_relative(coords_relative: Float[np.ndarray, "g 1 2 c"]) -> Float[np.ndarray, "g c 2"]:
    """Convert `coords_relative` to offsets (y, x) from the center of a group."""
    return -positions_from_coords(coords_relative)


def offsets_from_centers(center_px: Float[np.ndarray, "g 2"]) -> Float[np.ndarray, "g 1 2 1"]:
    """Convert centers (y, x) to `coords_offsets`."""
    return coords_from_positions(center_px[:, None])


def centers_from_offsets(coords_offsets: Float[np.ndarray, "g 1 2 1"]) -> Float[np.ndarray, "g 2"]:
    """Convert `coords_offsets` to centers (y, x)."""
    return positions_from_coords(coords_offsets)[:, 0]
