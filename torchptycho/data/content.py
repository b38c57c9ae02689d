"""Whether scans that were moved or copied are those of a store, judged by what they hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from torchptycho.core.scan import Scan
from torchptycho.data.store import Store
from torchptycho.io.frames.npz_frames import count_frames_in

__all__ = ["holds_same_scans"]

_CHUNK_BYTES = 16 << 20
# Parts that name files whose content other parts stand for: the probe, the mask and the frames.
_FILE_PARTS = frozenset(f"prepare.{name}" for name in ("probe", "mask", "dark", "flat", "diffraction"))
_SCAN_PART = re.compile(r"^((?:held-out )?scan \d+) \(.*\) (\w+)$", re.DOTALL)


def holds_same_scans(store: Store, scans: Sequence[Scan], now: Mapping[str, str]) -> bool:
    """Return whether the scans of a store are these, whatever their files are called and when they were written.

    Frames are compared one by one where the sizes and times of their files differ.

    Arguments:
        scans: in the order of the store.
        now: what a store of them would depend on, in parts.
    """
    was, wanted = _without_names(store.fingerprint), _without_names(now)
    if was.keys() != wanted.keys():
        return False
    differs = {key for key in was if was[key] != wanted[key]}
    others = {key for key in differs if not key.endswith(" frames")}
    if any(key not in _FILE_PARTS or "null" in (was[key], wanted[key]) for key in others):
        return False
    return all(
        _holds_same_frames(store, index, scan)
        for index, scan in enumerate(scans)
        if differs & {f"scan {index} frames", f"held-out scan {index} frames"}
    )


def _without_names(parts: Mapping[str, str]) -> dict[str, str]:
    return {_SCAN_PART.sub(r"\1 \2", key): value for key, value in parts.items()}


def _holds_same_frames(store: Store, index: int, scan: Scan) -> bool:
    entry = store.scans[index]
    if (entry.n_frames, store.n_px) != (scan.n_frames, scan.n_px):
        return False
    start = entry.first_frame
    for chunk in scan.frames.chunks(count_frames_in(_CHUNK_BYTES, scan.frames)):
        kept = store.frames[torch.arange(start, start + len(chunk))].numpy()
        # What a mask covers may be NaN.
        if not np.array_equal(kept, chunk, equal_nan=chunk.dtype.kind == "f"):
            return False
        start += len(chunk)
    return True
