"""Frames of a scan in the order and the groups in which they are predicted."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from torchptycho.core.scan import ArrayFrames, Frames, Scan
from torchptycho.data.grouping import partition
from torchptycho.io import iter_checked_chunks
from torchptycho.io.frames.npz_frames import StoredFrames
from torchptycho.io.near_field import refuse_near_field
from torchptycho.physics.scaling import Scaling, measure_scaling, sum_frames

__all__ = ["InferenceBatch", "InferenceDataset"]

# Rotation angles of the positions before bisection into groups: each pass gets other neighbours.
_ROTATION_RAD = 0.6


@dataclasses.dataclass(frozen=True, eq=False)
class InferenceBatch:
    """What `data.batch.GroupBatch` holds for prediction, without tensordict, which takes a second to import."""

    frames: Tensor
    offset_px: Tensor
    scan: Tensor
    members: Tensor
    is_first: Tensor

    def to(self, device: torch.device) -> InferenceBatch:
        return InferenceBatch(
            **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in dataclasses.fields(self)}
        )

    def copy_to_pinned_memory(self) -> InferenceBatch:
        """Copy to memory from which a GPU copies asynchronously."""
        return InferenceBatch(**{f.name: getattr(self, f.name).pin_memory() for f in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True)
class _RawFrameFile:
    """Frames in a file of nothing else, read by number; other processes open it for themselves."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, int, int]

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        # Mapped again for each batch, so that pages that were read are released.
        return np.asarray(np.memmap(self.path, self.dtype, "r", shape=self.shape)[index])


@dataclasses.dataclass(frozen=True, eq=False)
class InferenceDataset:
    """A scan that was looked through once and is now read group by group; frames are in memory one batch at a time.

    With several passes each frame is predicted in each of them, among other neighbours; `members` then counts
    on: frame f in pass p is number f + p * M.

    Arguments:
        frames: where they are read from, at random.
        scaling: of all frames.
        mask: [N, N] good detector pixels, torch.
        positions_px: [M * passes, 2] of all numbers.
        members: [G, C] numbers; offset_px [G, C, 2] from the group's centre; fresh [G, C], False for frames that only
            fill a group.
        training_scan: whose probe and scale the network takes.
    """

    frames: Frames | _RawFrameFile
    scaling: Scaling
    mask: Tensor
    positions_px: Tensor
    members: Tensor
    offset_px: Tensor
    is_first: Tensor
    training_scan: int

    @classmethod
    def from_scan(
        cls,
        scan: Scan,
        folder: Path,
        *,
        gridsize: int,
        nphotons: float | None,
        training_scan: int,
        passes: int = 1,
        copy: bool = False,
    ) -> InferenceDataset:
        """Look through the frames, check and measure them, and group them.

        Arguments:
            folder: where frames are copied to that cannot be read at random or that several processes read.
            nphotons: photons per frame of amplitudes; None follows the scan.
            passes: times that each frame is predicted.
            copy: copy the frames in any case.

        Raises:
            ScanError: the frames are unusable.
            GroupingError: there are fewer frames than a group needs.
        """
        refuse_near_field(scan)
        # Frames in memory or memory-mapped are used directly. Others are copied, because a chunk of compressed frames
        # would be read again for each batch.
        copy = copy or not isinstance(scan.frames, ArrayFrames | StoredFrames) or not scan.frames.dtype.isnative
        sums = []
        file, dtype = folder / "frames.raw", scan.frames.dtype.newbyteorder("=")
        with file.open("wb") if copy else contextlib.nullcontext() as target:
            for chunk in iter_checked_chunks(scan):
                sums.append(sum_frames(chunk, scan.domain))
                if target is not None:
                    target.write(np.ascontiguousarray(chunk, dtype).data)
        mean = float(np.concatenate(sums).mean())
        return cls.from_frames(
            _RawFrameFile(file, dtype, scan.frames.shape) if copy else scan.frames,
            scan.positions_px,
            gridsize=gridsize,
            scaling=measure_scaling(mean, scan.n_px, scan.domain, nphotons or scan.photons_per_frame),
            mask=torch.from_numpy(scan.mask),
            training_scan=training_scan,
            scan_id=scan.scan_id,
            passes=passes,
        )

    @classmethod
    def from_frames(
        cls,
        frames: Frames | _RawFrameFile,
        positions_px: Float64[np.ndarray, "m 2"],
        *,
        gridsize: int,
        scaling: Scaling,
        mask: Tensor,
        training_scan: int,
        scan_id: Int64[np.ndarray, " m"] | None = None,
        passes: int = 1,
    ) -> InferenceDataset:
        """Group frames that have been looked through.

        Arguments:
            frames: good ones, 0 under the mask.
            scan_id: groups do not mix scans; None for one scan.

        Raises:
            GroupingError: there are fewer frames than a group needs.
        """
        unique_scan_id = None if scan_id is None else np.unique(scan_id, return_inverse=True)[1].reshape(-1)
        tables = []
        for number in range(passes):
            groups, own = partition(_rotate(positions_px, number * _ROTATION_RAD), gridsize, unique_scan_id)
            where = positions_px[groups.members]
            offset = (where - where.mean(axis=1, keepdims=True)).astype(np.float32)
            numbers = groups.members + number * len(positions_px)
            tables.append((numbers, groups.offset_px if not number else offset, own))
        members, offset_px, is_first = (torch.from_numpy(np.concatenate(part)) for part in zip(*tables, strict=True))
        return cls(
            frames=frames,
            scaling=scaling,
            mask=mask,
            positions_px=torch.from_numpy(np.tile(positions_px, (passes, 1))),
            members=members,
            offset_px=offset_px,
            is_first=is_first,
            training_scan=training_scan,
        )

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.members)

    @property
    def max_offset_px(self) -> float:
        """Largest distance of a frame from its group's centre, along an axis."""
        return float(self.offset_px.abs().max())

    def read_batch(self, start: int, stop: int) -> InferenceBatch:
        """Read the groups from `start` to `stop`."""
        members = self.members[start:stop]
        rows = (members % self.frames.shape[0]).reshape(-1).numpy()
        frames = torch.from_numpy(np.ascontiguousarray(self.frames[rows]))
        return InferenceBatch(
            frames=frames.reshape(*members.shape, *frames.shape[1:]),
            offset_px=self.offset_px[start:stop],
            scan=torch.full((len(members),), self.training_scan),
            members=members,
            is_first=self.is_first[start:stop],
        )

    def iterate_batches(self, cuts: list[tuple[int, int]]) -> Iterator[InferenceBatch]:
        """Iterate over batches; the next one is read while this one is computed."""
        with ThreadPoolExecutor(1) as reader:
            coming: Future[InferenceBatch] | None = None
            for cut in cuts:
                ready, coming = coming, reader.submit(self.read_batch, *cut)
                if ready is not None:
                    yield ready.result()
            if coming is not None:
                yield coming.result()


def _rotate(positions_px: np.ndarray, angle_rad: float) -> np.ndarray:
    if not angle_rad:
        return positions_px
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    turned: np.ndarray = positions_px @ np.array([[cos, -sin], [sin, cos]])
    return turned
