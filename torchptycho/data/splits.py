"""Which frames and groups are trained on, and which are held out to judge by."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import torch

from torchptycho.config import RunConfig
from torchptycho.errors import GroupingError
from torchptycho.grouping import Groups, group

__all__ = ["no_groups", "split_frames", "table_of", "training_groups", "validation_groups"]

_log = logging.getLogger(__name__)


def split_frames(
    frame_scan: np.ndarray, fraction: float, seed: int, gridsize: int, n_trained: int
) -> tuple[np.ndarray, np.ndarray]:
    """Frames for training and for validation, drawn per scan; a scan keeps at least one group for training.

    Arguments:
        n_trained: scans from this one on are held out as a whole.
    """
    rng = np.random.default_rng(seed)
    held_out = []
    for index in range(int(frame_scan[-1]) + 1):
        frames = np.flatnonzero(frame_scan == index)
        count = min(round(fraction * len(frames)), max(0, len(frames) - gridsize**2))
        held_out.append(frames if index >= n_trained else rng.choice(frames, size=count, replace=False))
    val = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(frame_scan)), val), val


def training_groups(positions: np.ndarray, separate: np.ndarray, training: np.ndarray, config: RunConfig) -> Groups:
    """Groups of frames that are not held out; an error tells when these are what is missing."""
    try:
        return group(positions, config.group, scan_id=separate, candidates=training)
    except GroupingError as error:
        n_held_out = len(positions) - len(training)
        try:
            group(positions, config.group, scan_id=separate)
        except GroupingError:
            raise error from None
        raise GroupingError(
            f"{error} {n_held_out} of {len(positions)} frames are held out for validation "
            f"(val_fraction {config.prepare.val_fraction}); with val_fraction 0 these groups can be formed."
        ) from None


def validation_groups(
    positions: np.ndarray, separate: np.ndarray, held_out: np.ndarray, config: RunConfig
) -> Groups | None:
    """One group for each held-out frame, or None.

    A held-out frame is judged among its neighbours, whether these were held out or not. The options that choose seeds
    do not apply. The constraints on neighbours do, so that no group reaches farther than those of training: frames
    with too few neighbours are left out, and when that leaves none there is no validation.
    """
    if not len(held_out):
        return None
    for_seeds = dataclasses.replace(
        config.group, n_groups=None, n_subsample=None, sequential=False, oversample=False, bounds=(0.0, 1.0, 0.0, 1.0)
    )
    try:
        return group(positions, for_seeds, scan_id=separate, seeds=held_out)
    except GroupingError as error:
        _log.warning("no validation, although %d frames are held out: %s", len(held_out), error)
        return None


def no_groups(like: Groups) -> Groups:
    return dataclasses.replace(
        like, members=like.members[:0], center_px=like.center_px[:0], offset_px=like.offset_px[:0],
        frames_used=like.frames_used[:0],
    )  # fmt: skip


def table_of(groups: Groups) -> dict[str, torch.Tensor]:
    return {
        "members": torch.from_numpy(groups.members),
        "center_px": torch.from_numpy(groups.center_px),
        "offset_px": torch.from_numpy(groups.offset_px),
        "frames_used": torch.from_numpy(groups.frames_used),
    }
