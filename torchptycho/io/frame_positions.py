"""Which frame lies where: lists, grids and axis vectors of positions, and rasters, held against the stack's axes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Frames
from torchptycho.io.frames.frame_stacks import random_access_is_slow
from torchptycho.io.frames.views import WindowFrames, get_lead_shape
from torchptycho.io.given_positions import load_given_positions
from torchptycho.io.parts import name_part
from torchptycho.io.raw_scan import RawScan, align_to_frames
from torchptycho.io.scan_geometry import rotate_positions

__all__ = ["arrange_positions", "choose_energy_value", "fit_grid", "place_on_raster"]

# Energies that differ by more than this, relatively, are several and not one that was read back.
_MAX_ENERGY_SPREAD = 1e-3
Grid = tuple[np.ndarray, np.ndarray]


def arrange_positions(
    path: Path,
    stack: Frames,
    positions: Grid | None,
    keys: tuple[str, str],
    config: ReadConfig,
    n_energies: int = 1,
) -> tuple[Frames, Float64[np.ndarray, "k 2"]]:
    """Give every frame its position, and choose the energy of a stack that holds several.

    Positions are one number per frame in an array of any shape, in C order, or one vector for each axis of a raster. A
    stack (E, M, H, W) or (E, ny, nx, H, W) with positions for one energy, or with E different energies, is a spectrum.

    Arguments:
        positions: y and x; None where those of the options come in their place.
        keys: the arrays they came from, (y, x).
        n_energies: how many different energies the file states.

    Returns:
        the frames of one energy, and positions [K, 2] as (y, x), NaN for a raster. K is the number of frames, unless
        the file has more or fewer positions: see `align_to_frames`.

    Raises:
        ScanError: a grid of another shape than the frames, or several energies of which none is chosen.
    """
    lead = get_lead_shape(stack)
    given = load_given_positions(config, math.prod(lead))
    if given is not None:
        positions, keys = (given.y, given.x), given.keys
    if positions is None:
        shape = config.raster_shape or lead[-2:]
        n_lead = math.prod(shape)
        is_spectrum = len(lead) > 2 or (len(lead) == 2 and n_lead == lead[1])
        frames = _choose_energy(path, stack, lead, keys, config) if is_spectrum else stack
        _refuse_energy_index(path, config, used=is_spectrum)
        return frames, np.full((frames.shape[0], 2), np.nan)
    with name_part("positions"):
        return _arrange(path, stack, positions, keys, config, n_energies)


def _arrange(
    path: Path, stack: Frames, positions: Grid, keys: tuple[str, str], config: ReadConfig, n_energies: int
) -> tuple[Frames, Float64[np.ndarray, "k 2"]]:
    """Arrange positions of a file or of an option, as for `arrange_positions`."""
    lead = get_lead_shape(stack)
    total, rest = math.prod(lead), math.prod(lead[1:]) if len(lead) > 1 else 0
    y, x = (np.squeeze(np.asarray(one, np.float64)) for one in positions)
    every_energy = n_energies > 1 and n_energies == lead[0] and len(lead) > 1 and y.size == x.size == total
    target = total
    grid = fit_grid(y, x, total)
    if grid is None or every_energy:
        one = fit_grid(y, x, rest) if grid is None and rest else None
        if one is not None or every_energy:
            stack = _choose_energy(path, stack, lead, keys, config)
            target = rest
            if every_energy:
                index = config.energy_index or 0
                grid = (y.reshape(lead[0], -1)[index], x.reshape(lead[0], -1)[index])
            else:
                grid = one
    _refuse_energy_index(path, config, used=target == rest)
    if grid is None:
        # Its number is judged where the frames that are kept are known.
        for key, one_axis in zip(keys, (y, x), strict=True):
            if y.size != x.size:
                align_to_frames(path, key, one_axis.reshape(-1), target, range(target), config)
        grid = (y.reshape(-1), x.reshape(-1))
    if grid[0].ndim > 1:
        axes = tuple(length for length in (lead if target == total else lead[1:]) if length > 1)
        if len(axes) == grid[0].ndim and axes != grid[0].shape:
            raise ScanError(
                path,
                "', '".join(keys),
                expected=f"a grid of positions {axes}, as the frames",
                found=f"{grid[0].shape}",
                remedy="Transpose the grid or the frames: their order is not the same.",
            )
    return stack, np.stack([grid[0].reshape(-1), grid[1].reshape(-1)], axis=1)


def fit_grid(y: np.ndarray, x: np.ndarray, n: int) -> Grid | None:
    """Return positions for n frames: as they are, or those of the raster whose axes y and x are; None for neither."""
    if y.size == x.size == n and (y.shape == x.shape or 1 in (y.ndim, x.ndim)):
        return y, x
    if y.ndim == x.ndim == 1 and y.size * x.size == n:
        rows, columns = np.meshgrid(y, x, indexing="ij")
        return rows, columns
    return None


def _choose_energy(
    path: Path, stack: Frames, lead: tuple[int, ...], keys: tuple[str, str], config: ReadConfig
) -> Frames:
    n, each = lead[0], math.prod(lead[1:])
    key = str(getattr(stack, "key", "frames"))
    index = 0 if n == 1 else config.energy_index
    if index is None or index >= n:
        raise ScanError(
            path,
            key,
            expected="frames at one energy" if index is None else f"an energy {index}",
            found=f"{n} energies of {each} frames each, {(*lead, *stack.shape[1:])}",
            remedy=f"Take one with --energy-index N, from 0 to {n - 1}.",
            part="energy-index",
        )
    return WindowFrames(stack, index * each, (index + 1) * each, lead[1:], random_access_is_slow(stack))


def _refuse_energy_index(path: Path, config: ReadConfig, *, used: bool) -> None:
    if config.energy_index is not None and not used:
        raise ScanError(
            path,
            None,
            expected="frames at several energies, for --energy-index",
            found="frames at one energy: every one of them has a position of its own",
            remedy="Leave it out.",
        )


def choose_energy_value(path: Path, key: str, values: np.ndarray, config: ReadConfig) -> float:
    """Choose the energy, or the wavelength, that the frames were recorded at.

    Arguments:
        values: one number, one for each energy of a stack, or one per frame.

    Raises:
        ScanError: several that differ, and no index that chooses one.
    """
    flat = values.astype(np.float64).reshape(-1)
    index = config.energy_index
    if index is not None and index < flat.size:
        return float(flat[index])
    low, high = float(flat.min()), float(flat.max())
    if high - low > _MAX_ENERGY_SPREAD * abs(high):
        raise ScanError(
            path,
            key,
            expected="one energy",
            found=f"{flat.size} from {low:.6g} to {high:.6g}",
            remedy="Take one with --energy-index N, or give it with --energy-eV.",
            part="energy",
        )
    return float(flat.mean())


def place_on_raster(recorded: RawScan, config: ReadConfig, notes: list[str]) -> RawScan:
    """Return the scan with positions on the raster that the options describe, where they do.

    Raises:
        ScanError: the raster has another number of points than the file has frames.
    """
    step = config.raster_step_px or config.raster_step_m
    if step is None:
        return recorded
    lead = recorded.lead_shape
    shape = config.raster_shape or (lead if lead is not None and len(lead) == 2 else None)
    if shape is None:
        raise ScanError(
            recorded.path,
            None,
            expected="the shape of the raster",
            found=f"frames along one axis, {recorded.frames.shape}",
            remedy="Give it with --raster-shape ROWS COLUMNS.",
        )
    rows, columns = (axis.astype(np.float64) for axis in np.indices(shape))
    if config.raster_snake:
        columns[1::2] = columns[1::2, ::-1]
    y, x = rows * step[0], columns * step[1]
    places = rotate_positions(np.stack([y.reshape(-1), x.reshape(-1)], axis=1), config.raster_rotation_deg)
    in_file = np.asarray(recorded.rows)
    n_in_file = len(places) if lead is None else math.prod(lead)
    unit = "px" if config.raster_step_px is not None else "m"
    aligned = align_to_frames(recorded.path, "raster_shape", places, n_in_file, in_file, config)
    notes.append(f"positions on a raster of {shape[0]}x{shape[1]} points, steps {step[0]:g}, {step[1]:g} {unit} (y, x)")
    keys = ("raster", "raster")
    return dataclasses.replace(
        recorded,
        positions=aligned,
        unit=unit,
        position_keys=keys,
        nominal_positions_px=None,
        truth=None,
        truth_slices=None,
    )
