"""Frames in HDF5 named by a dataset, a group of datasets, a pattern, or NeXus' default: joined as they are read."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

from torchptycho.core.config.read import ReadConfig, parse_frame_slice
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Frames
from torchptycho.core.text import format_first
from torchptycho.io.frames.hdf5_frames import Hdf5Frames, open_hdf5_stack
from torchptycho.io.frames.views import JoinedFrames
from torchptycho.io.storage.hdf5 import find_dataset, is_group, list_names, read_attribute
from torchptycho.io.storage.hdf5_datasets import load_number

__all__ = ["open_hdf5_series"]

_SERIES = re.compile(r"^data_\d+$")
_MAX_DEPTH, _MAX_LISTED = 5, 10
_ANNOUNCED = "instrument/detector/detectorSpecific"


def open_hdf5_series(file: Any, path: Path, key: str, axes: str, config: ReadConfig) -> Frames:
    """Open the frames that a name stands for, without reading them.

    Arguments:
        key: a dataset; a pattern, as `entry/data/data_*`; or a group, of which NeXus' `default` and `signal` are
            followed, and the datasets data_000001 and so on, as detectors write them, are joined.

    Raises:
        ScanError: no frames of that name, parts that do not fit together, or fewer frames than the detector announced.
    """
    names = _find_datasets(file, path, key)
    parts: list[Hdf5Frames] = []
    cut = parse_frame_slice(config.frames)
    for name in names:
        so_far = None if len(names) == 1 else sum(part.shape[0] for part in parts)
        try:
            parts.append(open_hdf5_stack(find_dataset(file, path, name), path, name, axes, config, so_far))
        except ScanError:
            # Files that were never written do not matter beyond the frames that are asked for.
            if so_far is None or cut is None or cut.stop is None or not 0 < cut.stop <= so_far:
                raise
            break
    if len({(part.shape[1:], part.dtype) for part in parts}) != 1:
        raise ScanError(
            path,
            key,
            expected="frames of one size and dtype",
            found=format_first((f"{part.key} {part.dtype} {part.shape}" for part in parts), _MAX_LISTED),
            remedy="Name a pattern that only the frames match.",
        )
    stack: Frames = parts[0] if len(parts) == 1 else JoinedFrames(tuple(parts))
    if cut is None:
        _check_announced(file, path, names[0], stack.shape[0])
    return stack


def _find_datasets(file: Any, path: Path, key: str) -> list[str]:
    if any(sign in key for sign in "*?"):
        folder, _, pattern = key.rpartition("/")
        inside = list_names(file, path, folder or "/")
        names = sorted(fnmatch.filter(inside, pattern), key=_get_order)
        if not names:
            raise _make_missing_error(path, key, inside)
        return [f"{folder}/{name}".strip("/") for name in names]
    place = key
    for _ in range(_MAX_DEPTH):
        if not is_group(file, path, place or "/"):
            break
        inside = list_names(file, path, place or "/")
        series = sorted((name for name in inside if _SERIES.match(name)), key=_get_order)
        if series:
            return [f"{place}/{name}".strip("/") for name in series]
        group = file[place or "/"]
        following = read_attribute(group, path, "default") or read_attribute(group, path, "signal")
        following = following if following in inside else "data" if "data" in inside else None
        if following is None:
            raise _make_missing_error(path, key, inside)
        place = f"{place}/{following}".strip("/")
    if find_dataset(file, path, place) is None:
        raise _make_missing_error(path, place, list_names(file, path, place.rpartition("/")[0] or "/"))
    return [place]


def _get_order(name: str) -> tuple[int, str]:
    """Return what sorts names with numbers of one width or another."""
    number = re.search(r"(\d+)$", name)
    return (int(number[1]) if number else -1, name)


def _make_missing_error(path: Path, key: str, inside: list[str]) -> ScanError:
    return ScanError(
        path,
        key or "/",
        expected="a dataset of frames, a group of them, or a pattern",
        found=f"{format_first(inside, _MAX_LISTED)} there" if inside else "none of that name",
        remedy="List what the file holds with h5dump -n or h5ls -r.",
    )


def _check_announced(file: Any, path: Path, name: str, n_frames: int) -> None:
    """Check that there are as many frames as the detector was set to record."""
    parts = name.split("/")
    for depth in range(len(parts), -1, -1):
        folder = "/".join([*parts[:depth], _ANNOUNCED])
        node = find_dataset(file, path, f"{folder}/nimages")
        if node is None:
            continue
        triggers = find_dataset(file, path, f"{folder}/ntrigger")
        n_images = load_number(node, path, "nimages")
        announced = round(n_images * (1 if triggers is None else load_number(triggers, path, "ntrigger")))
        if n_frames < announced:
            raise ScanError(
                path,
                name,
                expected=f"{announced} frames, nimages x ntrigger of the detector",
                found=f"{n_frames}",
                remedy="Name the group of all data files, put the missing ones there, or, where the scan was stopped, "
                f"say so with --frames :{n_frames}: frame i then has position i.",
            )
        return
