"""The noun: groups of frames, and where their members lie around the centers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float32, Float64, Int64

__all__ = ["Groups", "build_groups"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Groups:
    """G groups of C = gridsize^2 frames.

    Arguments:
        members: [G, C] frame indices.
        center_px: [G, 2] mean position (y, x) of the members.
        offset_px: [G, C, 2] position - center.
        frames_used: sorted indices of the frames that groups were formed from.
    """

    members: Int64[np.ndarray, "g c"]
    center_px: Float64[np.ndarray, "g 2"]
    offset_px: Float32[np.ndarray, "g c 2"]
    frames_used: Int64[np.ndarray, " used"]

    def __len__(self) -> int:
        return len(self.members)

    @property
    def gridsize(self) -> int:
        return math.isqrt(self.members.shape[1])

    def __repr__(self) -> str:
        reach = f"{np.abs(self.offset_px).max():.1f} px" if self.offset_px.size else "none"
        return (
            f"Groups({len(self)} groups of {self.gridsize}x{self.gridsize} from {len(self.frames_used)} frames, "
            f"largest offset {reach})"
        )


def build_groups(positions_px: np.ndarray, members: np.ndarray, frames_used: np.ndarray) -> Groups:
    """Build groups of these members [G, C]; centers and offsets follow from the positions."""
    where = positions_px.take(members, axis=0)
    # einsum sums over an axis this short many times faster than mean does.
    center_px = np.einsum("gcd->gd", where) / members.shape[1]
    where -= center_px[:, None]
    return Groups(
        members=members.astype(np.int64, copy=False),
        center_px=center_px,
        offset_px=where.astype(np.float32),
        frames_used=frames_used,
    )
