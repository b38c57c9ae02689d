"""Files of electron microscopes and their detectors, read by rosettasciio (extra `electron`)."""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.config.read import ReadConfig, parse_frame_slice
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Frames
from torchptycho.io.frame_positions import arrange_positions
from torchptycho.io.frames.dask_frames import DaskFrames, convert_damage
from torchptycho.io.frames.frame_stacks import select_frames
from torchptycho.io.raw_scan import RawScan, align_to_frames, build_geometry, resolve_rows
from torchptycho.io.units import compute_unit_factor

__all__ = ["read_microscope_file", "sniff_microscope_file"]

# Name endings, how such files begin (anything where there is no mark), and the module of rosettasciio that reads them.
_FORMATS: tuple[tuple[str, bytes, str, str], ...] = (
    (".mib", b"MQ1,", "quantumdetector", "Merlin (Medipix) frames"),
    (".dm3", b"\x00\x00\x00\x03", "digitalmicrograph", "DigitalMicrograph 3"),
    (".dm4", b"\x00\x00\x00\x04", "digitalmicrograph", "DigitalMicrograph 4"),
    (".hspy", b"\x89HDF", "hspy", "HyperSpy"),
    (".emd", b"\x89HDF", "emd", "EMD"),
    (".blo", b"", "blockfile", "NanoMegas blockfile"),
    (".mrc", b"", "mrc", "MRC"),
    (".tvips", b"", "tvips", "TVIPS"),
    (".xml", b"<?xml", "empad", "EMPAD"),
)
_SHAPE_ARGUMENT = ("quantumdetector", "mrc")


def sniff_microscope_file(path: Path, head: bytes) -> str | None:
    """Return why this is a file of an electron microscope, or None.

    Several of these formats have no mark of their own, so that the name counts, too.
    """
    found = _find_format(path, head)
    return None if found is None else f"{found[3]} by its name and its beginning"


def read_microscope_file(path: Path, config: ReadConfig) -> RawScan:
    """Read a stack of frames (M, H, W) or (rows, columns, H, W), its calibration and the voltage.

    The frames stay in the file. Positions are those of the scan's axes where these have a length, else those of the
    raster that the options describe.

    Raises:
        ScanError: rosettasciio is missing, the file is damaged, or holds no stack of frames.
    """
    head = path.open("rb").read(16)
    found = _find_format(path, head)
    assert found is not None
    _, _, module, name = found
    signal = _load(path, module, config)
    data, axes = signal["data"], signal["axes"]
    stack: Frames = DaskFrames(data, path, path.name)
    m, lead = stack.shape[0], tuple(data.shape[:-2])
    rows = resolve_rows(path, path.name, m, parse_frame_slice(config.frames))
    given, keys, unit = None, ("raster", "raster"), "px"
    if not config.makes_raster:
        given, keys, unit = _read_positions(path, axes[:-2], lead)
    stack, positions = arrange_positions(path, stack, given, keys, config, 1)
    instrument = signal.get("metadata", {}).get("Acquisition_instrument", {}).get("TEM", {})
    lengths: dict[str, float | None] = {}
    voltage_kV = next((_to_number(value) for key, value in instrument.items() if key.endswith("_energy")), None)
    if voltage_kV is not None and not config.states_energy:
        lengths["energy_eV"] = 1e3 * voltage_kV
    geometry = build_geometry(path, config.particle or "electron", **lengths)
    notes = [f"{name}: {' x '.join(str(n) for n in data.shape)}, {data.dtype}"]
    pixel_m = _read_object_pixel_m(path, axes[-2:], geometry.wavelength_m)
    if pixel_m is not None:
        geometry = build_geometry(path, geometry.particle, **lengths, object_pixel_m=pixel_m)
        notes.append(f"object pixel {pixel_m:.4g} m from the calibration of the detector in the file")
    return RawScan(
        path=path,
        format=name,
        frames=select_frames(stack, rows),
        rows=rows,
        domain="counts",
        positions=align_to_frames(path, "', '".join(dict.fromkeys(keys)), positions, m, rows, config),
        unit=unit,
        position_keys=keys,
        geometry=geometry,
        notes=tuple(notes),
        lead_shape=lead,
    )


def _find_format(path: Path, head: bytes) -> tuple[str, bytes, str, str] | None:
    for entry in _FORMATS:
        if path.suffix.lower() == entry[0] and head.startswith(entry[1]):
            return entry
    return None


def _load(path: Path, module: str, config: ReadConfig) -> dict[str, Any]:
    """Load the largest stack of frames in a file, lazily."""
    try:
        reader = importlib.import_module(f"rsciio.{module}")
    except ModuleNotFoundError as error:
        raise ScanError(
            path,
            None,
            expected="rosettasciio, which reads such files",
            found=f"no module {error.name}",
            remedy="Install it: pip install 'torchptycho[electron]'.",
        ) from None
    options: dict[str, Any] = {"lazy": True}
    if config.raster_shape is not None and module in _SHAPE_ARGUMENT:
        options["navigation_shape"] = config.raster_shape[::-1]
    with _keep_quiet(), convert_damage(path):
        signals = reader.file_reader(str(path), **options)
        stacks = [
            signal
            for signal in signals
            if getattr(signal["data"], "ndim", 0) in (3, 4) and np.dtype(signal["data"].dtype).kind in "iuf"
        ]
        for signal in stacks:
            if not hasattr(signal["data"], "compute"):
                import dask.array

                signal["data"] = dask.array.from_array(signal["data"])  # type: ignore[no-untyped-call]
    if not stacks:
        raise ScanError(
            path,
            None,
            expected="a stack of frames (M, H, W) or (rows, columns, H, W)",
            found=", ".join(str(getattr(signal["data"], "shape", "?")) for signal in signals) or "nothing",
            remedy="Export the diffraction patterns.",
        )
    return dict(max(stacks, key=lambda signal: math.prod(signal["data"].shape)))


@contextmanager
def _keep_quiet() -> Iterator[None]:
    """Keep the reader's own messages away: what matters of them is in ours."""
    log = logging.getLogger("rsciio")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _read_positions(
    path: Path, axes: list[dict[str, Any]], lead: tuple[int, ...]
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[str, str], str]:
    """Compute positions in metres from the calibrated axes of a raster."""
    steps_m = [_read_step(path, axis, "length", "--raster-step-m") for axis in axes]
    if len(lead) != 2 or None in steps_m:
        raise ScanError(
            path,
            "scan axes",
            expected="the step of the scan along rows and columns",
            found=f"{len(lead)} axis of frames" if len(lead) != 2 else "axes without a unit of length",
            remedy="Give it with --raster-step-m ROWS COLUMNS"
            + (" and --raster-shape ROWS COLUMNS." if len(lead) != 2 else "."),
        )
    y, x = (np.arange(n) * (step or 0.0) for n, step in zip(lead, steps_m, strict=True))
    return (y, x), ("scan axis 0", "scan axis 1"), "m"


def _read_step(path: Path, axis: dict[str, Any], quantity: Any, option: str) -> float | None:
    """Read the step of an axis; None where it has no unit of this kind, or none at all."""
    unit, scale = str(axis.get("units") or ""), _to_number(axis.get("scale"))
    if not unit or scale is None or not scale:
        return None
    try:
        return abs(scale) * compute_unit_factor(path, "axes", unit, quantity, option)
    except ScanError:
        return None


def _read_object_pixel_m(path: Path, axes: list[dict[str, Any]], wavelength_m: float | None) -> float | None:
    """Compute the object pixel from the calibration of the detector: an angle, or a spatial frequency such as 1/nm."""
    height, n_px = (int(axis.get("size") or 0) for axis in axes)
    if height != n_px or not n_px:
        return None
    angle = _read_step(path, axes[0], "angle", "--angle-per-pixel-mrad")
    if angle is not None and wavelength_m is not None:
        return float(wavelength_m / (n_px * angle))
    unit, scale = str(axes[0].get("units") or ""), _to_number(axes[0].get("scale"))
    name = unit.replace(" ", "").replace("^-1", "").replace("⁻¹", "").removeprefix("1/").removesuffix("-1")
    reciprocal = unit.replace(" ", "").startswith("1/") or unit.strip().endswith("-1") or unit.endswith("⁻¹")
    if not reciprocal or not scale:
        return None
    try:
        return float(compute_unit_factor(path, "axes", name, "length", "--angle-per-pixel-mrad") / (n_px * abs(scale)))
    except ScanError:
        return None


def _to_number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | np.number) and math.isfinite(float(value)) else None
