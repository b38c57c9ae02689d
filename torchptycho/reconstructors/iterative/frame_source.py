"""Where the frames of a refinement are while it runs: in memory, on the device, or in a file that is read ahead."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from torchptycho.core.scan import Frames, Scan
from torchptycho.io.frames.access import classify_access, is_in_memory, number_blocks
from torchptycho.io.frames.npz_frames import count_frames_in
from torchptycho.io.source_files import refuse_changes

__all__ = ["FrameOrder", "FramePlan", "FrameReader", "FrameWriter", "plan_frames", "read_ahead"]

# Frames that need no more memory than this are kept there, as floats if they fit as such.
MAX_MEMORY_BYTES = 256 << 20
# Frames among which the order is random where pieces of a file are read whole.
_WINDOW_BYTES = 64 << 20
_BATCHES_AHEAD = 3
# Frames that are read at once, another such part of them while these are used.
_READ_BYTES = 4 << 20

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FramePlan:
    """Where the frames of a scan are while it is refined.

    Arguments:
        place: `memory` or `device` holds them; `array` reads each batch from the array that the scan is; `file` from
            the scan's own file; `blocks` does so along the file's pieces; `copy` reads a temporary, uncompressed copy.
        dtype: of what is held, copied or read.
        n_bytes: of what is held or copied; 0 where the scan's own file is read.
    """

    place: Literal["memory", "device", "array", "file", "blocks", "copy"]
    dtype: np.dtype[Any]
    n_bytes: int

    def describe(self) -> str:
        """Describe it in a few words."""
        size = f"{self.n_bytes / 1e6:.4g} MB of {self.dtype}"
        return {
            "memory": f"in memory, {size}",
            "device": f"on the device, {size}",
            "array": f"in memory already, as {self.dtype}",
            "file": f"read from their file batch by batch, as {self.dtype}",
            "blocks": f"read from their file along its compressed pieces, as {self.dtype}",
            "copy": f"read from a temporary copy on the disk, {size}",
        }[self.place]


def plan_frames(scan: Scan, device: torch.device, n_held: int | None = None) -> FramePlan:
    """Plan where frames are kept: in memory up to 256 MB, on a GPU with room for them, else in a file.

    Arguments:
        n_held: frames of this process; None for all.
    """
    m, height, width = scan.frames.shape
    n_values, dtype = (m if n_held is None else n_held) * height * width, scan.frames.dtype
    floats = np.dtype(np.float32)
    # As floats, because torch cannot index unsigned integers on a GPU.
    if device.type == "cuda" and n_values * floats.itemsize < torch.cuda.mem_get_info(device)[0] // 2:
        return FramePlan(place="device", dtype=floats, n_bytes=n_values * floats.itemsize)
    for held in (floats, dtype):
        if n_values * held.itemsize <= MAX_MEMORY_BYTES:
            return FramePlan(place="memory", dtype=held, n_bytes=n_values * held.itemsize)
    if is_in_memory(scan.frames):
        return FramePlan(place="array", dtype=dtype, n_bytes=0)
    access = classify_access(scan.frames)
    if access == "slow":
        return FramePlan(place="copy", dtype=dtype, n_bytes=n_values * dtype.itemsize)
    return FramePlan(place="file" if access == "direct" else "blocks", dtype=dtype, n_bytes=0)


class FrameOrder:
    """The order of the frames in each pass: random, and where pieces of a file are read whole, random among those of
    some tens of megabytes.

    It depends on the scan alone, not on the memory of a machine or on how many processes share the frames.
    """

    def __init__(self, frames: Frames) -> None:
        m, height, width = frames.shape
        frame_bytes = height * width * frames.dtype.itemsize
        self._m, self._window = m, max(1, _WINDOW_BYTES // frame_bytes)
        streams = m * frame_bytes > MAX_MEMORY_BYTES and classify_access(frames) == "blocks"
        self.blocks: Int64[Tensor, " m"] | None = torch.from_numpy(number_blocks(frames)) if streams else None

    def draw(self, generator: torch.Generator) -> Int64[Tensor, " m"]:
        """Draw the order of one pass.

        With pieces, each frame comes within a window of frames after the first frame of its piece could: pieces are in
        random order, and the frames of those in the window are mixed.
        """
        if self.blocks is None:
            return torch.randperm(self._m, generator=generator)
        numbers, blocks, counts = torch.unique(self.blocks, return_inverse=True, return_counts=True)
        order = torch.randperm(len(numbers), generator=generator)
        start = torch.empty_like(counts)
        start[order] = counts[order].cumsum(0) - counts[order]
        delay = torch.rand(self._m, generator=generator, dtype=torch.float64) * self._window
        return torch.argsort(start[blocks] + delay, stable=True)


@dataclasses.dataclass(frozen=True, eq=False)
class FrameReader:
    """Frames that stay in a file, read batch by batch.

    Arguments:
        scan: whose frames they are; what lies under its mask is set to 0.
        shift: move the zero frequency to [0, 0].
        blocks: number of the file's piece of each frame where pieces are read whole, else None.
    """

    scan: Scan
    shift: bool
    blocks: Int64[np.ndarray, " m"] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.scan.frames.shape

    def read(self, rows: Int64[np.ndarray, " k"]) -> np.ndarray:
        """Read these frames [K, N, N] in the file's dtype."""
        return self._arrange(self.scan.frames[rows])

    def iterate(self, batches: Sequence[Int64[np.ndarray, " _"]]) -> Generator[np.ndarray, None, None]:
        """Iterate over the frames of these batches, the next of which are read meanwhile.

        Several batches are read at once, because opening a file takes as long as reading some frames, and reads parts
        of it again.

        Raises:
            ScanError: the file is damaged, or changed since it was opened.
        """
        frames = self.scan.frames
        blocks = None if self.blocks is None else _BlockReader(frames, self.blocks, batches)

        def read(group: list[np.ndarray]) -> list[np.ndarray]:
            rows = np.concatenate(group)
            values = self._arrange(frames[rows] if blocks is None else blocks.read(rows))
            return np.split(values, np.cumsum([len(batch) for batch in group])[:-1])

        with refuse_changes(self.scan), contextlib.closing(read_ahead(read, self._group(batches), 1)) as groups:
            for values in groups:
                yield from values

    def _group(self, batches: Sequence[Int64[np.ndarray, " _"]]) -> list[list[np.ndarray]]:
        """Group batches that are read at once."""
        n_frames = count_frames_in(_READ_BYTES, self.scan.frames)
        groups: list[list[np.ndarray]] = []
        size = 0
        for batch in batches:
            if not groups or size + len(batch) > n_frames:
                groups.append([])
                size = 0
            groups[-1].append(batch)
            size += len(batch)
        return groups

    def _arrange(self, values: np.ndarray) -> np.ndarray:
        if not self.scan.mask.all():
            values = np.where(self.scan.mask, values, values.dtype.type(0))
        return np.ascontiguousarray(np.fft.ifftshift(values, axes=(-2, -1)) if self.shift else values)


class _BlockReader:
    """Reads pieces of a file whole, each once, and keeps them until their last frame was used.

    Arguments:
        frames: the stack.
        blocks: number of the piece of each frame.
        batches: all that is going to be read, in this order.
    """

    def __init__(self, frames: Frames, blocks: Int64[np.ndarray, " m"], batches: Sequence[np.ndarray]) -> None:
        self._frames, self._blocks = frames, blocks
        wanted = blocks[np.concatenate(batches)] if batches else np.zeros(0, np.int64)
        numbers, counts = np.unique(wanted, return_counts=True)
        self._left = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        self._sorted = np.argsort(blocks, kind="stable")
        self._starts = np.searchsorted(blocks[self._sorted], np.arange(int(blocks.max(initial=-1)) + 2))
        self._held: dict[int, np.ndarray] = {}

    def read(self, rows: Int64[np.ndarray, " k"]) -> np.ndarray:
        """Return the frames of the next batch."""
        numbers, inverse, counts = np.unique(self._blocks[rows], return_inverse=True, return_counts=True)
        missing = [number for number in numbers.tolist() if number not in self._held]
        members = [self._list_members(number) for number in missing]
        if missing:
            values = self._frames[np.concatenate(members)]
            cuts = np.cumsum([len(part) for part in members])[:-1]
            # Copies, because a view would keep all pieces that were read with it.
            parts = [part.copy() for part in np.split(values, cuts)] if len(missing) > 1 else [values]
            self._held.update(zip(missing, parts, strict=True))
        out = np.empty((len(rows), *self._frames.shape[1:]), self._frames.dtype)
        for place, number in enumerate(numbers.tolist()):
            here = np.flatnonzero(inverse == place)
            out[here] = self._held[number][np.searchsorted(self._list_members(number), rows[here])]
            self._left[number] -= int(counts[place])
            if not self._left[number]:
                del self._held[number]
        return out

    def _list_members(self, number: int) -> np.ndarray:
        return self._sorted[self._starts[number] : self._starts[number + 1]]


class FrameWriter:
    """Takes the frames of a scan as they are checked, and puts them where the plan says.

    Arguments:
        scan: whose frames they are.
        plan: where they go.
        device: which holds them where the plan says so.
        shift: move the zero frequency to [0, 0].
        own: True for the frames that this process keeps; None for all.
        scratch: folder for a temporary copy; None takes the system's.
    """

    def __init__(
        self,
        scan: Scan,
        plan: FramePlan,
        device: torch.device,
        *,
        shift: bool,
        own: Bool[np.ndarray, " m"] | None = None,
        scratch: str | Path | None = None,
    ) -> None:
        self._scan, self._plan, self._device, self._shift, self._own = scan, plan, device, shift, own
        self._scratch, self._stack, self._seen, self._kept = scratch, contextlib.ExitStack(), 0, 0
        count = scan.n_frames if own is None else int(own.sum())
        self._shape = (count, *scan.frames.shape[1:])
        self._values: np.ndarray | Tensor | None = None

    def __enter__(self) -> FrameWriter:
        plan = self._plan
        if plan.place == "memory":
            self._values = np.empty(self._shape, plan.dtype)
        elif plan.place == "device":
            self._values = torch.empty(self._shape, dtype=torch.float32, device=self._device)
        elif plan.place == "copy":
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix=".torchptycho-", dir=self._scratch))
            self._path = Path(folder) / "frames"
            # Written, not mapped: a full disk is then an error and not the end of the process.
            self._file = self._stack.enter_context(self._path.open("wb", buffering=0))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, chunk: np.ndarray) -> None:
        """Take the next frames [K, N, N] of the scan, 0 under the mask."""
        rows = slice(self._seen, self._seen + len(chunk))
        self._seen += len(chunk)
        if self._plan.place in ("array", "file", "blocks"):
            return
        if self._own is not None:
            chunk = chunk[self._own[rows]]
        if self._shift:
            chunk = np.fft.ifftshift(chunk, axes=(-2, -1))
        here = slice(self._kept, self._kept + len(chunk))
        self._kept += len(chunk)
        if isinstance(self._values, Tensor):
            self._values[here] = torch.from_numpy(np.ascontiguousarray(chunk, np.float32)).to(self._device)
        elif self._values is not None:
            self._values[here] = chunk
        else:
            np.ascontiguousarray(chunk, self._plan.dtype).tofile(self._file)

    def finish(self, blocks: Int64[Tensor, " m"] | None) -> np.ndarray | Tensor | FrameReader:
        """Return what frames are read from, after all have been added.

        Arguments:
            blocks: see `FrameOrder`.
        """
        if self._values is not None:
            return self._values
        if self._plan.place == "copy":
            return np.memmap(self._path, self._plan.dtype, mode="r", shape=self._shape)
        return FrameReader(self._scan, self._shift, None if blocks is None else blocks.numpy())


def read_ahead(
    read: Callable[[Item], Result], items: Sequence[Item], ahead: int = _BATCHES_AHEAD
) -> Generator[Result, None, None]:
    """Yield what `read` returns for each item, in order, while a thread works on the next few."""
    pool = ThreadPoolExecutor(1)
    coming: deque[Future[Result]] = deque()
    try:
        for item in items:
            coming.append(pool.submit(read, item))
            if len(coming) > ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
