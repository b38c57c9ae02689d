"""Files that are no scan yet: what is there all the same, what is missing, and which command needs it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from torchptycho.analysis.inspection import inspect_scan
from torchptycho.core.config import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.io import read_scan
from torchptycho.io.formats.mapped import read_mapped
from torchptycho.io.formats.registry import recognise
from torchptycho.io.inventory import StoredArray, list_arrays

__all__ = ["FileSurvey", "survey_file"]

_PLACEHOLDER_STEP_PX = 2.0
# What a summary says about positions, which would be about the placeholders.
_OF_POSITIONS = (
    "positions_unit", "position_min_px", "position_max_px", "field_px", "field_m", "step_px", "overlap",
    "n_duplicate_positions",
)  # fmt: skip
_OF_PROBE = ("probe_diameter_px", "n_modes", "probe_is_calibrated", "overlap")
_PROBE_NEED = (
    "refine, resolution, prepare, train and convert need a probe: --probe FILE, or --guess-probe. reconstruct with a "
    "checkpoint has that of its network."
)
_POSITIONS_NEED = (
    "Every command but inspect needs a position for each frame: correct them, add them, describe where they are in a "
    "mapping, or describe a raster with --raster-step-px or --raster-step-m."
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileSurvey:
    """What a file holds that cannot be read as a scan.

    Arguments:
        arrays: what is in the file.
        faults: the messages about what is wrong or missing, the first that of the options as they are.
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
    """Look at a file that cannot be read as a scan: put a guessed probe and a raster in the place of what is missing.

    Arguments:
        config: the options with which it cannot be read.
        fault: the message about it.

    Raises:
        ScanError: the fault itself, where the file holds no arrays.
    """
    arrays = list_arrays(path)
    if not arrays:
        raise fault
    faults, needs, hidden = [str(fault)], list[str](), list[str]()
    summary: dict[str, Any] | None = None
    guessed = dataclasses.replace(config, guess_probe=True)
    attempts: list[tuple[ReadConfig, list[str], tuple[str, ...]]] = []
    if config.probe is None and not config.guess_probe:
        attempts.append((guessed, [_PROBE_NEED], _OF_PROBE))
    placed = _place_on_raster(path, config)
    if placed is not None:
        attempts.append((placed, [_POSITIONS_NEED], _OF_POSITIONS))
        both = dataclasses.replace(placed, guess_probe=True)
        if not placed.guess_probe:
            attempts.append((both, [_POSITIONS_NEED, _PROBE_NEED], (*_OF_POSITIONS, *_OF_PROBE)))
    for attempt, wanted, names in attempts:
        try:
            found = inspect_scan(read_scan(path, attempt))
        except ScanError as error:
            faults.append(str(error))
            continue
        summary, needs, hidden = found.to_dict(), wanted, [*names]
        break
    if summary is not None:
        faults = faults[:1]
        summary = {name: value for name, value in summary.items() if name not in (*hidden, "usable", "problems")}
    return FileSurvey(source=str(path), arrays=arrays, faults=list(dict.fromkeys(faults)), needs=needs, summary=summary)


def _place_on_raster(path: Path, config: ReadConfig) -> ReadConfig | None:
    """Put a raster of one line in the place of positions; None where the frames themselves cannot be opened."""
    if config.makes_raster:
        return None
    step = (_PLACEHOLDER_STEP_PX, _PLACEHOLDER_STEP_PX)
    try:
        raster = dataclasses.replace(config, raster_step_px=step, guess_probe=True)
        if raster.mapping is not None:
            recorded = read_mapped(path, raster, raster.mapping)
        else:
            recorded = recognise(path)[0].read(path, raster)
    except ScanError:
        return None
    n_frames = math.prod(recorded.lead_shape or recorded.frames.shape[:1])
    return dataclasses.replace(config, raster_step_px=step, raster_shape=(1, n_frames))
