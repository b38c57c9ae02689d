"""How a probe changes from frame to frame, in files: our own keys, and the layout of Ptychodus and pty-chi.

Theirs has modes (1 + V, P, N, N), of which [1:, 0] are those of variation, and weights (M, 1 + V), of which column 0
multiplies the mean probe. Their incoherent modes have no weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Complex64, Float32

from torchptycho.core.errors import ScanError
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.io.storage.archive import NpzArchive
from torchptycho.io.storage.hdf5 import find_dataset
from torchptycho.io.storage.hdf5_datasets import load_array, load_complex

__all__ = ["join_variation", "load_variation", "read_product_variation", "split_variation"]


def load_variation(archive: NpzArchive) -> dict[str, Any]:
    """Load `opr_modes`, `opr_weights` and `frame_scale` of an image, as far as they are there.

    Raises:
        ScanError: they do not fit one another or the probe.
    """
    found: dict[str, Any] = {}
    if "opr_modes" in archive or "opr_weights" in archive:
        modes, weights, probe = (
            archive.inspect_member(key).shape if key in archive else () for key in ("opr_modes", "opr_weights", "probe")
        )
        if len(modes) != 3 or len(weights) != 2 or modes[0] != weights[1] or modes[1:] != probe[1:]:
            raise ScanError(
                archive.path,
                "opr_modes, opr_weights",
                expected="modes (V, N, N) of the probe's N, and weights (M, V)",
                found=f"{modes or 'none'} and {weights or 'none'}, probe {probe or 'none'}",
                remedy="Save both as `refine` does, or leave both out.",
            )
        found["opr_modes"] = archive.load("opr_modes").astype(np.complex64)
        found["opr_weights"] = archive.load("opr_weights").astype(np.float32)
    if "frame_scale" in archive:
        scale = archive.load("frame_scale").astype(np.float32)
        if scale.ndim != 1 or not (scale > 0).all():
            raise ScanError(
                archive.path,
                "frame_scale",
                expected="one positive number per frame",
                found=f"{scale.shape}",
                remedy="Correct it or leave it out.",
            )
        found["frame_scale"] = scale
    return found


def read_product_variation(file: Any, path: Path) -> dict[str, Any]:
    """Read probe and variation of an HDF5 product that has `opr_weights`; nothing of any other.

    Raises:
        ScanError: they do not fit one another.
    """
    node = find_dataset(file, path, "opr_weights")
    probe = find_dataset(file, path, "probe")
    if node is None or probe is None:
        return {}
    return split_variation(path, load_complex(probe, path, "probe"), load_array(node, path, "opr_weights"))


def split_variation(path: Path, modes: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """Convert modes and weights of a product to `probe`, `opr_modes`, `opr_weights` and `frame_scale`.

    Raises:
        ScanError: they do not fit one another, or a weight of the mean probe is not positive.
    """
    if modes.ndim != 4 or weights.ndim != 2 or weights.shape[1] != len(modes) or not np.isfinite(weights).all():
        raise ScanError(
            path,
            "opr_weights",
            expected="finite weights (M, K) for a probe (K, P, N, N)",
            found=f"{weights.shape} for {modes.shape}",
            remedy="Export the product again, or leave opr_weights out.",
        )
    scale = weights[:, 0].astype(np.float64)
    if not (scale > 0).all():
        raise ScanError(
            path,
            "opr_weights",
            expected="positive weights of the mean probe in column 0",
            found=f"{scale.min():g}",
            remedy="Export the product again, or leave opr_weights out.",
        )
    found: dict[str, Any] = {"probe": np.ascontiguousarray(modes[0], np.complex64)}
    if len(modes) > 1:
        found["opr_modes"] = np.ascontiguousarray(modes[1:, 0], np.complex64)
        found["opr_weights"] = (weights[:, 1:] / scale[:, None]).astype(np.float32)
    if np.ptp(scale) > 0:
        found["frame_scale"] = (scale / scale.mean()).astype(np.float32)
        found["probe"] = (found["probe"] * scale.mean()).astype(np.complex64)
        if len(modes) > 1:
            found["opr_modes"] = (found["opr_modes"] * scale.mean()).astype(np.complex64)
    return found


def join_variation(
    image: Reconstruction,
) -> tuple[Complex64[np.ndarray, "k p n n"], Float32[np.ndarray, "m k"]] | None:
    """Convert the probe of an image to modes and weights of a product; None if it is stable."""
    probe, modes, weights, scale = image.probe, image.opr_modes, image.opr_weights, image.frame_scale
    if probe is None or (weights is None and scale is None):
        return None
    if modes is None or weights is None:
        assert scale is not None
        return probe[None], scale[:, None].astype(np.float32)
    array = np.zeros((1 + len(modes), *probe.shape), np.complex64)
    array[0], array[1:, 0] = probe, modes
    first = np.ones(len(weights), np.float32) if scale is None else scale
    return array, np.concatenate([first[:, None], first[:, None] * weights], axis=1).astype(np.float32)
