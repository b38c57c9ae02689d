"""A recorded ptychographic scan: frames, positions, probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Complex64, Float64, Int64

from torchptycho.core.config.base import Domain
from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry
from torchptycho.core.inputs import describe_type

__all__ = ["DEFAULT_PHOTONS_PER_FRAME", "ArrayFrames", "Frames", "Scan", "SourceFile"]

DEFAULT_PHOTONS_PER_FRAME = 1e9
"""Photons per frame that amplitudes stand for where neither the file nor the user states a dose."""


@runtime_checkable
class Frames(Protocol):
    """A stack of frames [M, N, N] in the detector's dtype that may live in a file."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        """Iterate over the stack in order, in arrays of at most `frames_per_chunk` frames."""
        ...

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return frames by a slice or by an array of indices, as an array in memory."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayFrames:
    """Frames held by an array or by a NumPy memory map."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        m, height, width = self.array.shape
        return (m, height, width)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def chunks(self, frames_per_chunk: int) -> Iterator[np.ndarray]:
        for start in range(0, len(self.array), frames_per_chunk):
            yield np.asarray(self.array[start : start + frames_per_chunk])

    def __getitem__(self, index: Any) -> np.ndarray:
        return np.asarray(self.array[index])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceFile:
    """State of a file from which a scan was read, at the time of opening.

    Arguments:
        path: absolute.
        n_bytes: its size.
        modified_ns: time of its last change, in nanoseconds since 1970.
    """

    path: str
    n_bytes: int
    modified_ns: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """A recorded or simulated scan. `read_scan` and `simulate` build it and check its content.

    Arguments:
        frames: [M, N, N], zero frequency at [N//2, N//2], in the detector's own dtype.
        domain: whether frames hold photon counts or their square root.
        positions_px: [M, 2] as (y, x) in object pixels; patch pixel N/2 sits on the position.
        positions_unit: the unit that they had in the file: px, or a unit of length.
        probe: [P, N, N], P incoherent modes; see `probe_is_calibrated`.
        mask: [N, N], True for good detector pixels.
        scan_id: [M], number of the scan in the file to which a frame belongs.
        geometry: known lengths in metres.
        source: the file, or a description of the simulation.
        truth: [H, W] object with index = position pixel: of a simulated scan, or a reconstruction in the file.
        truth_slices: [S, H, W] slices of a thick object, of which `truth` is the product; None for a thin one.
        truth_patches: [M, N, N] object patch of each frame, if the file contains them.
        nominal_positions_px: [M, 2] requested positions, if the file contains both.
        metadata: further plain data of the file.
        probe_is_calibrated: True if sum |probe|^2 is the number of photons per frame with a transparent object.
        reading: the options with which the file was opened.
        notes: how the file was interpreted and processed, one sentence each.
        left_out: requested frames of the file that are not in the scan, and the reasons.
        files: state of all files when they were read; none for a scan in memory.
    """

    frames: Frames
    domain: Domain
    positions_px: Float64[np.ndarray, "m 2"]
    probe: Complex64[np.ndarray, "p n n"]
    mask: Bool[np.ndarray, "n n"]
    scan_id: Int64[np.ndarray, " m"]
    geometry: Geometry = dataclasses.field(default_factory=Geometry)
    positions_unit: str = "px"
    source: str = "memory"
    truth: Complex64[np.ndarray, "h w"] | None = None
    truth_slices: Complex64[np.ndarray, "slices h w"] | None = None
    truth_patches: Complex64[np.ndarray, "m n n"] | None = None
    nominal_positions_px: Float64[np.ndarray, "m 2"] | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    probe_is_calibrated: bool = False
    reading: ReadConfig = dataclasses.field(default_factory=ReadConfig)
    notes: tuple[str, ...] = ()
    left_out: dict[int, str] = dataclasses.field(default_factory=dict)
    files: tuple[SourceFile, ...] = ()

    def __post_init__(self) -> None:
        """Take arrays as frames and as one mode, and refuse a probe that is none."""
        frames: Any = self.frames
        if isinstance(frames, np.ndarray) and frames.ndim == 3:
            frames = ArrayFrames(frames)
            object.__setattr__(self, "frames", frames)
        probe: Any = self.probe
        if isinstance(probe, np.ndarray) and probe.dtype.kind == "c":
            modes = probe.astype(np.complex64, copy=False)
            object.__setattr__(self, "probe", modes[None] if modes.ndim == 2 else modes)
        if not isinstance(frames, Frames) or len(frames.shape) != 3:
            self._refuse("frames", "a stack (M, N, N)", frames, "Give an array, or frames that a file holds.")
        if not isinstance(probe, np.ndarray) or probe.dtype.kind != "c" or self.probe.ndim != 3:
            self._refuse("probe", "complex modes (P, N, N)", probe, "Give the complex wave of each mode.")
        if not np.isfinite(self.probe).all():
            self._refuse("probe", "finite values", "NaN or infinity", "Give another probe.")
        places: Any = self.positions_px
        if not isinstance(places, np.ndarray) or places.shape != (self.frames.shape[0], 2):
            expected = f"an array ({self.frames.shape[0]}, 2), as there are frames"
            self._refuse("positions_px", expected, places, "Give (y, x) in object pixels of each frame.")

    def require_probe(self) -> None:
        """Raise ScanError when the probe has no intensity."""
        if not self.probe.any():
            self._refuse("probe", "a probe with intensity", "zeros only", "A first guess may be rough, but not dark.")

    def _refuse(self, key: str, expected: str, found: object, remedy: str) -> None:
        text = found if isinstance(found, str) else describe_type(found)
        raise ScanError(self.source, key, expected=expected, found=text, remedy=remedy)

    @property
    def n_frames(self) -> int:
        return self.frames.shape[0]

    @property
    def n_px(self) -> int:
        """Frame edge N."""
        return self.frames.shape[1]

    @property
    def photons_per_frame(self) -> float | None:
        """Photons per frame of amplitude data, from the metadata (`nphotons`, else `photons_per_frame`)."""
        value = self.metadata.get("nphotons", self.metadata.get("photons_per_frame"))
        return None if value is None else float(value)

    def __repr__(self) -> str:
        return (
            f"Scan({self.source}: {self.n_frames} frames {self.n_px}x{self.n_px} {self.frames.dtype} "
            f"{self.domain}, {self.probe.shape[0]} probe mode(s), truth {'yes' if self.truth is not None else 'no'})"
        )
