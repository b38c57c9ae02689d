"""Images as TIFF files, for programs of image processing: amplitude and phase, in 32-bit floats or 16-bit integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from torchptycho.core.config.read import TiffDtype
from torchptycho.core.errors import ConfigError
from torchptycho.core.inputs import as_path
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.io.storage.file_access import replace_atomically

__all__ = ["TIFF_SUFFIXES", "name_tiff_files", "write_tiff"]

TIFF_SUFFIXES = (".tif", ".tiff")
_CODES = 65535


def name_tiff_files(path: str | Path) -> tuple[Path, Path]:
    """Name the files of amplitude and phase: image-amplitude.tif and image-phase.tif for image.tif.

    Raises:
        ConfigError: the name does not end so.
    """
    path = Path(path)
    if path.suffix.lower() not in TIFF_SUFFIXES:
        raise ConfigError(f"{path}: expected a name that ends in {' or '.join(TIFF_SUFFIXES)}; found '{path.suffix}'.")
    amplitude, phase = (path.with_name(f"{path.stem}-{what}{path.suffix}") for what in ("amplitude", "phase"))
    return amplitude, phase


def write_tiff(
    reconstruction: Reconstruction | str | Path, path: str | Path, *, dtype: TiffDtype = "float32"
) -> tuple[Path, Path]:
    """Write amplitude and phase of a reconstruction as two TIFF files.

    float32 holds the values, the phase in rad, and NaN where the image is not valid. uint16 holds whole numbers n that
    stand for c0 + c1 * n, and 0 where it is not valid; c0 and c1 are in the description of the file, where ImageJ reads
    them and shows the values. The phase then reaches from -pi to pi, the amplitude from 0 to its maximum. The edge of a
    pixel is in the resolution of the file, in micrometres. The slices of a thick object are the images of a stack.

    Returns:
        the two files, amplitude first.

    Raises:
        ConfigError: the name does not end in .tif or .tiff.
        ScanError: the place cannot be written to.
    """
    from torchptycho.io.inputs import as_reconstruction

    files = name_tiff_files(as_path(path, "path"))
    reconstruction = as_reconstruction(reconstruction)
    valid = reconstruction.valid & np.isfinite(reconstruction.object).reshape(-1, *reconstruction.valid.shape).all(0)
    amplitude, phase = np.abs(reconstruction.object), np.angle(reconstruction.object)
    highest = float(amplitude[..., valid].max(initial=0)) or 1.0
    images = ((files[0], amplitude, (0.0, highest), "amplitude"), (files[1], phase, (-np.pi, np.pi), "phase"))
    for file, values, (low, high), quantity in images:
        metadata: dict[str, Any] = {"quantity": quantity, "vunit": "rad" if quantity == "phase" else "1"}
        if dtype == "uint16":
            # Code 0 is kept for pixels that are not valid.
            step = (high - low) / (_CODES - 1)
            codes = np.clip(np.rint((values - low) / step) + 1, 1, _CODES)
            stored = np.where(valid, codes, 0).astype(np.uint16)
            metadata |= {"cf": 0, "c0": low - step, "c1": step}
        else:
            stored = np.where(valid, values, np.nan).astype(np.float32)
        if reconstruction.slice_spacing_m:
            metadata["spacing"] = reconstruction.slice_spacing_m * 1e6
        _write_image(file, stored, metadata, reconstruction.object_pixel_m)
    return files


def _write_image(path: Path, image: np.ndarray, metadata: dict[str, Any], pixel_m: float | None) -> None:
    import tifffile

    more: dict[str, Any] = {}
    if pixel_m:
        # ImageJ: pixels per unit.
        more = {"resolution": (1e-6 / pixel_m, 1e-6 / pixel_m)}
        metadata = {**metadata, "unit": "um"}
    with replace_atomically(path) as target:
        tifffile.imwrite(target, image, imagej=True, metadata=metadata, **more)
