"""The frames of a store: a file for each scan, read as one stack."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

__all__ = ["FrameStack"]


@dataclasses.dataclass(frozen=True, eq=False)
class FrameStack:
    """[M, N, N] frames of all scans in a row.

    Arguments:
        parts: [M_s, N, N] memory map of each scan's frames, in the detector's own dtype.
    """

    parts: tuple[Tensor, ...]

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """The smallest dtype that holds the frames of every scan; batches have it."""
        dtype = np.result_type(*(torch.empty(0, dtype=part.dtype).numpy().dtype for part in self.parts))
        return torch.from_numpy(np.empty(0, dtype)).dtype

    @functools.cached_property
    def starts(self) -> Int64[Tensor, " s"]:
        """First frame of each scan."""
        return torch.tensor([0, *(len(part) for part in self.parts[:-1])]).cumsum(0)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (sum(len(part) for part in self.parts), int(self.parts[0].shape[1]), int(self.parts[0].shape[2]))

    def __getitem__(self, members: Int64[Tensor, "*b"]) -> Shaped[Tensor, "*b n n"]:
        """Copy the frames of these indices, in one dtype."""
        # index_select copies whole frames; indexing with a matrix copies pixel by pixel and takes five times as long.
        wanted = members.flatten()
        if len(self.parts) == 1:
            of_one = self.parts[0].index_select(0, wanted)
            return of_one.reshape(*members.shape, *of_one.shape[1:])
        scan_of = torch.bucketize(wanted, self.starts, right=True) - 1
        rows = wanted - self.starts.index_select(0, scan_of)
        frames = torch.empty(len(wanted), *self.shape[1:], dtype=self.dtype)
        # By NumPy, because torch 2.13 cannot assign to tensors of uint16.
        filled = frames.numpy()
        for scan in np.unique(scan_of.numpy()):
            in_scan = scan_of == int(scan)
            filled[in_scan.numpy()] = self.parts[scan].index_select(0, rows[in_scan]).numpy()
        return frames.reshape(*members.shape, *self.shape[1:])
