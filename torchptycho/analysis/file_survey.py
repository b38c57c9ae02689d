"""Files that are no scan yet: what is there all the same, what is missing, and which command needs it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

from torchptycho.analysis.inspection import inspect_scan
from torchptycho.core.config import ReadConfig
from torchptycho.core.config.read import OptionalPart
from torchptycho.core.errors import ScanError
from torchptycho.io import read_scan
from torchptycho.io.formats.mapped import read_mapped
from torchptycho.io.formats.registry import recognise
from torchptycho.io.inventory import StoredArray, list_arrays

__all__ = ["FileSurvey", "survey_file"]

_PLACEHOLDER_STEP_PX, _PLACEHOLDER_PIXEL_M = 2.0, 1e-8
# What a summary says about positions, which would be about the placeholders.
_OF_POSITIONS = (
    "positions_unit", "position_min_px", "position_max_px", "field_px", "field_m", "step_px", "overlap",
    "n_duplicate_positions",
)  # fmt: skip
# What of it follows from a part that is missing.
_FOLLOWS_FROM = {
    "probe": ("probe_diameter_px", "n_modes", "probe_is_calibrated", "overlap"),
    "positions": _OF_POSITIONS,
    "object": ("has_truth",),
    "patches": ("has_truth_patches",),
    "metadata": ("metadata", "domain", "photons_mean", "photons_min", "photons_max"),
    "scan-index": ("n_scans",),
    "mask": ("n_masked_pixels",),
    "energy": ("energy_eV", "wavelength_m", "particle", "object_pixel_m", "field_m"),
    "distance": ("object_pixel_m", "field_m"),
    "detector-pixel": ("object_pixel_m", "field_m"),
    "object-pixel": ("object_pixel_m", "field_m", *_OF_POSITIONS),
}
_NEEDS = {
    "probe": "refine, resolution, prepare, train and convert need a probe: --probe FILE, or --guess-probe. reconstruct "
    "with a checkpoint has that of its network.",
    "positions": "Every command but inspect needs a position for each frame: correct them, add them, give them with "
    "--positions Y X, describe where they are in a mapping, or describe a raster with --raster-step-px or "
    "--raster-step-m.",
    "frames": "Every command but inspect needs all frames, or --bad-frames leave-out, which takes those that can be "
    "read.",
    "frames themselves": "Every command needs the frames.",
    "negative": "Every command but inspect needs values of at least 0: --clip-negative, or a mask.",
    "frame-size": "Every command but inspect needs square frames with an even edge: --crop-px N.",
    "propagation": "Every command but inspect needs the lengths of near-field data, or --propagation far.",
    "frames-axis": "Every command needs to know which axis counts the frames: --frames-axis 0, or 2 for (N, N, M).",
    "energy-index": "Every command needs one of the energies: --energy-index N.",
    "object-pixel": "Every command but inspect needs the object pixel, or what it follows from: --object-pixel-m, or "
    "--energy-eV, --distance-m and --detector-pixel-m.",
}
_MAX_FAULTS = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSurvey:
    """What a file holds that cannot be read as a scan.

    Arguments:
        arrays: what is in the file.
        faults: the messages about what is wrong or missing, each once, that of the options as they are first.
        needs: which command needs what.
        summary: what `inspect_scan` finds without the parts that are missing; None where it finds nothing.
    """

    source: str
    arrays: list[StoredArray]
    faults: list[str]
    needs: list[str]
    summary: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """Return the survey as plain data, ready for JSON."""
        return dataclasses.asdict(self) | {"usable": False, "problems": self.faults}


def survey_file(path: Path, config: ReadConfig, fault: ScanError) -> FileSurvey:
    """Look at a file that cannot be read as a scan, without the parts that are missing or wrong, one after the other.

    A guessed probe stands in for a probe and a raster for positions; frames that cannot be read are left out.

    Arguments:
        config: the options with which it cannot be read.
        fault: the message about it.

    Raises:
        ScanError: the fault itself, where the file holds no arrays.
    """
    arrays = list_arrays(path)
    if not arrays:
        raise fault
    faults, missing = [str(fault)], list[str]()
    error, attempt = fault, config
    summary: dict[str, Any] | None = None
    for _ in range(_MAX_FAULTS):
        for part, following in _list_relaxations(path, attempt, error):
            if following == attempt:
                continue
            try:
                found = inspect_scan(read_scan(path, following)).to_dict()
            except ScanError as other:
                # Where the part is not known, another attempt helps only if it leads to another fault.
                if error.part is None and str(other) == str(error):
                    continue
                error = other
                faults.append(str(other))
            else:
                summary = found
            attempt = following
            missing.append(part)
            break
        else:
            break
        if summary is not None:
            break
    if summary is not None:
        hidden = {name for part in missing for name in _FOLLOWS_FROM.get(part, ())} | {"usable", "problems"}
        summary = {name: value for name, value in summary.items() if name not in hidden}
    elif error.part == "frames":
        missing = ["frames themselves"]
    needs = [_describe_need(part) for part in missing]
    return FileSurvey(
        source=str(path),
        arrays=arrays,
        faults=list(dict.fromkeys(faults)),
        needs=list(dict.fromkeys(needs)),
        summary=summary,
    )


def _describe_need(part: str) -> str:
    return _NEEDS.get(part, f"Every command but inspect needs --ignore {part}, or a file in which it is right.")


def _list_relaxations(path: Path, config: ReadConfig, error: ScanError) -> Iterator[tuple[str, ReadConfig]]:
    """List the parts without which a file may be read that gave this error, and the options that do so."""
    part = error.part
    if part in ("probe", None) and config.probe is None and not (config.guess_probe and "probe" in config.ignore):
        yield "probe", dataclasses.replace(config, guess_probe=True, ignore=_add(config.ignore, "probe"))
    if part == "object-pixel" and config.object_pixel_m is None:
        pixel: dict[str, Any] = {"object_pixel_m": _PLACEHOLDER_PIXEL_M, "distance_m": None, "detector_pixel_m": None}
        yield part, _place_on_raster(path, dataclasses.replace(config, **pixel))
    if part in ("positions", None) and not config.makes_raster:
        yield "positions", _place_on_raster(path, config)
    if part == "propagation" and config.propagation != "far":
        yield part, dataclasses.replace(config, propagation="far")
    if part in ("frames", "checksum") and config.bad_frames != "leave-out":
        yield part, dataclasses.replace(config, bad_frames="leave-out")
    if part == "frame-size" and config.crop_px is None:
        shape = _open_frames(path, config)
        if shape is not None and min(shape[1:]) > 1:
            yield part, dataclasses.replace(config, crop_px=min(shape[1:]) // 2 * 2)
    if part == "frames-axis" and config.frames_axis is None:
        yield part, dataclasses.replace(config, frames_axis=0)
    if part == "energy-index" and config.energy_index is None:
        yield part, dataclasses.replace(config, energy_index=0)
    if part == "negative" and not config.clip_negative:
        yield part, dataclasses.replace(config, clip_negative=True)
    if part is not None and part in get_args(OptionalPart) and part != "probe" and part not in config.ignore:
        yield part, dataclasses.replace(config, ignore=_add(config.ignore, part))


def _add(ignored: tuple[OptionalPart, ...], part: str) -> tuple[OptionalPart, ...]:
    return ignored if part in ignored else (*ignored, cast(OptionalPart, part))


def _place_on_raster(path: Path, config: ReadConfig) -> ReadConfig:
    """Put the frames of a file on a raster of one line; change nothing where the frames cannot be opened."""
    shape = _open_frames(path, config)
    if shape is None:
        return config
    step = (_PLACEHOLDER_STEP_PX, _PLACEHOLDER_STEP_PX)
    return dataclasses.replace(
        config, positions=None, raster_step_px=step, raster_step_m=None, raster_shape=(1, shape[0])
    )


def _open_frames(path: Path, config: ReadConfig) -> tuple[int, int, int] | None:
    """Return number, rows and columns of the frames of a file, of which nothing else is read; None where they cannot
    be opened."""
    alone: dict[str, Any] = {
        "positions": None,
        "raster_step_px": (_PLACEHOLDER_STEP_PX, _PLACEHOLDER_STEP_PX),
        "raster_step_m": None,
        "guess_probe": True,
        "ignore": get_args(OptionalPart),
        "crop_px": 2,
        "object_pixel_m": _PLACEHOLDER_PIXEL_M,
        "distance_m": None,
        "detector_pixel_m": None,
        "propagation": "far",
    }
    bare = dataclasses.replace(config, **alone)
    try:
        if bare.mapping is not None:
            recorded = read_mapped(path, bare, bare.mapping)
        else:
            recorded = recognise(path)[0].read(path, bare)
    except ScanError:
        return None
    return (math.prod(recorded.lead_shape or recorded.frames.shape[:1]), *recorded.frames.shape[1:])
