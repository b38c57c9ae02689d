"""Which frames and groups are trained on, and which are held out to judge by."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Complex64, Float64
from scipy.spatial import cKDTree

from torchptycho.core.config import PrepareConfig, RunConfig
from torchptycho.core.errors import ConfigError, GroupingError
from torchptycho.core.scan import Scan
from torchptycho.data.grouping import Groups, group

__all__ = [
    "FrameSplit",
    "SplitGroups",
    "choose_held_out_scans",
    "groups_to_tensors",
    "make_empty_groups",
    "probe_width_px",
    "split_and_group",
    "split_frames",
]

_log = logging.getLogger(__name__)

# Fraction of the probe's power within its width.
_WIDTH_POWER_FRACTION = 0.95


@dataclasses.dataclass(frozen=True, eq=False)
class FrameSplit:
    """Sorted frame indices i64; frames along the border of a region are in neither part."""

    training: np.ndarray
    held_out: np.ndarray


def choose_held_out_scans(n_trained: int, n_held_out: int, config: PrepareConfig) -> list[bool]:
    """Choose the scans that are held out: the given ones, or with `val_by` "scans" randomly drawn ones.

    Arguments:
        n_trained, n_held_out: scans that were given to train on, and after them those to validate on.

    Raises:
        ConfigError: there is only one scan to draw from.
    """
    flags = [False] * n_trained + [True] * n_held_out
    if config.val_by != "scans" or n_held_out or not config.val_fraction:
        return flags
    if n_trained < 2:
        raise ConfigError(f"val_by scans: expected at least 2 scans to hold one of them out; found {n_trained}.")
    count = min(max(1, round(config.val_fraction * n_trained)), n_trained - 1)
    for index in np.random.default_rng(config.split_seed).choice(n_trained, size=count, replace=False):
        flags[index] = True
    return flags


def split_frames(scans: Sequence[Scan], held_out: Sequence[bool], config: RunConfig) -> FrameSplit:
    """Split frames into those for training and those for validation.

    What is held out of a scan follows from the seed and from the scan alone, so that it stays held out when other scans
    come or go. A scan keeps at least one group for training.

    Arguments:
        held_out: scans of which every frame is.

    Raises:
        GroupingError: a region leaves too little of a scan.
    """
    training, validating, start = [], [], 0
    for scan, whole in zip(scans, held_out, strict=True):
        every = np.arange(scan.n_frames)
        if whole:
            kept, val = every[:0], every
        elif config.prepare.val_by == "region":
            kept, val = _split_by_region(scan, config)
        else:
            fraction = config.prepare.val_fraction if config.prepare.val_by == "frames" else 0.0
            count = min(round(fraction * scan.n_frames), max(0, scan.n_frames - config.group.gridsize**2))
            rng = np.random.default_rng(config.prepare.split_seed)
            val = np.sort(rng.choice(scan.n_frames, size=count, replace=False))
            kept = np.setdiff1d(every, val)
        training.append(start + kept)
        validating.append(start + val)
        start += scan.n_frames
    return FrameSplit(np.concatenate(training), np.concatenate(validating))


def _split_by_region(scan: Scan, config: RunConfig) -> tuple[np.ndarray, np.ndarray]:
    """Hold out one part of the scan for validation, and keep all that is far enough from it for training."""
    prepare, positions_px = config.prepare, scan.positions_px
    if prepare.val_region is not None:
        start, stop = np.array(prepare.val_region[0::2]), np.array(prepare.val_region[1::2])
        from_low = positions_px - positions_px.min(axis=0)
        extent = from_low.max(axis=0)
        inside = ((from_low >= start * extent) & (from_low <= stop * extent)).all(axis=1)
        if not inside.any():
            raise GroupingError(
                f"{scan.source}: val_region {prepare.val_region} (y0, y1, x0, x1) contains no frame. Widen it."
            )
    else:
        # The region is bounded by a straight line, the shortest border, so that the fewest frames are lost in the gap.
        angle = np.random.default_rng(prepare.split_seed).uniform(0, 2 * math.pi)
        along = positions_px @ np.array([math.sin(angle), math.cos(angle)])
        count = round(prepare.val_fraction * scan.n_frames)
        inside = np.zeros(scan.n_frames, bool)
        inside[np.argsort(along, kind="stable")[scan.n_frames - count :]] = True
    held_out, others = np.flatnonzero(inside), np.flatnonzero(~inside)
    if not len(held_out):
        return others, held_out
    gap_px = probe_width_px(scan.probe) if prepare.val_gap_px is None else prepare.val_gap_px
    if len(others):
        apart_px, _ = cKDTree(positions_px[held_out]).query(positions_px[others])
        training = others[apart_px >= gap_px]
    else:
        training = others
    size = config.group.gridsize**2
    if len(training) < size:
        raise GroupingError(
            f"{scan.source}: {len(held_out)} frames are held out as a region and {len(others) - len(training)} lie "
            f"within {gap_px:.3g} px of it; of the {size} that a group for training needs {len(training)} are left. "
            "Hold out less (val_fraction, val_region), or lower val_gap_px."
        )
    return training, held_out


def probe_width_px(probe: Complex64[np.ndarray, "p n n"]) -> float:
    """Measure the diameter in object pixels of the circle about the probe's centre of mass that holds 95 % of its
    power."""
    power: Float64[np.ndarray, "n n"] = np.square(np.abs(probe), dtype=np.float64).sum(axis=0)
    where = np.indices(power.shape).reshape(2, -1)
    weight = power.ravel() / power.sum()
    center = where @ weight
    radius = np.hypot(*(where - center[:, None]))
    order = np.argsort(radius)
    within = int(np.searchsorted(np.cumsum(weight[order]), _WIDTH_POWER_FRACTION))
    return 2 * float(radius[order][min(within, len(order) - 1)])


@dataclasses.dataclass(frozen=True, eq=False)
class SplitGroups:
    """Frames and groups of several scans, as in a store.

    Arguments:
        positions_px: f64 [M, 2]. frame_scan: i64 [M] scan of each frame.
        separate: i64 [M] frames of one number may share a group: those of one scan within one file.
        split: training and held-out frames. train, val: the groups of both parts; val is None if nothing is held out.
    """

    positions_px: np.ndarray
    frame_scan: np.ndarray
    unique_scan_id: np.ndarray
    split: FrameSplit
    train: Groups
    val: Groups | None


def split_and_group(scans: Sequence[Scan], held_out: Sequence[bool], config: RunConfig) -> SplitGroups:
    """Split the frames of these scans and form their groups.

    Raises:
        GroupingError: the configured groups cannot be formed.
    """
    positions = np.concatenate([scan.positions_px for scan in scans])
    frame_scan = np.concatenate([np.full(scan.n_frames, i, np.int64) for i, scan in enumerate(scans)])
    # Groups mix neither files nor the scans within a file.
    kind = np.concatenate([scan.scan_id for scan in scans])
    _, unique_scan_id = np.unique(np.stack([frame_scan, kind], 1), axis=0, return_inverse=True)
    unique_scan_id = unique_scan_id.reshape(-1).astype(np.int64)
    split = split_frames(scans, held_out, config)
    return SplitGroups(
        positions_px=positions,
        frame_scan=frame_scan,
        unique_scan_id=unique_scan_id,
        split=split,
        train=form_training_groups(positions, unique_scan_id, split, config),
        val=form_validation_groups(positions, unique_scan_id, split, config),
    )


def form_training_groups(
    positions: np.ndarray, unique_scan_id: np.ndarray, split: FrameSplit, config: RunConfig
) -> Groups:
    """Form groups of frames that are not held out; an error reports if the held-out frames are missing."""
    try:
        return group(positions, config.group, scan_id=unique_scan_id, candidates=split.training)
    except GroupingError as error:
        n_held_out = len(positions) - len(split.training)
        try:
            group(positions, config.group, scan_id=unique_scan_id)
        except GroupingError:
            raise error from None
        raise GroupingError(
            f"{error} {n_held_out} of {len(positions)} frames are held out for validation "
            f"(val_fraction {config.prepare.val_fraction}); with val_fraction 0 these groups can be formed."
        ) from None


def form_validation_groups(
    positions: np.ndarray, unique_scan_id: np.ndarray, split: FrameSplit, config: RunConfig
) -> Groups | None:
    """Form one group for each held-out frame, or return None.

    A held-out frame is judged among its neighbours, whether these were held out or not; a region, among its own frames.
    The options that choose seeds do not apply. The constraints on neighbours do, so that no group reaches farther than
    those of training: frames with too few neighbours are left out, and when that leaves none there is no validation.
    """
    if not len(split.held_out):
        return None
    for_seeds = dataclasses.replace(
        config.group, n_groups=None, n_subsample=None, sequential=False, oversample=False, bounds=(0.0, 1.0, 0.0, 1.0)
    )
    among = split.held_out if config.prepare.val_by == "region" else None
    try:
        return group(positions, for_seeds, scan_id=unique_scan_id, candidates=among, seeds=split.held_out)
    except GroupingError as error:
        _log.warning("no validation groups can be formed from the %d held-out frames: %s", len(split.held_out), error)
        return None


def make_empty_groups(like: Groups) -> Groups:
    return dataclasses.replace(
        like,
        members=like.members[:0],
        center_px=like.center_px[:0],
        offset_px=like.offset_px[:0],
        frames_used=like.frames_used[:0],
    )


def groups_to_tensors(groups: Groups) -> dict[str, torch.Tensor]:
    return {
        "members": torch.from_numpy(groups.members),
        "center_px": torch.from_numpy(groups.center_px),
        "offset_px": torch.from_numpy(groups.offset_px),
        "frames_used": torch.from_numpy(groups.frames_used),
    }
