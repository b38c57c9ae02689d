"""`PtychoDataContainer`: the groups of a scan as torch tensors under the original's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex64, Float, Float32, Float64, Int64, Num, Shaped
from torch import Tensor

from torchptycho.core.errors import ScanError
from torchptycho.core.scan import DEFAULT_PHOTONS_PER_FRAME, Scan
from torchptycho.interop import original_layouts
from torchptycho.interop.workflow.original_groups import Grouping
from torchptycho.interop.workflow.raw_data import RawData
from torchptycho.io.frames.selection import pick_frames
from torchptycho.physics.scaling import Scaling

__all__ = ["PtychoDataContainer"]

ArraySource = np.ndarray | Callable[[], np.ndarray]


class PtychoDataContainer:
    """B groups of C frames of N x N pixels, and their probe.

    The constructor takes arrays in the original's layouts, images (B, N, N, C). The properties are torch tensors:
    images (B, C, N, N), coordinates (B, 1, 2, C) with (x, y) on axis 2, as in the original. A tensor is made on first
    access and kept.

    Arguments:
        X: amplitudes, as `RawData.generate_grouped_data` scales them.
        Y_I, Y_phi: modulus and phase of the object's patches.
        norm_Y_I: factor from X to the root of photons.
        YY_full: object (H, W), or None.
        coords_nominal, coords_true: (B, 1, 2, C) relative coordinates, mean - position.
        nn_indices: (B, C) frames of each group.
        global_offsets: (B, 1, 2, 1) mean position of each group.
        local_offsets: (B, 1, 2, C) relative coordinates.
        probeGuess: (N, N) or (P, N, N).

    Raises:
        ScanError: the arrays differ in the number of groups or frames.
    """

    def __init__(
        self,
        X: Num[np.ndarray, "b n n c"],
        Y_I: Num[np.ndarray, "b n n c"],
        Y_phi: Num[np.ndarray, "b n n c"],
        norm_Y_I: float | np.floating[Any] | np.ndarray,
        YY_full: Num[np.ndarray, "h w"] | None,
        coords_nominal: Float[np.ndarray, "b 1 2 c"],
        coords_true: Float[np.ndarray, "b 1 2 c"],
        nn_indices: Shaped[np.ndarray, "b c"],
        global_offsets: Float[np.ndarray, "b 1 2 1"],
        local_offsets: Float[np.ndarray, "b 1 2 c"],
        probeGuess: Num[np.ndarray, "*p n n"],
    ) -> None:
        b, n, _, c = X.shape
        shapes = {
            "X": (X, (b, n, n, c)), "Y_I": (Y_I, (b, n, n, c)), "Y_phi": (Y_phi, (b, n, n, c)),
            "coords_nominal": (coords_nominal, (b, 1, 2, c)), "coords_true": (coords_true, (b, 1, 2, c)),
            "nn_indices": (nn_indices, (b, c)), "global_offsets": (global_offsets, (b, 1, 2, 1)),
            "local_offsets": (local_offsets, (b, 1, 2, c)),
        }  # fmt: skip
        for name, (array, expected) in shapes.items():
            if array.shape != expected:
                raise ScanError(
                    "PtychoDataContainer",
                    name,
                    expected=f"shape {expected}, to match X of {X.shape}",
                    found=f"{array.shape}",
                    remedy="Select the same groups and frames from all arrays.",
                )
        sources: dict[str, ArraySource] = {
            "X": lambda: original_layouts.channels_first(X),
            "Y_I": lambda: original_layouts.channels_first(Y_I),
            "Y_phi": lambda: original_layouts.channels_first(Y_phi),
            "coords_nominal": coords_nominal,
            "coords_true": coords_true,
            "nn_indices": nn_indices,
            "global_offsets": global_offsets,
            "local_offsets": local_offsets,
            "probe": probeGuess,
            "norm_Y_I": np.asarray(norm_Y_I),
        }
        self._initialize(sources, YY_full, (b, c, n, n), None)

    @classmethod
    def from_raw_data(cls, raw: RawData, *, nphotons: float | None = None, **options: Any) -> PtychoDataContainer:
        """Group the frames of a scan; images are gathered on first access.

        Arguments:
            nphotons: photons of a mean frame; None measures them for counts, and for amplitudes takes them from the
                scan's metadata, else 1e9.
            options: those of `RawData.generate_grouped_data`, where N is the scan's by default; `n_subsample` and
                `subsample_seed`: number of frames that are drawn before the groups, and the seed of that draw.
        """
        scan = raw.scan
        grouping = Grouping(scan, lambda: raw.diff3d, options.pop("N", scan.n_px), **options)

        def gather_scaled() -> np.ndarray:
            return np.asarray(np.multiply(grouping.gather_frames(), grouping.input_scale, dtype=np.float32))

        def make_part(convert: Callable[[np.ndarray], np.ndarray], default: float) -> Callable[[], np.ndarray]:
            def cut_part() -> np.ndarray:
                patches = grouping.cut_patches()
                return np.full(shape, default, np.float32) if patches is None else convert(patches)

            return cut_part

        def compute_norm() -> np.ndarray:
            scale = grouping.input_scale
            scan_photons = (scan.n_px / 2 / scale) ** 2 if scan.domain == "counts" else scan.photons_per_frame
            photons = nphotons or scan_photons or DEFAULT_PHOTONS_PER_FRAME
            scaling = Scaling(domain="amplitude", input_scale=scale, photons_per_frame=photons, n_px=scan.n_px)
            return np.asarray(scaling.intensity_scale)

        shape = (len(grouping), grouping.members_per_group, scan.n_px, scan.n_px)
        container = cls.__new__(cls)
        container._initialize(
            {
                "X": gather_scaled,
                "Y_I": make_part(np.abs, 1.0),
                "Y_phi": make_part(np.angle, 0.0),
                "norm_Y_I": compute_norm,
                "coords_nominal": grouping.relative,
                "coords_true": grouping.relative,
                "probe": raw.probeGuess,
                "nn_indices": grouping.nn_indices,
                "global_offsets": grouping.offsets,
                "local_offsets": grouping.relative,
            },
            scan.truth,
            shape,
            scan,
        )
        return container

    @classmethod
    def from_raw_data_without_pc(
        cls,
        xcoords: Num[np.ndarray, " m"],
        ycoords: Num[np.ndarray, " m"],
        diff3d: Shaped[np.ndarray, "frames n n2"],
        probeGuess: Num[np.ndarray, "*p a b"],
        scan_index: Num[np.ndarray, " ms"] | None,
        objectGuess: Num[np.ndarray, "h w"] | None = None,
        **options: Any,
    ) -> PtychoDataContainer:
        """Group the frames of arrays; see `RawData.from_coords_without_pc` and `from_raw_data`."""
        raw = RawData.from_coords_without_pc(xcoords, ycoords, diff3d, probeGuess, scan_index, objectGuess)
        return cls.from_raw_data(raw, **options)

    def _initialize(
        self,
        sources: dict[str, ArraySource],
        truth: np.ndarray | None,
        shape: tuple[int, int, int, int],
        scan: Scan | None,
    ) -> None:
        self._sources, self._truth, self._shape, self._scan = sources, truth, shape, scan
        self._tensors: dict[str, Tensor] = {}

    def _materialize(self, name: str, dtype: torch.dtype) -> Tensor:
        if name not in self._tensors:
            source = self._sources[name]
            array = source() if callable(source) else source
            self._tensors[name] = torch.as_tensor(np.ascontiguousarray(array)).to(dtype).reshape(array.shape)
        return self._tensors[name]

    @property
    def X(self) -> Float32[Tensor, "b c n n"]:
        """Amplitudes, scaled so that the mean of sum X^2 over frames is (N/2)^2."""
        return self._materialize("X", torch.float32)

    @property
    def Y_I(self) -> Float32[Tensor, "b c n n"]:
        """Modulus of the object's patches; 1 without an object."""
        return self._materialize("Y_I", torch.float32)

    @property
    def Y_phi(self) -> Float32[Tensor, "b c n n"]:
        """Phase of the object's patches in radians; 0 without an object."""
        return self._materialize("Y_phi", torch.float32)

    @property
    def Y(self) -> Complex64[Tensor, "b c n n"]:
        """The object's patches."""
        if "Y" not in self._tensors:
            self._tensors["Y"] = torch.polar(self.Y_I, self.Y_phi)
        return self._tensors["Y"]

    @property
    def coords_nominal(self) -> Float32[Tensor, "b 1 2 c"]:
        """Relative coordinates, mean - position."""
        return self._materialize("coords_nominal", torch.float32)

    @property
    def coords_true(self) -> Float32[Tensor, "b 1 2 c"]:
        """The same; there is one set of positions."""
        return self._materialize("coords_true", torch.float32)

    @property
    def coords(self) -> Float32[Tensor, "b 1 2 c"]:
        """`coords_nominal`."""
        return self.coords_nominal

    @property
    def nn_indices(self) -> Int64[Tensor, "b c"]:
        """Frames of each group."""
        return self._materialize("nn_indices", torch.int64)

    @property
    def global_offsets(self) -> Float64[Tensor, "b 1 2 1"]:
        """Mean position of each group in object pixels."""
        return self._materialize("global_offsets", torch.float64)

    @property
    def local_offsets(self) -> Float64[Tensor, "b 1 2 c"]:
        """Relative coordinates in double precision."""
        return self._materialize("local_offsets", torch.float64)

    @property
    def probe(self) -> Complex64[Tensor, "*p n n"]:
        """As given."""
        return self._materialize("probe", torch.complex64)

    @property
    def norm_Y_I(self) -> Float32[Tensor, ""]:
        """Factor from X to the root of photons."""
        return self._materialize("norm_Y_I", torch.float32)

    @property
    def YY_full(self) -> Num[np.ndarray, "h w"] | None:
        """The whole object, where it is known."""
        return self._truth

    @property
    def materialised(self) -> frozenset[str]:
        """Names of the tensors that exist."""
        return frozenset(self._tensors)

    def __len__(self) -> int:
        return self._shape[0]

    def __repr__(self) -> str:
        b, c, n, _ = self._shape
        return f"PtychoDataContainer({b} groups of {c} frames {n}x{n})"

    @property
    def frames_used(self) -> Int64[np.ndarray, " m"]:
        """Numbers of the frames in these groups, each once, in order."""
        return np.unique(self.nn_indices.numpy()).astype(np.int64)

    def as_scan(self) -> Scan:
        """Make a scan of the frames in these groups, each once, in the order of their numbers.

        Its frames are those of the scan that the container was made from, counts or amplitudes; for a container made
        from arrays they are amplitudes in the unit of X.

        Raises:
            ScanError: there are fewer than two frames, or all have the same position.
        """
        rows = self.frames_used
        if len(rows) < 2:
            raise ScanError(
                "PtychoDataContainer",
                "nn_indices",
                expected="at least 2 frames",
                found=f"{len(rows)}",
                remedy="Ask for more groups.",
            )
        return self._make_scan_from_groups() if self._scan is None else pick_frames(self._scan, rows)

    def _make_scan_from_groups(self) -> Scan:
        first = np.unique(self.nn_indices.numpy().reshape(-1), return_index=True)[1]
        positions_px = original_layouts.positions_from_coords((self.global_offsets - self.local_offsets).numpy())
        y, x = positions_px.reshape(-1, 2)[first].T
        n = self._shape[-1]
        photons = float(self.norm_Y_I) ** 2 * (n / 2) ** 2
        metadata = {"nphotons": photons, "domain": "amplitude"}
        frames = self.X.reshape(-1, n, n).numpy()[first]
        return RawData(x, y, x, y, frames, self.probe.numpy(), None, self._truth, metadata=metadata).scan
