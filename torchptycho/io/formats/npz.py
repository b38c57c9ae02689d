"""Scans in NPZ files: the canonical arrays, and the older ones that are still about."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np

from torchptycho.core.config.base import Domain
from torchptycho.core.config.read import MaskSense, ReadConfig, parse_frame_slice
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Frames
from torchptycho.io.checks import check_frame_shape
from torchptycho.io.domain_inference import infer_domain
from torchptycho.io.formats.npz_metadata import FORMAT, RESERVED, parse_geometry, parse_unit, refuse_newer_format
from torchptycho.io.frame_positions import arrange_positions
from torchptycho.io.frames.frame_stacks import select_frames
from torchptycho.io.frames.npz_frames import open_stack
from torchptycho.io.frames.views import get_lead_shape
from torchptycho.io.parts import POSITIONS_REMEDY, name_part, read_optional
from torchptycho.io.probe_files import PROBE_REMEDY, load_probe
from torchptycho.io.raw_scan import RawScan, align_to_frames, resolve_rows, split_slices
from torchptycho.io.storage.archive import Member, NpzArchive, is_zip
from torchptycho.io.units import choose_unit, is_pixels

__all__ = ["has_frames", "read_npz", "sniff_npz"]

_FRAMES_KEYS = ("diffraction", "diff3d")


def sniff_npz(path: Path, head: bytes) -> str | None:
    """Return why this is a scan in NPZ, or None."""
    if not is_zip(head):
        return None
    keys = NpzArchive(path).keys
    named = [key for key in (*_FRAMES_KEYS, "xcoords", "ycoords", "probeGuess") if key in keys]
    return f"a zip archive with {', '.join(named)}" if named else "a zip archive of arrays"


def has_frames(path: Path) -> bool:
    """Return whether a zip archive of arrays holds frames: images, probes and masks are such archives, too."""
    return not set(_FRAMES_KEYS).isdisjoint(NpzArchive(path).keys)


def read_npz(path: Path, config: ReadConfig) -> RawScan:
    """Read a scan in an NPZ file: canonical, legacy, or as Ptychodus writes it for training."""
    frames = parse_frame_slice(config.frames)
    archive = NpzArchive(path)
    metadata: dict[str, Any] = read_optional("metadata", config, archive.load_metadata, {})
    refuse_newer_format(path, metadata)
    with name_part("frames"):
        member, axis = _find_frames_member(archive, metadata, config)
        height, width = member.shape[-2:] if axis == 0 else member.shape[:2]
        if not config.changes_frames:
            check_frame_shape(path, member.key, height, width)
        in_file = open_stack(archive, member, axis, verify="checksum" not in config.ignore)
    keys = _choose_position_keys(archive)
    unit = choose_unit(config.positions_unit, _parse_unit(path, metadata, config), default="px")
    positions = None
    if not config.replaces_positions:
        with name_part("positions", POSITIONS_REMEDY):
            positions = _load_positions(archive, keys, in_file)
    in_file, positions_px = arrange_positions(path, in_file, positions, keys, config)
    n_in_file = in_file.shape[0]
    rows = resolve_rows(path, member.key, n_in_file, frames)
    stack = select_frames(in_file, rows)
    own_sense = config.mask_sense if config.mask is None else "auto"
    own_probe, more_notes, warnings = None, list[str](), list[str]()
    if config.probe is None and "probeGuess" in archive:
        size = height if height == width else None
        own_probe = read_optional("probe", config, lambda: load_probe(archive, "probeGuess", size, more_notes), None)
    elif config.probe is None and not config.guess_probe:
        raise archive.make_missing_error(
            "probeGuess", f"the probe, ({height}, {height}) complex", f"Or give {PROBE_REMEDY}", part="probe"
        )
    every_frame = np.zeros(len(rows), np.int64)
    square, cut = height == width, frames is not None
    with name_part("positions", POSITIONS_REMEDY):
        aligned = align_to_frames(path, "', '".join(reversed(keys)), positions_px, n_in_file, rows, config)
    return RawScan(
        path=path,
        format="NPZ",
        frames=stack,
        rows=rows,
        domain=_choose_domain(path, member.key, config.domain, metadata, stack, more_notes, warnings),
        positions=aligned,
        unit=unit,
        position_keys=keys,
        probe=own_probe,
        bad_pixels=read_optional("mask", config, lambda: ~_load_mask(archive, (height, width), own_sense), None),
        mask_to_check=None if own_sense != "auto" or metadata.get("format") == FORMAT else "mask",
        scan_id=read_optional(
            "scan-index", config, lambda: _load_scan_id(archive, rows, n_in_file, config), every_frame
        ),
        geometry=read_optional(
            "metadata", config, lambda: parse_geometry(path, metadata, config), parse_geometry(path, {}, config)
        ),
        **split_slices(read_optional("object", config, lambda: _load_truth(archive), None)),
        truth_patches=read_optional(
            "patches", config, lambda: _load_truth_patches(archive, n_in_file, height, axis, rows, cut=cut), None
        )
        if square
        else None,
        nominal_positions_px=read_optional(
            "nominal-positions", config, lambda: _load_nominal_positions(archive, rows, in_file, config), None
        )
        if is_pixels(unit)
        else None,
        metadata={key: value for key, value in metadata.items() if key not in RESERVED},
        probe_is_calibrated=config.probe is None and metadata.get("probe_is_calibrated") is True,
        lead_shape=get_lead_shape(in_file),
        notes=(
            f"frames in '{member.key}', axis {axis} counts them",
            f"positions in {keys[0]}, {keys[1]}, in {'object pixels' if is_pixels(unit) else unit}",
            "_metadata is there" if metadata else "no _metadata",
            *more_notes,
        ),
        warnings=tuple(warnings),
    )


def _parse_unit(path: Path, metadata: dict[str, Any], config: ReadConfig) -> str | None:
    if config.positions_unit is not None:
        return None
    return read_optional("metadata", config, lambda: parse_unit(path, metadata), None)


def _find_frames_member(archive: NpzArchive, metadata: dict[str, Any], config: ReadConfig) -> tuple[Member, int]:
    """Find the member with the frames, and the axis along which they lie: 0, or 2 in old files."""
    key = next((name for name in _FRAMES_KEYS if name in archive), None)
    if key is None:
        raise archive.make_missing_error("diffraction", "the frames, (M, N, N)")
    member = archive.inspect_member(key)
    if len(member.shape) < 3 or 1 in member.shape[-2:]:
        raise ScanError(
            archive.path,
            key,
            expected="a stack of frames (M, N, N)",
            found=f"an array of shape {member.shape}",
            remedy="Reshape it; axes of length 1 must go, and a single frame is not a scan.",
        )
    if len(member.shape) > 3:
        _refuse_complex_frames(archive, member)
        return member, 0
    _refuse_complex_frames(archive, member)
    return member, _find_frame_axis(archive, member, metadata, config)


def _refuse_complex_frames(archive: NpzArchive, member: Member) -> None:
    if member.dtype.kind not in "iuf":
        remedy = "Save |F|^2 as counts, or |F| as amplitude." if member.dtype.kind == "c" else "Save the counts."
        raise ScanError(
            archive.path, member.key, expected="integer or real frames", found=f"{member.dtype} frames", remedy=remedy
        )


def _find_frame_axis(archive: NpzArchive, member: Member, metadata: dict[str, Any], config: ReadConfig) -> int:
    said = metadata.get("frames_axis") if config.frames_axis is None else config.frames_axis
    if said in (0, 2):
        return int(said)
    a, b, c = member.shape
    if a == b == c:
        raise ScanError(
            archive.path,
            member.key,
            expected="a stack whose axes can be distinguished",
            found=f"shape {member.shape}: as many frames as pixels along an edge, so (M, N, N) and the old order "
            "(N, N, M) look the same",
            remedy='Say --frames-axis 0 for (M, N, N), or 2 for (N, N, M), or add "frames_axis" to the JSON in '
            "'_metadata'.",
            part="frames-axis",
        )
    key = _choose_position_keys(archive)[1]
    with name_part("positions", POSITIONS_REMEDY):
        shape = archive.inspect_member(key).shape if key in archive and not config.replaces_positions else ()
    n_positions = shape[0] if shape else a
    # Only in the old order the first two axes are equal; otherwise the number of positions decides.
    return 2 if (a == b and a != n_positions) or (c == n_positions and n_positions not in (a, b)) else 0


def _load_numbers(archive: NpzArchive, key: str, n_in_file: int, stack: Frames | None = None) -> np.ndarray:
    """Load an array with one real number per frame: a vector, or a grid with as many entries as there are frames."""
    member = archive.inspect_member(key)
    lead = (n_in_file,) if stack is None else get_lead_shape(stack)
    allowed = (math.prod(lead), math.prod(lead[1:]))
    is_vector = len([length for length in member.shape if length != 1]) <= 1
    if member.dtype.kind not in "iuf" or not (is_vector or math.prod(member.shape) in allowed):
        raise ScanError(
            archive.path,
            key,
            expected=f"one real number per frame, ({n_in_file},)",
            found=f"{member.dtype} {member.shape}",
            remedy="Save it as a vector.",
        )
    return np.atleast_1d(np.squeeze(archive.load(key)))


def _choose_position_keys(archive: NpzArchive) -> tuple[str, str]:
    """Choose the keys of (y, x): measured positions, or the requested ones if the file has no others."""
    nominal = ("ycoords_start", "xcoords_start")
    absent = not {"ycoords", "xcoords"} & set(archive.keys)
    return nominal if absent and set(nominal) <= set(archive.keys) else ("ycoords", "xcoords")


def _load_positions(archive: NpzArchive, keys: tuple[str, str], stack: Frames) -> tuple[np.ndarray, np.ndarray]:
    n = stack.shape[0]
    for key in reversed(keys):
        if key not in archive:
            remedy = "Or describe a raster with --raster-step-px."
            raise archive.make_missing_error(key, f"{key[0]} of each frame in object pixels, ({n},)", remedy)
    x, y = (_load_numbers(archive, key, n, stack) for key in reversed(keys))
    return y, x


def _load_nominal_positions(archive: NpzArchive, rows: range, stack: Frames, config: ReadConfig) -> np.ndarray | None:
    keys = ("ycoords_start", "xcoords_start")
    if not any(key in archive for key in keys):
        return None
    y, x = _load_positions(archive, keys, stack)
    columns = [
        align_to_frames(archive.path, key, one.reshape(-1).astype(np.float64), stack.shape[0], rows, config)
        for key, one in zip(keys, (y, x), strict=True)
    ]
    return np.stack(columns, axis=1)


def _load_scan_id(archive: NpzArchive, rows: range, n_in_file: int, config: ReadConfig) -> np.ndarray:
    key = "scan_index"
    if key not in archive:
        return np.zeros(len(rows), np.int64)
    ids = _load_numbers(archive, key, n_in_file).reshape(-1)
    if ids.dtype.kind == "f":
        found = f"{ids.dtype}"
        raise ScanError(archive.path, key, expected="integers", found=found, remedy="Save it as int64.")
    return align_to_frames(archive.path, key, ids.astype(np.int64), n_in_file, rows, config)


def _load_mask(archive: NpzArchive, shape: tuple[int, ...], asked: MaskSense) -> np.ndarray:
    good = np.ones(shape, bool)
    for key, meaning in (("mask", "True = good"), ("bad_pixels", "True = bad"), ("pixel_mask", "0 = good")):
        if key not in archive:
            continue
        member = archive.inspect_member(key)
        values = archive.load(key) if member.shape == shape and member.dtype.kind in "biu" else None
        if values is None or (key != "pixel_mask" and not np.isin(values, (0, 1)).all()):
            found = f"{member.dtype} {member.shape}" + ("" if values is None else " with other values")
            remedy = "Save it as a boolean array of the size of the frames."
            expected = f"{shape} boolean, {meaning}"
            raise ScanError(archive.path, key, expected=expected, found=found, remedy=remedy)
        nonzero_is_good = key == "mask" if asked == "auto" else asked == "good"
        good &= (values != 0) == nonzero_is_good
        if not good.any():
            remedy = f"Check its meaning: {meaning}; perhaps it is inverted."
            raise ScanError(archive.path, key, expected="some good pixels", found="none", remedy=remedy)
    return good


def _load_truth(archive: NpzArchive) -> np.ndarray | None:
    key = "objectGuess"
    if key not in archive:
        return None
    member = archive.inspect_member(key)
    if len(member.shape) not in (2, 3) or member.dtype.kind != "c":
        raise ScanError(
            archive.path,
            key,
            expected="a complex object (H, W), or its slices (S, H, W)",
            found=f"{member.dtype} {member.shape}",
            remedy="Save amplitude * exp(1j * phase), or leave it out: it is optional.",
        )
    with np.errstate(over="ignore"):
        truth = archive.load(key).astype(np.complex64)
    if not np.isfinite(truth).all():
        remedy = "Leave it out: it is optional."
        raise ScanError(archive.path, key, expected="finite values", found="NaN or infinity", remedy=remedy)
    return truth


def _load_truth_patches(
    archive: NpzArchive, n_in_file: int, n_px: int, frames_axis: int, rows: range, *, cut: bool
) -> np.ndarray | None:
    key = "Y"
    if key not in archive:
        return None
    member = archive.inspect_member(key)
    # Old files have transposed frames but not always transposed patches.
    of_patch = {0: member.shape[1:], 2: member.shape[:-1]} if len(member.shape) == 3 else {}
    stacks = [axis for axis in (frames_axis, 0, 2) if of_patch.get(axis) == (n_px, n_px)]
    axis = next((axis for axis in stacks if member.shape[axis] == n_in_file), None)
    if axis is None and cut:
        axis = next((axis for axis in stacks if member.shape[axis] > rows[-1]), None)
    if axis is None or member.dtype.kind != "c":
        raise ScanError(
            archive.path,
            key,
            expected=f"complex object patches {(n_in_file, n_px, n_px)}",
            found=f"{member.dtype} {member.shape}",
            remedy="Leave it out: it is optional.",
        )
    return select_frames(open_stack(archive, member, axis), rows)[:]


def _choose_domain(
    path: Path,
    key: str,
    asked: Domain | None,
    metadata: dict[str, Any],
    stack: Frames,
    notes: list[str],
    warnings: list[str],
) -> Domain:
    stated = asked or metadata.get("domain")
    if stated is not None:
        if stated not in ("counts", "amplitude"):
            raise ScanError(
                path,
                "_metadata",
                part="metadata",
                expected='\'domain\' to be "counts" or "amplitude"',
                found=f"{stated!r}",
                remedy="Correct it, or say it with --domain.",
            )
        return cast(Domain, stated)
    if stack.dtype.kind in "iu":
        return "counts"
    found = infer_domain(stack)
    other = "amplitude" if found.domain == "counts" else "counts"
    notes.append(f"frames taken as {found.domain}: {found.why}")
    if not found.is_certain:
        warnings.append(
            f"'{key}' is {stack.dtype} without a stated domain and is taken as {found.domain}: {found.why}. If it "
            f"holds {other}, use --domain {other}."
        )
    elif found.domain == "counts" and found.count is not None and not 0.5 <= found.count <= 2:
        warnings.append(
            f"'{key}' holds multiples of {found.count:.4g}, as counts that were normalised: photon noise, the misfit "
            f"and the dose are off by as much. Save it multiplied by {1 / found.count:.6g}."
        )
    return found.domain
