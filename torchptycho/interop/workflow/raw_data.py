"""`RawData`: a scan under the original's names, and its groups in the original's dictionary."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Complex64, Float64, Int64, Num, Shaped

from torchptycho.core.config import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.interop import original_layouts
from torchptycho.interop.workflow.original_groups import Grouping
from torchptycho.io import RawScan, read_scan
from torchptycho.io.checks import check_frame_shape
from torchptycho.io.probe_arrays import to_probe_modes
from torchptycho.io.raw_scan import align_to_frames
from torchptycho.io.scan_builder import build_scan

__all__ = ["RawData"]


class RawData:
    """A scan with the attributes that scripts of the original read. It is checked as `read_scan` checks a file.

    Arguments:
        xcoords, ycoords: [M] positions in object pixels.
        xcoords_start, ycoords_start: [M] nominal positions in object pixels.
        diff3d: [M, N, N] amplitudes, zero frequency at [N/2, N/2]; integers are counts, whose square roots are taken.
        probeGuess: [N, N] or [P, N, N] complex.
        scan_index: [M] number of the scan that a frame belongs to; None for one scan.
        objectGuess: [H, W] complex object, if known.
        Y: [M, N, N] complex patches of the object, if known.
        metadata: plain data; "nphotons" is the number of photons of a mean frame, "domain" "counts" or "amplitude".

    Raises:
        ScanError: an array has a wrong shape, dtype or value.
    """

    def __init__(
        self,
        xcoords: Num[np.ndarray, " m"],
        ycoords: Num[np.ndarray, " my"],
        xcoords_start: Num[np.ndarray, " mxs"],
        ycoords_start: Num[np.ndarray, " mys"],
        diff3d: Shaped[np.ndarray, "frames n n2"],
        probeGuess: Num[np.ndarray, "*p a b"],
        scan_index: Num[np.ndarray, " ms"] | None,
        objectGuess: Num[np.ndarray, "h w"] | None = None,
        Y: Num[np.ndarray, "frames_y c d"] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        label = Path("RawData")
        m, rows = len(diff3d), range(len(diff3d))
        check_frame_shape(label, "diff3d", *diff3d.shape[1:])
        columns = {
            "xcoords": xcoords,
            "ycoords": ycoords,
            "xcoords_start": xcoords_start,
            "ycoords_start": ycoords_start,
        }
        if scan_index is not None:
            columns["scan_index"] = scan_index
        for name, values in columns.items():
            align_to_frames(label, name, values, m, rows, ReadConfig())
        probe = to_probe_modes(label, "probeGuess", probeGuess.astype(np.complex64), diff3d.shape[1])
        domain = (metadata or {}).get("domain")
        if domain not in (None, "counts", "amplitude"):
            raise ScanError(
                label,
                "metadata",
                expected="'domain' to be 'counts' or 'amplitude'",
                found=f"{domain!r}",
                remedy="Correct it or leave it out.",
            )
        recorded = RawScan(
            path=label,
            format="arrays",
            frames=ArrayFrames(diff3d),
            rows=rows,
            positions=_stack_yx(ycoords, xcoords),
            unit="px",
            position_keys=("ycoords", "xcoords"),
            nominal_positions_px=_stack_yx(ycoords_start, xcoords_start),
            probe=probe,
            domain=domain,
            scan_id=None if scan_index is None else scan_index.astype(np.int64),
            truth=None if objectGuess is None else objectGuess.astype(np.complex64),
            truth_patches=None if Y is None else Y.astype(np.complex64),
            metadata={name: value for name, value in (metadata or {}).items() if name != "domain"},
        )
        self._scan = build_scan(recorded, "given as arrays", ReadConfig())

    @classmethod
    def from_scan(cls, scan: Scan) -> RawData:
        """Wrap a scan; its frames are read on first access."""
        raw = cls.__new__(cls)
        raw._scan = scan
        return raw

    @classmethod
    def from_file(cls, train_data_file_path: str | Path, reading: ReadConfig | None = None) -> RawData:
        """Read a scan file of any format that this package reads, with the options of `reading`; see `read_scan`."""
        return cls.from_scan(read_scan(train_data_file_path, reading))

    @classmethod
    def from_files(
        cls, train_data_file_path: str | Path, test_data_file_path: str | Path, reading: ReadConfig | None = None
    ) -> tuple[RawData, RawData]:
        """Read a training and a test scan."""
        return cls.from_file(train_data_file_path, reading), cls.from_file(test_data_file_path, reading)

    @classmethod
    def from_coords_without_pc(
        cls,
        xcoords: Num[np.ndarray, " m"],
        ycoords: Num[np.ndarray, " m"],
        diff3d: Shaped[np.ndarray, "frames n n2"],
        probeGuess: Num[np.ndarray, "*p a b"],
        scan_index: Num[np.ndarray, " ms"] | None,
        objectGuess: Num[np.ndarray, "h w"] | None = None,
    ) -> RawData:
        """Make a scan of arrays without position correction: the nominal positions are the positions."""
        return cls(xcoords, ycoords, xcoords, ycoords, diff3d, probeGuess, scan_index, objectGuess)

    @property
    def scan(self) -> Scan:
        """The scan itself."""
        return self._scan

    @property
    def xcoords(self) -> Float64[np.ndarray, " m"]:
        return self._scan.positions_px[:, 1]

    @property
    def ycoords(self) -> Float64[np.ndarray, " m"]:
        return self._scan.positions_px[:, 0]

    @property
    def xcoords_start(self) -> Float64[np.ndarray, " m"]:
        return self._start[:, 1]

    @property
    def ycoords_start(self) -> Float64[np.ndarray, " m"]:
        return self._start[:, 0]

    @functools.cached_property
    def diff3d(self) -> Num[np.ndarray, "m n n"]:
        """Amplitudes [M, N, N]: as given, or the float32 roots of counts; 0 at bad pixels. Read on first access."""
        frames = self._scan.frames[:]
        values = frames if self._scan.domain == "amplitude" else np.sqrt(frames, dtype=np.float32)
        return values if self._scan.mask.all() else np.where(self._scan.mask, values, values.dtype.type(0))

    @property
    def probeGuess(self) -> Complex64[np.ndarray, "*p n n"]:
        """[N, N], or [P, N, N] where there are several modes."""
        probe = self._scan.probe
        return probe[0] if len(probe) == 1 else probe

    @property
    def scan_index(self) -> Int64[np.ndarray, " m"]:
        return self._scan.scan_id

    @property
    def objectGuess(self) -> Complex64[np.ndarray, "h w"] | None:
        return self._scan.truth

    @property
    def Y(self) -> Complex64[np.ndarray, "m n n"] | None:
        return self._scan.truth_patches

    @property
    def metadata(self) -> dict[str, Any]:
        return self._scan.metadata

    def __len__(self) -> int:
        return self._scan.n_frames

    def __repr__(self) -> str:
        return f"RawData({self._scan!r})"

    def generate_grouped_data(
        self,
        N: int,
        K: int = 4,
        nsamples: int = 1,
        seed: int | None = None,
        sequential_sampling: bool = False,
        gridsize: int = 1,
        enable_oversampling: bool = False,
        neighbor_pool_size: int | None = None,
    ) -> dict[str, np.ndarray | None]:
        """Group the frames by the original's draws, and return its dictionary in its layouts.

        Arguments:
            N: edge of the frames.
            K: nearest frames of a seed among which C = gridsize^2 are chosen.
            nsamples: number of groups; with gridsize 1 at most the number of frames.
            seed: of the draws; None for 0.
            sequential_sampling: use the first frames in order as seeds.
            enable_oversampling: allow more groups than frames.
            neighbor_pool_size: replaces K if there are more groups than frames; None for K.

        Returns:
            `diffraction` [B, N, N, C] amplitudes as given, `X_full` f32 the same times one factor, so that the mean of
            sum X^2 over frames is (N/2)^2; `Y` c64 [B, N, N, C] patches of the object, None without one; `nn_indices`
            [B, C]; coordinates f64 as (x, y) on axis 2: `coords_nn` [B, 1, 2, C], their means `coords_offsets`
            [B, 1, 2, 1], `coords_relative` [B, 1, 2, C] = mean - position, the same three of the start positions as
            `coords_start_...`; `objectGuess`.

            As in the original, the patches `Y` of an object are cut at 2 mean - position, mirrored about the middle of
            their group; the patches of `Scan.truth_patches` belong to their frames.

        Raises:
            GroupingError: the groups cannot be formed.
        """
        grouping = Grouping(
            self._scan,
            lambda: self.diff3d,
            N,
            K=K,
            nsamples=nsamples,
            seed=seed,
            sequential_sampling=sequential_sampling,
            gridsize=gridsize,
            enable_oversampling=enable_oversampling,
            neighbor_pool_size=neighbor_pool_size,
        )
        diffraction = original_layouts.channels_last(grouping.gather_frames())
        patches = grouping.cut_patches()
        return {
            "diffraction": diffraction,
            "Y": None if patches is None else original_layouts.channels_last(patches),
            "coords_offsets": grouping.offsets,
            "coords_relative": grouping.relative,
            "coords_start_offsets": grouping.start_offsets,
            "coords_start_relative": grouping.start_relative,
            "coords_nn": grouping.coords,
            "coords_start_nn": grouping.start_coords,
            "nn_indices": grouping.nn_indices,
            "objectGuess": self.objectGuess,
            "X_full": (diffraction * grouping.input_scale).astype(np.float32),
        }

    @property
    def _start(self) -> Float64[np.ndarray, "m 2"]:
        nominal = self._scan.nominal_positions_px
        return self._scan.positions_px if nominal is None else nominal


def _stack_yx(y: np.ndarray, x: np.ndarray) -> Float64[np.ndarray, "m 2"]:
    return np.stack([y, x], axis=1).astype(np.float64)
