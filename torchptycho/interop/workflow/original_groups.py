"""Groups of frames by the original's draws, in its layouts."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Complex64, Float, Float64, Num, Shaped

from torchptycho.core.config import GroupConfig
from torchptycho.core.errors import ConfigError, ScanError
from torchptycho.core.scan import Scan
from torchptycho.data.grouping import group
from torchptycho.interop import original_layouts
from torchptycho.physics.patches import extract, locate_corner
from torchptycho.physics.scaling import measure_scaling, sum_frames

__all__ = ["Grouping"]

_PATCHES_PER_BATCH = 256


class Grouping:
    """Groups of frames, their indices and coordinates; images are gathered on request.

    Arguments:
        scan: whose frames are grouped.
        read_amplitudes: returns the amplitudes [M, N, N] of all frames.
        N, K, nsamples, seed, sequential_sampling, gridsize, enable_oversampling, neighbor_pool_size: as in
            `RawData.generate_grouped_data`.
        n_subsample, subsample_seed: draw this many frames first, by this seed; None uses all frames.

    Raises:
        ScanError: N is not the edge of the frames.
        ConfigError: a number is below 1.
        GroupingError: the groups cannot be formed.
    """

    def __init__(
        self,
        scan: Scan,
        read_amplitudes: Callable[[], np.ndarray],
        N: int,
        *,
        K: int = 4,
        nsamples: int = 1,
        seed: int | None = None,
        sequential_sampling: bool = False,
        gridsize: int = 1,
        enable_oversampling: bool = False,
        neighbor_pool_size: int | None = None,
        n_subsample: int | None = None,
        subsample_seed: int = 0,
    ) -> None:
        if scan.n_px != N:
            raise ScanError(
                scan.source,
                "diff3d",
                expected=f"frames of N = {N} px, as asked for",
                found=f"N = {scan.n_px}",
                remedy="Give the edge of the frames, or crop them on reading: ReadConfig(crop_px=...).",
            )
        if nsamples < 1 or K < 1 or gridsize < 1:
            raise ConfigError(f"nsamples, K, gridsize: expected at least 1; found {nsamples}, {K}, {gridsize}.")
        exceeds_frames = gridsize > 1 and nsamples > (n_subsample or scan.n_frames)
        config = GroupConfig(
            gridsize=gridsize,
            n_groups=nsamples,
            sequential=sequential_sampling,
            oversample=enable_oversampling,
            neighbor_count=neighbor_pool_size if exceeds_frames and neighbor_pool_size is not None else K,
            group_seed=0 if seed is None else seed,
            sampler="oracle",
            n_subsample=n_subsample,
            subsample_seed=subsample_seed,
        )
        self._read_amplitudes, self._scan = read_amplitudes, scan
        self._members = group(scan.positions_px, config).members
        self._has_int32_indices = gridsize > 1 and not exceeds_frames
        self.coords, self.offsets, self.relative = self._make_coords(scan.positions_px)
        self.start_coords, self.start_offsets, self.start_relative = self._make_coords(
            scan.positions_px if scan.nominal_positions_px is None else scan.nominal_positions_px
        )

    def __len__(self) -> int:
        return len(self._members)

    @property
    def members_per_group(self) -> int:
        """Frames C of each group."""
        return int(self._members.shape[1])

    @property
    def nn_indices(self) -> Shaped[np.ndarray, "b c"]:
        """Frames of each group, in the original's dtype: int32 for plain groups of several frames, else int64."""
        return self._members.astype(np.int32) if self._has_int32_indices else self._members

    @functools.cached_property
    def input_scale(self) -> float:
        """Factor from amplitudes to X, measured over all groups; a frame counts once for each group that holds it."""
        sums = sum_frames(self._read_amplitudes(), "amplitude")
        return measure_scaling(float(sums[self._members].mean()), self._scan.n_px, "amplitude").input_scale

    def gather_frames(self) -> Num[np.ndarray, "b c n n"]:
        """Gather the amplitudes of each group."""
        return np.asarray(self._read_amplitudes()[self._members])

    def cut_patches(self) -> Complex64[np.ndarray, "b c n n"] | None:
        """Cut patches of the object as the original does; without an object, gather the scan's own patches, if any."""
        n_px, truth = self._scan.n_px, self._scan.truth
        if truth is None:
            known = self._scan.truth_patches
            return None if known is None else np.asarray(known[self._members])
        # With + relative and not - relative, as in the original.
        coords = original_layouts.positions_from_coords(self.offsets + self.relative)
        batches = torch.split(torch.from_numpy(coords).reshape(-1, 2), _PATCHES_PER_BATCH)
        object_ = torch.from_numpy(truth)
        parts = [extract(object_, locate_corner(batch, n_px), n_px) for batch in batches]
        return np.asarray(torch.cat(parts).reshape(*self._members.shape, n_px, n_px).numpy())

    def _make_coords(
        self, positions_px: Float64[np.ndarray, "m 2"]
    ) -> tuple[Float[np.ndarray, "b 1 2 c"], Float[np.ndarray, "b 1 2 1"], Float[np.ndarray, "b 1 2 c"]]:
        grouped_px = positions_px[self._members]
        center = grouped_px.mean(axis=1)
        return (
            original_layouts.coords_from_positions(grouped_px),
            original_layouts.offsets_from_centers(center),
            original_layouts.relative_from_offsets(grouped_px - center[:, None]),
        )
