"""What a reader hands over: the content of a scan file, before anything is done to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Complex64, Float64, Int64

from torchptycho.core.config.base import Domain
from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import Geometry, Particle, wavelength_to_energy_eV
from torchptycho.core.scan import Frames

__all__ = ["RawScan", "align_to_frames", "build_geometry", "resolve_rows", "split_slices"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RawScan:
    """A scan as its file has it. All that counts frames has the same length.

    Arguments:
        path: the file.
        format: what it was recognised as.
        frames: [M, H, W] of any size, in the detector's own dtype.
        rows: which frames of the file these are.
        positions: [M, 2] of the probe on the sample as (y, x), along the axes of the frames; in pixels, patch pixel N/2
            sits on the position.
        unit: of the positions: px for object pixels, or a unit of length.
        position_keys: where they came from, (y, x).
        positions_n_px: frame edge that object pixels refer to; None for that of the frames.
        probe: [P, n, n], or None.
        domain: what the frames hold, when the format or the file says so.
        bad_pixels: [H, W], True where the detector is not to be trusted; None for nowhere.
        mask_to_check: name of the mask that they come from, when it may be inverted; None when its sense is certain.
        scan_id: [M], or None for one scan.
        geometry: lengths in metres; the detector pixel is that of the frames.
        far_field: False when the file says that it is near-field data.
        truth_is_centered: the middle of the truth lies in the middle of the positions; else they share their pixels.
        truth, truth_slices, truth_patches, nominal_positions_px, metadata, probe_is_calibrated: as in `Scan`.
        notes: how the file was understood, sentence by sentence.
        left_out: frames of the file without a place in the scan, and why.
        lead_shape: axes of the file's stack that count its frames; None where the format has one axis of them.
        warnings: doubts about how the file was understood, which are of use once it is a scan.
        companion_files: other files that something was read from; those of the frames need not be named.
    """

    path: Path
    format: str
    frames: Frames
    rows: range | np.ndarray
    positions: Float64[np.ndarray, "m 2"]
    unit: str
    position_keys: tuple[str, str]
    positions_n_px: int | None = None
    probe: Complex64[np.ndarray, "p a a"] | None = None
    domain: Domain | None = None
    bad_pixels: Bool[np.ndarray, "h w"] | None = None
    mask_to_check: str | None = None
    scan_id: Int64[np.ndarray, " m"] | None = None
    geometry: Geometry = dataclasses.field(default_factory=Geometry)
    far_field: bool = True
    truth: Complex64[np.ndarray, "y x"] | None = None
    truth_slices: Complex64[np.ndarray, "slices y x"] | None = None
    truth_is_centered: bool = False
    truth_patches: Complex64[np.ndarray, "m b b"] | None = None
    nominal_positions_px: Float64[np.ndarray, "m 2"] | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    probe_is_calibrated: bool = False
    notes: tuple[str, ...] = ()
    left_out: dict[int, str] = dataclasses.field(default_factory=dict)
    lead_shape: tuple[int, ...] | None = None
    warnings: tuple[str, ...] = ()
    companion_files: tuple[Path, ...] = ()


def split_slices(object: np.ndarray | None) -> dict[str, Any]:
    """Return an object (H, W), or slices (S, H, W) and their product, as the fields `truth` and `truth_slices`."""
    if object is None or object.ndim == 2:
        return {"truth": object, "truth_slices": None}
    return {"truth": object.prod(0), "truth_slices": object if len(object) > 1 else None}


def resolve_rows(path: Path, key: str, n_in_file: int, frames: slice | None) -> range:
    """Return the numbers of the frames that a slice keeps.

    Raises:
        ScanError: fewer than two, or in another order than the file's.
    """
    if frames is not None and frames.step is not None and frames.step < 1:
        raise ScanError(
            path,
            key,
            expected="frames in the order of the file",
            found=f"a step of {frames.step}",
            remedy="Use a slice with a positive step.",
        )
    rows = range(n_in_file) if frames is None else range(n_in_file)[frames]
    if len(rows) < 2:
        start, stop = ("", "") if frames is None else ("" if at is None else at for at in (frames.start, frames.stop))
        cut = f" after --frames {start}:{stop}" if frames is not None else ""
        raise ScanError(
            path,
            key,
            expected="at least 2 overlapping frames",
            found=f"{len(rows)} of {n_in_file}{cut}",
            remedy="Ptychography needs many frames with overlap; keep or record more.",
        )
    return rows


def align_to_frames(
    path: Path, key: str, values: np.ndarray, n_in_file: int, rows: range | np.ndarray, config: ReadConfig
) -> np.ndarray:
    """Return the entries of an array that belong to the frames `rows`.

    There is one entry for each frame of the file, or for each that is not dropped: then NaN (or 0) stands for the
    dropped ones. With `config.frames` entry i belongs to frame i, as far as there are entries.

    Raises:
        ScanError: the numbers differ, so that nothing tells which entry belongs to which frame.
    """
    n, picked = len(values), np.asarray(rows)
    dropped = [frame for frame in set(config.drop_frames) if frame < n_in_file]
    if n == n_in_file:
        return np.asarray(values[picked])
    if dropped and n == n_in_file - len(dropped):
        filled = np.full((n_in_file, *values.shape[1:]), np.nan if values.dtype.kind == "f" else 0, values.dtype)
        filled[np.delete(np.arange(n_in_file), dropped)] = values
        return np.asarray(filled[picked])
    if config.frames is not None and n > picked.max():
        return np.asarray(values[picked])
    missing, named = n_in_file - n, f", not of {len(dropped)}" if dropped else ""
    remedy = (
        f"Which {missing} frame(s) have none? Give their numbers{named} with --drop-frames, counted from 0, or put NaN "
        "in their place: a gap that is not known misplaces all frames after it."
        if missing > 0
        else f"Remove the {-missing} entries that have no frame; the file does not say which they are."
    )
    raise ScanError(path, key, expected=f"{n_in_file} entries, one per frame", found=f"{n} entries", remedy=remedy)


def build_geometry(path: Path, particle: Particle | None = None, /, **values: float | None) -> Geometry:
    """Build a geometry from lengths and energies of a file, in which 0 stands for unknown.

    Arguments:
        particle: what is diffracted; None for photons.
        values: fields of `Geometry`, and `wavelength_m` in place of the energy.

    Raises:
        ScanError: one is negative or not finite.
    """
    for name, value in values.items():
        if value is not None and not 0 <= value < float("inf"):
            raise ScanError(
                path,
                name,
                expected="a positive number",
                found=f"{value!r}",
                remedy=f"Correct it, or give --{name.replace('_', '-')}.",
                part={"energy_eV": "energy", "wavelength_m": "energy", "distance_m": "distance"}.get(
                    name, "detector-pixel"
                ),
            )
    known: dict[str, Any] = {name: value for name, value in values.items() if value}
    kind: Particle = particle or "photon"
    wavelength_m = known.pop("wavelength_m", None)
    if wavelength_m is not None:
        known["energy_eV"] = wavelength_to_energy_eV(wavelength_m, kind)
    return Geometry(particle=kind, **known)
