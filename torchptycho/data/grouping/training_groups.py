"""Groups for training: draw seeds, find their neighbours, choose among these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from torchptycho.core.config import GroupConfig, as_config
from torchptycho.core.errors import ConfigError, GroupingError
from torchptycho.core.inputs import describe_type
from torchptycho.core.scan import Scan
from torchptycho.data.grouping.combinations import choose_neighbours, draw_oversampled
from torchptycho.data.grouping.groups import Groups, build_groups
from torchptycho.data.grouping.neighbours import find_neighbours, neighbor_count
from torchptycho.data.grouping.original_sampler import draw_original_groups
from torchptycho.data.grouping.scan_ids import count_scan_frames, validate_scan_id
from torchptycho.data.grouping.seeds import (
    draw_seeds,
    select_eligible_seeds,
    select_seeds_in_bounds,
    select_usable_frames,
    validate_seeds,
)
from torchptycho.io.inputs import as_scan

__all__ = ["group"]


def group(
    positions_px: Float64[np.ndarray, "m 2"] | Scan | str | Path,
    config: GroupConfig | dict[str, Any] | None = None,
    *,
    scan_id: Int64[np.ndarray, " m"] | None = None,
    candidates: Int64[np.ndarray, " n"] | None = None,
    seeds: Int64[np.ndarray, " s"] | None = None,
) -> Groups:
    """Draw seeds, find their K nearest frames in the same scan, choose C - 1 of these for each.

    The seed is channel 0 of its group. The constraints apply to the K nearest: frames that are too near, too far, or
    too many in one quadrant are skipped. Seeds with too few remaining neighbours are left out, so the number of groups
    depends on positions and configuration, not on `group_seed`.

    Arguments:
        positions_px: [M, 2] (y, x) in object pixels; or a scan or its file, whose `scan_id` is used too.
        config: see `GroupConfig`.
        scan_id: [M], groups do not mix scans; None for one scan.
        candidates: the only frames that may be used, as seeds or members; None for all.
        seeds: one group for each of these frames, in this order; `n_groups`, `sequential`, `oversample`, `bounds` and
            `sampler` are then ignored.

    Raises:
        GroupingError: the groups cannot be formed; the message has the numbers and the remedy.
        ConfigError: no positions.
    """
    if isinstance(positions_px, Scan | str | Path):
        scan = as_scan(positions_px)
        positions_px, scan_id = scan.positions_px, scan.scan_id if scan_id is None else scan_id
    if not isinstance(positions_px, np.ndarray) or positions_px.ndim != 2 or positions_px.shape[1] != 2:
        raise ConfigError(
            f"positions_px: expected (M, 2) numbers, a scan or its file; found {describe_type(positions_px)}."
        )
    config = as_config(GroupConfig, config)
    scan_id = validate_scan_id(positions_px, scan_id)
    size = config.gridsize**2
    _check_options(config, size, explicit=seeds is not None)
    pool = select_usable_frames(len(positions_px), config, candidates)
    _, scan_sizes = np.unique(scan_id[pool], return_counts=True)
    if scan_sizes.max() < size:
        raise GroupingError(
            f"gridsize {config.gridsize} needs {size} frames of one scan; found at most {scan_sizes.max()} "
            f"({len(pool)} usable frames in {len(scan_sizes)} scan(s)). Use a smaller gridsize or more frames."
        )
    explicit = seeds is not None
    if config.sampler == "oracle" and not explicit:
        if len(scan_sizes) > 1:
            raise GroupingError(
                f'sampler "oracle": expected one scan; found {len(scan_sizes)}, which it would mix. '
                'Take sampler "fast", or one scan at a time.'
            )
        return build_groups(positions_px, pool[draw_original_groups(positions_px[pool], config)], pool)
    seeds = (
        select_seeds_in_bounds(positions_px, scan_id, pool, config) if seeds is None else validate_seeds(seeds, pool)
    )
    rng = np.random.default_rng(config.group_seed)
    if size == 1:
        seeds = seeds if explicit else draw_seeds(seeds, len(pool), config, rng)
        return build_groups(positions_px, seeds[:, None], pool)

    constrained = config.min_distance_px > 0 or config.max_distance_px is not None or config.quadrants
    if constrained:
        near = find_neighbours(positions_px, scan_id, pool, seeds, config)
        usable = near.count_usable()
    else:
        # Only the size of the scan matters here; neighbours are searched later, for the drawn seeds only.
        usable = np.minimum(count_scan_frames(scan_id, pool, seeds) - 1, neighbor_count(config))
    rows = select_eligible_seeds(usable, config, size)
    surplus = not explicit and config.n_groups is not None and config.n_groups > len(rows)
    if not (explicit or (surplus and config.oversample)):
        rows = draw_seeds(rows, len(pool), config, rng)
    seeds = seeds[rows]
    near = near.select_rows(rows) if constrained else find_neighbours(positions_px, scan_id, pool, seeds, config)
    if surplus:
        assert config.n_groups is not None
        of_seed, columns = draw_oversampled(near, config.n_groups, size - 1, config.sequential, rng)
    else:
        of_seed, columns = np.arange(len(seeds)), choose_neighbours(near, size - 1, rng)
    members = np.empty((len(of_seed), size), np.int64)
    members[:, 0] = seeds[of_seed]
    members[:, 1:] = near.index[of_seed[:, None], columns]
    return build_groups(positions_px, members, pool)


def _check_options(config: GroupConfig, size: int, *, explicit: bool) -> None:
    if size == 1 and config.oversample and not explicit:
        raise GroupingError(
            "oversample with gridsize 1: a frame alone has no other combinations. "
            "Use gridsize 2 or more, or leave oversample out."
        )
    if size > 1 and neighbor_count(config) < size:
        raise GroupingError(
            f"neighbor_count {neighbor_count(config)} is less than the {size} frames of a group "
            f"(gridsize {config.gridsize}). Set neighbor_count to {size} or more."
        )
