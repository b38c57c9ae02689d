"""A batch of groups, the input of the network."""

from __future__ import annotations

from tensordict import TensorClass
from torch import Tensor

__all__ = ["GroupBatch"]


class GroupBatch(TensorClass["tensor_only"]):  # type: ignore[type-arg,name-defined]
    """B groups of C frames.

    frames [B, C, N, N] in the detector's dtype, which is the smallest to transfer to a GPU.
    offset_px f32 [B, C, 2] and center_px f64 [B, 2], (y, x) in object pixels.
    scan i64 [B], index of the group's scan in the store.
    members i64 [B, C], frame indices in the store; fresh bool [B, C], False for repeats that only fill a group.
    truth c64 [B, C, N, N] object patches, or None.
    """

    frames: Tensor
    offset_px: Tensor
    center_px: Tensor
    scan: Tensor
    members: Tensor
    is_first: Tensor
    truth: Tensor | None = None
