"""Writing products of Ptychodus, as its version 1.7 reads them."""

from __future__ import annotations

import contextlib
import importlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.errors import ScanError
from torchptycho.core.geometry import wavelength_to_energy_eV
from torchptycho.core.scan import Scan
from torchptycho.io.checks import iter_raw_chunks
from torchptycho.io.formats.ptychodus_content import DIFFRACTION_FILE
from torchptycho.io.frames.frame_stacks import working_dtype
from torchptycho.io.frames.npz_frames import count_frames_in
from torchptycho.io.scan_choice import refuse_several_scans
from torchptycho.io.storage.archive import write_array
from torchptycho.io.storage.file_access import replace_atomically

__all__ = ["name_diffraction_file", "write_product"]

_CHUNK_BYTES = 1 << 20
_NUMBERS = (
    "focus_object_distance_m", "probe_photon_count", "exposure_time_s", "mass_attenuation_m2_per_kg",
    "tomography_angle_deg", "tilt_angle_deg",
)  # fmt: skip


def write_product(scan: Scan, path: Path, *, as_npz: bool, compressed: bool = True) -> None:
    """Write a scan as a product, and its frames next to it; see `name_diffraction_file`.

    The object is the scan's, else a transparent one of the size of the field. Frames are written in photon counts; the
    frames of an amplitude scan become float32 counts in its file's own unit, squared.

    Raises:
        ScanError: it holds several scans, energy, distance, detector pixel or object pixel are not known, the frames
            fail `iter_checked_chunks`, or the place cannot be written to. Neither file appears then.
    """
    refuse_several_scans(scan, "a product, which has no scan_index")
    geometry = scan.geometry.with_object_pixel(scan.n_px)
    missing = [name for name in ("energy_eV", "distance_m", "detector_pixel_m") if getattr(geometry, name) is None]
    if missing or geometry.object_pixel_m is None:
        raise ScanError(
            scan.source,
            None,
            expected="the lengths that a product states in metres",
            found=f"no {', no '.join(missing)}",
            remedy=f"Give them with {' '.join('--' + name.replace('_', '-') for name in missing)}.",
        )
    pixel_m = geometry.object_pixel_m
    object, positions_m, center_m = _place_object(scan, pixel_m)
    attributes: dict[str, Any] = {
        "name": str(scan.metadata.get("name", path.stem)),
        "comments": str(scan.metadata.get("comments", "")),
        "detector_object_distance_m": geometry.distance_m,
        # Products know photons alone; electrons become those of the same wavelength.
        "photon_energy_eV": wavelength_to_energy_eV(geometry.wavelength_m or 0.0),
        "far_field": geometry.propagation == "far",
        **{name: float(scan.metadata.get(name, 0.0)) for name in _NUMBERS},
    }
    losses = np.array(scan.metadata.get("loss_values", ()), np.float64)
    epochs = np.array(scan.metadata.get("loss_epochs", range(len(losses))), np.int64)
    arrays: dict[str, np.ndarray] = {
        "probe_position_indexes": np.arange(scan.n_frames),
        "probe_position_x_m": positions_m[:, 1],
        "probe_position_y_m": positions_m[:, 0],
        "object_layer_spacing_m": _list_spacings_m(scan),
        "loss_values": losses,
        "loss_epochs": epochs,
    }
    pixel = {"pixel_width_m": pixel_m, "pixel_height_m": pixel_m}
    waves = {
        "probe": (scan.probe[None], pixel),
        "object": (
            object[None] if scan.truth_slices is None else scan.truth_slices,
            {**pixel, "center_x_m": center_m[1], "center_y_m": center_m[0]},
        ),
    }
    # Frames are written first: frames without a product are more useful than a product without frames.
    with _create_hdf5(name_diffraction_file(path)) as frames_file:
        _write_frames(frames_file, scan, float(geometry.detector_pixel_m or 0.0), compressed=compressed)
        if as_npz:
            _write_npz(path, arrays, waves, attributes, compressed=compressed)
        else:
            with _create_hdf5(path) as file:
                for name, value in attributes.items():
                    file.attrs[name] = value
                for name, array in arrays.items():
                    file.create_dataset(name, data=array)
                for name, (wave, own) in waves.items():
                    file.create_dataset(name, data=wave, compression="gzip" if compressed else None).attrs.update(own)


def name_diffraction_file(product: Path) -> Path:
    """Name the file of the frames of a product.

    Ptychodus' batch mode looks for product.h5 and diffraction.h5 in a folder; the frames of NAME.h5 are in
    NAME-diffraction.h5.
    """
    name = DIFFRACTION_FILE if product.stem == "product" else f"{product.stem}-{DIFFRACTION_FILE}"
    return product.with_name(name)


def _list_spacings_m(scan: Scan) -> np.ndarray:
    """List the distances between the slices of the scan's object.

    Raises:
        ScanError: there are slices at unknown distances.
    """
    if scan.truth_slices is None:
        return np.zeros(0)
    spacing_m = scan.metadata.get("slice_spacing_m")
    if not isinstance(spacing_m, int | float) or not spacing_m > 0:
        raise ScanError(
            scan.source,
            "slice_spacing_m",
            expected=f"the distance between the {len(scan.truth_slices)} slices of the object, in '_metadata'",
            found=repr(spacing_m),
            remedy="State it there, or leave the object out.",
        )
    return np.full(len(scan.truth_slices) - 1, float(spacing_m))


def _place_object(scan: Scan, pixel_m: float) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Return object, positions in metres, and centre of the object in metres: pixel = (m - centre) / pixel + n/2."""
    if scan.truth is not None:
        object, origin = scan.truth, np.zeros(2)
    else:
        half = scan.n_px // 2
        low = np.floor(scan.positions_px.min(axis=0)) - half
        high = np.ceil(scan.positions_px.max(axis=0)) + half + 1
        object = np.ones((int(high[0] - low[0]), int(high[1] - low[1])), np.complex64)
        origin = low
    middle = (origin + np.array(object.shape) / 2) * pixel_m
    return object, scan.positions_px * pixel_m, (float(middle[0]), float(middle[1]))


@contextlib.contextmanager
def _create_hdf5(path: Path) -> Iterator[Any]:
    """Create an `h5py.File` to write, which becomes `path` when the block ends without an error."""
    h5py = importlib.import_module("h5py")
    with replace_atomically(path) as target:
        # HDF5 writes to the file name; the open stream reserves it.
        with h5py.File(target.name, "w") as file:
            yield file
        target.seek(0, 2)


def _write_frames(file: Any, scan: Scan, detector_pixel_m: float, *, compressed: bool) -> None:
    m, n, _ = scan.frames.shape
    dtype = np.dtype(np.float32) if scan.domain == "amplitude" else working_dtype(scan.frames.dtype)
    patterns = file.create_dataset(
        "patterns",
        (m, n, n),
        dtype,
        chunks=(min(m, count_frames_in(_CHUNK_BYTES, scan.frames)), n, n),
        compression="gzip" if compressed else None,
        shuffle=compressed,
    )
    patterns.attrs["detector_pixel_width_m"] = detector_pixel_m
    patterns.attrs["detector_pixel_height_m"] = detector_pixel_m
    file.create_dataset("indexes", data=np.arange(m))
    file.create_dataset("bad_pixels", data=~scan.mask)
    start = 0
    for chunk in iter_raw_chunks(scan):
        values = chunk.astype(np.float32) ** 2 if scan.domain == "amplitude" else chunk
        patterns[start : start + len(chunk)] = values
        start += len(chunk)


def _write_npz(
    path: Path,
    arrays: dict[str, np.ndarray],
    waves: dict[str, tuple[np.ndarray, dict[str, float]]],
    attributes: dict[str, Any],
    *,
    compressed: bool,
) -> None:
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with replace_atomically(path) as target, zipfile.ZipFile(target, "w", method) as archive:
        for name, array in arrays.items():
            write_array(archive, name, array)
        for name, (wave, own) in waves.items():
            write_array(archive, name, wave)
            for key, value in own.items():
                write_array(archive, f"{name}_{key}", np.array(value))
        for name, value in attributes.items():
            write_array(archive, name, np.array(value))
