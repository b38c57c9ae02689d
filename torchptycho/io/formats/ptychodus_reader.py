"""Products of Ptychodus (HDF5 and NPZ): positions, probe and object in metres; the frames are in a file next to
them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.config.read import ReadConfig, parse_frame_slice
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Frames
from torchptycho.io.formats.ptychodus_content import (
    DIFFRACTION_FILE,
    NUMBERS,
    POSITIONS,
    ProductContent,
    find_common_spacing_m,
    open_content,
    read_number,
    read_object,
    read_pixel_size,
    read_positions,
    to_complex,
)
from torchptycho.io.formats.ptychodus_writer import name_diffraction_file
from torchptycho.io.frames.frame_stacks import CastFrames, random_access_is_slow, working_dtype
from torchptycho.io.frames.hdf5_frames import Hdf5Frames, open_hdf5_stack
from torchptycho.io.frames.views import PickedFrames
from torchptycho.io.parts import POSITIONS_REMEDY, name_part, read_optional
from torchptycho.io.probe_arrays import to_probe_modes
from torchptycho.io.raw_scan import RawScan, build_geometry, resolve_rows, split_slices
from torchptycho.io.storage.archive import NpzArchive, is_zip
from torchptycho.io.storage.file_access import read_head
from torchptycho.io.storage.hdf5 import find_dataset, is_hdf5, list_names, open_hdf5, read_attribute
from torchptycho.io.storage.hdf5_datasets import load_array

__all__ = ["read_product", "sniff_product"]


def sniff_product(path: Path, head: bytes) -> str | None:
    """Return why this is a product, or None."""
    if is_hdf5(head):
        with open_hdf5(path) as file:
            names, marks = set(list_names(file, path)), set(file.attrs)
        how = "HDF5"
    elif is_zip(head):
        names = marks = set(NpzArchive(path).keys)
        how = "a zip archive"
    else:
        return None
    if set(POSITIONS) <= names:
        return f"{how} with {POSITIONS[0]} and positions in metres"
    # One of which something is missing.
    there = sorted(set(POSITIONS) & names)
    is_product = bool(there) and bool({"photon_energy_eV", "probe_energy_eV", "detector_object_distance_m"} & marks)
    return f"{how} with {there[0]} and what a product states" if is_product else None


def read_product(path: Path, config: ReadConfig) -> RawScan:
    """Read a product with the frames of its diffraction file, paired by index.

    The file is `config.diffraction`, else STEM-diffraction.h5 or diffraction.h5 next to the product, else the product's
    own group `raw_data`. Positions that share an index are averaged; frames without a position, and positions without a
    frame, are left out and listed. Pixels are those of the product's object: px = (m - centre) / pixel + n / 2.

    Raises:
        ScanError: no frames, or values that a product cannot have.
    """
    notes: list[str] = []
    with open_content(path) as content:
        with name_part("object-pixel", "Or give it with --object-pixel-m."):
            pixel_m = config.object_pixel_m or read_pixel_size(content, "object")
        indexes, positions_px, truth = _place(content, config, pixel_m, notes)
        probe = None
        if config.probe is None:
            probe = read_optional("probe", config, lambda: _read_probe(content, notes), None)
        known = {
            "energy_eV": 0.0
            if config.states_energy
            else read_optional(
                "energy", config, lambda: read_number(content, "photon_energy_eV", "probe_energy_eV", default=0.0), 0.0
            ),
            "distance_m": 0.0
            if config.distance_m
            else read_optional(
                "distance", config, lambda: abs(read_number(content, "detector_object_distance_m", default=0.0)), 0.0
            ),
            "object_pixel_m": pixel_m,
        }
        metadata: dict[str, Any] = read_optional("metadata", config, lambda: _read_metadata(content), {})
        if truth is not None and truth.ndim == 3:
            metadata |= read_optional("object", config, lambda: _read_spacing(content), {})
        far_field = True
        if config.propagation == "auto":
            with name_part("propagation", "Or say it with --propagation."):
                far_field = content.value("far_field") is None or bool(content.value("far_field"))
    stack, frame_indexes, bad, detector_pixel_m, key = _open_frames(path, config, notes)
    cut = parse_frame_slice(config.frames)
    if indexes is None:
        rows, left_out = np.asarray(resolve_rows(path, key, stack.shape[0], cut)), dict[int, str]()
        positions = np.full((len(rows), 2), np.nan)
    else:
        with name_part("positions", POSITIONS_REMEDY):
            rows, places, left_out = _pair_frames(path, key, frame_indexes, indexes, cut)
        positions = positions_px[places]
        unused = np.setdiff1d(np.arange(len(indexes)), places)
        if len(unused):
            first = ", ".join(str(index) for index in indexes[unused][:20])
            notes.append(f"{len(unused)} position(s) without a frame left out: indexes {first}")
    picked: Frames = stack
    if not np.array_equal(rows, np.arange(stack.shape[0])):
        picked = PickedFrames(stack, rows, streamed=random_access_is_slow(stack))
    return RawScan(
        path=path,
        format="Ptychodus product",
        frames=_cast(picked),
        rows=rows,
        domain="counts",
        positions=positions,
        unit="px",
        position_keys=("probe_position_y_m", "probe_position_x_m"),
        positions_n_px=None if probe is None else probe.shape[-1],
        probe=probe,
        bad_pixels=bad,
        mask_to_check=None if config.mask is None and config.mask_sense != "auto" else "bad_pixels",
        geometry=build_geometry(path, config.particle, **known, detector_pixel_m=detector_pixel_m),
        far_field=far_field,
        **split_slices(truth),
        metadata=metadata,
        notes=tuple(notes),
        left_out=left_out,
        lead_shape=stack.shape[:1],
    )


def _place(
    content: ProductContent, config: ReadConfig, pixel_m: float, notes: list[str]
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray | None]:
    """Read the indexes of the positions, None where others come in their place; the positions in the pixels of the
    object, and the object."""
    nothing: tuple[None, tuple[int, int], tuple[float, float]] = (None, (0, 0), (0.0, 0.0))

    def read() -> tuple[np.ndarray | None, tuple[int, int], tuple[float, float]]:
        truth, shape = read_object(content, notes)
        y, x = (read_number(content, f"object_center_{axis}_m", default=0.0) for axis in "yx")
        return truth, shape, (y, x)

    truth, shape, center = read_optional("object", config, read, nothing)
    if config.replaces_positions:
        return None, np.zeros((0, 2)), truth
    with name_part("positions", POSITIONS_REMEDY):
        indexes, positions_m = read_positions(content, config.positions_unit, pixel_m, notes)
    return indexes, (positions_m - np.array(center)) / pixel_m + np.array(shape) / 2, truth


def _read_spacing(content: ProductContent) -> dict[str, Any]:
    """Read the distance between the slices, if all are equally far apart."""
    values = content.array("object_layer_spacing_m")
    spacing_m = None if values is None else find_common_spacing_m(values)
    return {} if spacing_m is None else {"slice_spacing_m": spacing_m}


def _read_probe(content: ProductContent, notes: list[str]) -> np.ndarray | None:
    array = content.array("probe")
    path = content.path
    return None if array is None else to_probe_modes(path, "probe", to_complex(path, "probe", array), notes=notes)


def _read_metadata(content: ProductContent) -> dict[str, Any]:
    metadata: dict[str, Any] = {name: value for name in NUMBERS if (value := content.value(name)) is not None}
    if "mass_attenuation_m2_per_kg" not in metadata and (old := content.value("mass_attenuation_m2_kg")) is not None:
        metadata["mass_attenuation_m2_per_kg"] = old
    for name in ("name", "comments"):
        if isinstance(text := content.value(name), str) and text:
            metadata[name] = text
    for name, older in (("loss_values", "costs"), ("loss_epochs", "loss_epochs")):
        values = content.array(name)
        values = content.array(older) if values is None else values
        if values is not None and values.dtype.kind in "iuf" and np.isfinite(values).all():
            metadata[name] = values.reshape(-1).tolist()
    return metadata


def _cast(frames: Frames) -> Frames:
    dtype = working_dtype(frames.dtype)
    return frames if dtype == frames.dtype else CastFrames(frames, dtype)


def _open_frames(
    path: Path, config: ReadConfig, notes: list[str]
) -> tuple[Hdf5Frames, np.ndarray, np.ndarray | None, float | None, str]:
    """Stack, index of each frame, bad pixels, detector pixel, and where the stack was."""
    # That of a product's own name first: several products may lie in one folder.
    neighbours = [
        name_diffraction_file(path),
        path.with_name(f"{path.stem}-{DIFFRACTION_FILE}"),
        path.with_name(DIFFRACTION_FILE),
    ]
    named = [Path(config.diffraction)] if config.diffraction else neighbours
    file_path = next((file for file in named if file.is_file()), None)
    if file_path is not None:
        notes.append(f"frames in {file_path.name}")
        with _open_diffraction_file(file_path) as file:
            node = find_dataset(file, file_path, "patterns")
            if node is None:
                raise ScanError(
                    file_path,
                    "patterns",
                    expected="the frames, (M, H, W)",
                    found="no such dataset",
                    remedy="Name a diffraction file of Ptychodus with --diffraction FILE.",
                )
            with name_part("frames"):
                stack = open_hdf5_stack(node, file_path, "patterns", config=config)
            pixel_m = read_optional(
                "detector-pixel", config, lambda: _read_detector_pixel(node, file_path, config), None
            )
            indexes = _read_indexes(file, file_path, "indexes", stack.shape[0], config)
            bad = read_optional("mask", config, lambda: _read_bad_pixels(file, file_path, config), None)
        return stack, indexes, bad, pixel_m, "patterns"
    if not is_zip(read_head(path)) and not config.diffraction:
        with open_hdf5(path) as file:
            node = find_dataset(file, path, "raw_data/diffraction")
            if node is not None:
                notes.append("frames in its group raw_data")
                with name_part("frames"):
                    stack = open_hdf5_stack(node, path, "raw_data/diffraction", config=config)
                indexes = _read_indexes(file, path, "probe_position_indexes", stack.shape[0], config, may_differ=True)
                return stack, indexes, None, None, stack.key
    raise ScanError(
        path,
        None,
        expected=f"the frames in {' or '.join(str(file) for file in named)}",
        found="no such file",
        remedy="A product has no frames of its own: name their file with --diffraction FILE.",
    )


@contextmanager
def _open_diffraction_file(path: Path) -> Iterator[Any]:
    if not is_hdf5(read_head(path)):
        raise ScanError(
            path,
            None,
            expected="a diffraction file (HDF5)",
            found="another format",
            remedy="Name a diffraction file of Ptychodus with --diffraction FILE.",
        )
    with open_hdf5(path) as file:
        yield file


def _read_detector_pixel(node: Any, path: Path, config: ReadConfig) -> float | None:
    if config.detector_pixel_m is not None:
        return None
    size = read_attribute(node, path, "detector_pixel_height_m")
    return float(size) if isinstance(size, int | float) and size > 0 else None


def _read_indexes(
    file: Any, path: Path, key: str, m: int, config: ReadConfig, *, may_differ: bool = False
) -> np.ndarray:
    """Read the index of each of m frames; their numbers where the file has none, or other positions are given.

    Arguments:
        may_differ: indexes of another number than the frames are not those of the frames.
    """
    if config.replaces_positions:
        return np.arange(m)
    with name_part("positions", POSITIONS_REMEDY):
        node = find_dataset(file, path, key)
        values = None if node is None else load_array(node, path, key)
        if values is None or (may_differ and len(values) != m):
            return np.arange(m)
        if values.shape != (m,) or values.dtype.kind not in "iu":
            raise ScanError(
                path,
                key,
                expected=f"{m} integers, one per frame",
                found=f"{values.dtype} {values.shape}",
                remedy="Export the frames again.",
            )
        return values.astype(np.int64)


def _read_bad_pixels(file: Any, path: Path, config: ReadConfig) -> np.ndarray | None:
    node = find_dataset(file, path, "bad_pixels")
    values = None if node is None else load_array(node, path, "bad_pixels")
    if values is not None and (values.ndim != 2 or values.dtype.kind not in "biu"):
        raise ScanError(
            path,
            "bad_pixels",
            expected="(H, W) boolean, True = bad",
            found=f"{values.dtype} {values.shape}",
            remedy="Export the frames again.",
        )
    if values is None:
        return None
    is_good_nonzero = config.mask is None and config.mask_sense == "good"
    return (values == 0) if is_good_nonzero else values.astype(bool)


def _pair_frames(
    path: Path, key: str, frame_indexes: np.ndarray, indexes: np.ndarray, cut: slice | None
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Pair frames with positions: return rows of the stack that have a position, the indices of these positions, and
    the rows that have none."""
    rows = np.asarray(resolve_rows(path, key, len(frame_indexes), cut))
    place = np.searchsorted(indexes, frame_indexes[rows])
    known = (place < len(indexes)) & (indexes[np.minimum(place, len(indexes) - 1)] == frame_indexes[rows])
    if known.sum() < 2:
        raise ScanError(
            path,
            POSITIONS[0],
            expected="frames and positions that share indexes",
            found=f"{int(known.sum())} of {len(rows)} frames with a position",
            remedy="Is the diffraction file of another scan? Name the right one with --diffraction FILE.",
        )
    return rows[known], place[known], {int(row): "no position has its index" for row in rows[~known]}
