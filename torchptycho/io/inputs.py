"""Arguments of public functions that may be objects or the files that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Complex64

from torchptycho.core.config import ReadConfig
from torchptycho.core.errors import ConfigError
from torchptycho.core.inputs import as_path, describe_type
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.io import read_probe, read_reconstruction, read_scan
from torchptycho.io.probe_arrays import to_probe_modes

__all__ = ["as_probe", "as_reconstruction", "as_scan"]


def as_scan(scan: Scan | str | Path, reading: ReadConfig | None = None) -> Scan:
    """Return a scan, read from its file where a path is given.

    Raises:
        ConfigError: it is neither.
        ScanError: the file cannot be read, or the probe has no intensity.
    """
    if isinstance(scan, Scan):
        scan.require_probe()
        return scan
    return read_scan(as_path(scan, "scan", "a Scan or the path of a scan file"), reading)


def as_reconstruction(image: Reconstruction | str | Path, name: str = "reconstruction") -> Reconstruction:
    """Return a reconstruction, read from its file where a path is given.

    Raises:
        ConfigError: it is neither.
        ScanError: the file cannot be read.
    """
    if isinstance(image, Reconstruction):
        return image
    return read_reconstruction(as_path(image, name, "a Reconstruction or the path of an image file"))


def as_probe(probe: Any, n_px: int) -> Complex64[np.ndarray, "p n n"]:
    """Return the modes of a probe: an array, of one mode if it has two axes, a tensor, or the file of one.

    Raises:
        ConfigError: it is none of these, or of another size than the frames.
        ScanError: it is dark, not finite, or of another shape.
    """
    if isinstance(probe, str | Path):
        return read_probe(probe, n_px)
    values = probe.detach().cpu().numpy() if hasattr(probe, "detach") else probe
    if not isinstance(values, np.ndarray):
        raise ConfigError(f"probe: expected an array of modes (P, N, N), or a file; found {describe_type(probe)}.")
    modes = to_probe_modes(Path("memory"), "probe", values, n_px)
    if modes.shape[-2:] != (n_px, n_px):
        raise ConfigError(f"probe: expected {n_px}x{n_px} px, as the frames; found {modes.shape}.")
    return modes
