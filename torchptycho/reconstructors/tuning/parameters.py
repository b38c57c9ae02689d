"""Parameters that can be tuned: their ranges, what they do to a scan or its refinement, the options they become."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torchptycho.core.config import ReadConfig, RefineConfig
from torchptycho.core.errors import ConfigError
from torchptycho.core.scan import Scan
from torchptycho.reconstructors.diagnosis.remedies import make_rotation_matrix, propagate_probe, transform_positions

__all__ = [
    "DEFAULT_PARAMETERS",
    "PARAMETERS",
    "Parameter",
    "apply_to_options",
    "apply_to_scan",
    "choose_parameters",
    "make_reading_options",
    "needs_probe_file",
]

DEFAULT_PARAMETERS = ("scale", "rotation", "defocus", "n-modes", "alpha")
"""What is searched over where nothing is named; what a scan does not allow is left out."""

Value = float | int | str | bool

_MOST_MODES, _MOST_OPR_MODES = 4, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of a search.

    Arguments:
        name: on the command line.
        given: its value in the scan and the options as they are.
        low: least value of a number.
        high: largest value of a number.
        is_log: whether a number is drawn uniformly in its logarithm.
        choices: values to choose from, where it is no number from a range.
        unit: of the number, in words.
    """

    name: str
    given: Value
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    choices: tuple[Value, ...] = ()
    unit: str = ""

    def to_line(self, value: float) -> float:
        """Map a number to where it is drawn uniformly."""
        return math.log(value) if self.is_log else value

    def from_line(self, place: float) -> float:
        """Map a place back to the number, within its range."""
        return min(max(math.exp(place) if self.is_log else place, self.low), self.high)


def _list_parameters(scan: Scan, config: RefineConfig) -> dict[str, Parameter]:
    """List all parameters, around the values that a scan and options have."""
    modes = config.n_modes or len(scan.probe)
    counts = sorted({*range(1, _MOST_MODES + 1), modes})
    batch = config.batch_size or max(8, min(64, scan.n_frames // 25))
    fields: dict[str, tuple[Value, ...]] = {
        "opr-modes": tuple(sorted({*range(_MOST_OPR_MODES + 1), config.opr_modes})),
        "method": ("rpie", "lsqml", "gradient"),
        "likelihood": ("poisson", "amplitude"),
        "position-update": ("none", "affine", "frames", "both"),
        "background": (False, True),
        "frame-scale": (False, True),
        "batch-size": tuple(sorted({4, 8, 16, 32, 64, batch})),
    }
    found = [
        Parameter(name="scale", given=1.0, low=0.8, high=1.25, is_log=True, unit="of the positions"),
        Parameter(name="rotation", given=0.0, low=-12.0, high=12.0, unit="degrees more"),
        Parameter(name="defocus", given=0.0, low=-60.0, high=60.0, unit="rad at the edge of the frame"),
        Parameter(name="n-modes", given=modes, choices=tuple(counts)),
        _make_range("alpha", config.alpha, 0.01, 1.0, is_log=True),
        _make_range("step", config.step, 0.2, 1.8, is_log=True),
        _make_range("momentum", config.momentum, 0.0, 0.97),
        *(
            Parameter(name=name, given=_get_given(name, config, batch), choices=choices)
            for name, choices in fields.items()
        ),
    ]
    return {one.name: one for one in found}


def _make_range(name: str, given: float, low: float, high: float, *, is_log: bool = False) -> Parameter:
    return Parameter(name=name, given=given, low=min(low, given) or low, high=max(high, given), is_log=is_log)


def _get_given(name: str, config: RefineConfig, batch: int) -> Value:
    value: Value = batch if name == "batch-size" else getattr(config, name.replace("-", "_"))
    return value


PARAMETERS = (
    "scale", "rotation", "defocus", "n-modes", "alpha", "step", "momentum", "opr-modes", "method", "likelihood",
    "position-update", "background", "frame-scale", "batch-size",
)  # fmt: skip
"""Names of all parameters."""


def choose_parameters(
    names: Sequence[str] | None, scan: Scan, config: RefineConfig
) -> tuple[tuple[Parameter, ...], tuple[str, ...]]:
    """Choose the parameters of a search.

    Arguments:
        names: None takes those of `DEFAULT_PARAMETERS` that the scan allows.

    Returns:
        the parameters, and a sentence about each of the default ones that is left out.

    Raises:
        ConfigError: a name is unknown or occurs twice, or the scan does not allow one that is named.
    """
    known = _list_parameters(scan, config)
    wanted = tuple(names) if names else DEFAULT_PARAMETERS
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ConfigError(f"--over: expected names out of {', '.join(PARAMETERS)}; found {unknown[0]!r}.")
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"--over: expected each name once; found {' '.join(wanted)}.")
    problem = _find_scale_problem(scan)
    if problem is None or "scale" not in wanted:
        return tuple(known[name] for name in wanted), ()
    if names:
        raise ConfigError(f"{scan.source}: --over scale: {problem}.")
    return tuple(known[name] for name in wanted if name != "scale"), (f"scale is left out: {problem}",)


def _find_scale_problem(scan: Scan) -> str | None:
    if _find_scale_field(scan) is not None:
        return None
    expected = "expected far-field frames with positions in a unit of length, and a distance or an object pixel"
    found = "positions in object pixels" if scan.positions_unit == "px" else "none of both"
    return f"{expected}; found {found}. Take --over position-update, whose affine map scales them"


def _find_scale_field(scan: Scan) -> tuple[str, float] | None:
    """Find the option that scales the positions in object pixels, inversely, and the value that it has."""
    reading, geometry = scan.reading, scan.geometry
    if scan.positions_unit == "px" or geometry.propagation != "far":
        return None
    for name in ("object_pixel_m", "angle_per_pixel_mrad"):
        if getattr(reading, name) is not None:
            return name, getattr(reading, name)
    if geometry.distance_m is not None:
        return "distance_m", geometry.distance_m
    pixel_m = geometry.with_object_pixel(scan.n_px).object_pixel_m
    return None if pixel_m is None or reading.changes_frames else ("object_pixel_m", pixel_m)


def apply_to_scan(scan: Scan, values: Mapping[str, Value]) -> Scan:
    """Apply the values of parameters to positions and probe."""
    scale, angle_deg = float(values.get("scale", 1.0)), float(values.get("rotation", 0.0))
    if scale != 1.0 or angle_deg != 0.0:
        scan = transform_positions(scan, scale * make_rotation_matrix(angle_deg))
    defocus = float(values.get("defocus", 0.0))
    return dataclasses.replace(scan, probe=propagate_probe(scan.probe, defocus)) if defocus else scan


def apply_to_options(options: Mapping[str, Any], values: Mapping[str, Value]) -> dict[str, Any]:
    """Return options of the refinement with the values of parameters."""
    moved = ("scale", "rotation", "defocus")
    return dict(options) | {name.replace("-", "_"): value for name, value in values.items() if name not in moved}


def needs_probe_file(scan: Scan, values: Mapping[str, Value]) -> bool:
    """Return whether a defocused probe has to be written, because no option of reading makes it."""
    return bool(values.get("defocus")) and "probe_defocus_m" not in make_reading_options(scan, values)


def make_reading_options(scan: Scan, values: Mapping[str, Value]) -> dict[str, Any]:
    """Return the options of reading that do to the file what the values of parameters did to the scan."""
    reading: ReadConfig = scan.reading
    options: dict[str, Any] = {}
    scale, rotation, edge_rad = (float(values.get(name, 0.0)) for name in ("scale", "rotation", "defocus"))
    if scale not in (0.0, 1.0):
        field = _find_scale_field(scan)
        assert field is not None
        options[field[0]] = field[1] / scale
    if rotation:
        options["positions_rotation_deg"] = reading.positions_rotation_deg + rotation
    geometry = scan.geometry.with_object_pixel(scan.n_px)
    guesses = reading.guess_probe and reading.probe is None and not reading.aberrations
    if edge_rad and guesses and geometry.wavelength_m and geometry.object_pixel_m:
        pixel_m = geometry.object_pixel_m / (scale or 1.0)
        # See `propagate_probe`.
        away_m = -4 * pixel_m**2 * edge_rad / (math.pi * geometry.wavelength_m)
        options["probe_defocus_m"] = reading.probe_defocus_m + away_m
    return options
