"""Remedies that a diagnosis tries: changes of a scan's positions or probe, and options of the refinement."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Complex64, Float64

from torchptycho.core.scan import Scan
from torchptycho.io.scan_geometry import rotate_positions

__all__ = [
    "FAMILIES",
    "Remedy",
    "list_coarse_remedies",
    "list_model_remedies",
    "list_neighbours",
    "make_map_remedy",
    "make_rotation_matrix",
    "make_search_remedy",
    "propagate_probe",
    "transform_positions",
]

FAMILIES = ("orientation", "map", "background", "power", "defocus", "modes", "positions", "variable probe", "search")
"""Families of remedies, those of fewer free numbers first: of two that do as well, the first one is named."""

# Between neighbours the frames at the edge of 30 neighbouring ones move by about two pixels.
_SCALES = (0.6, 0.72, 0.85, 0.93, 1.07, 1.16, 1.3, 1.5)
_ANGLES_DEG = (-28.0, -18.0, -11.0, -5.0, 5.0, 11.0, 18.0, 28.0)
# Radians at the edge of the frame.
_DEFOCUS = (-120.0, -95.0, -70.0, -45.0, -20.0, 20.0, 45.0, 70.0, 95.0, 120.0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Remedy:
    """One thing that may be wrong, corrected.

    Arguments:
        family: one of `FAMILIES`.
        value: which of its members, in words.
        number: the same as a number, where there is one.
        change: what is done to the scan.
        options: of the refinement.
    """

    family: str
    value: str
    number: float | None = None
    change: Callable[[Scan], Scan] = lambda scan: scan
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Its family, scale and rotation apart."""
        return self.value.partition(" ")[0] if self.family == "map" else self.family


def transform_positions(scan: Scan, matrix: Float64[np.ndarray, "2 2"]) -> Scan:
    """Apply a linear map to the positions (y, x), about their mean."""
    middle = scan.positions_px.mean(axis=0)
    moved = middle + (scan.positions_px - middle) @ matrix.T
    return dataclasses.replace(scan, positions_px=np.ascontiguousarray(moved))


def make_rotation_matrix(angle_deg: float) -> Float64[np.ndarray, "2 2"]:
    """Make the linear map that turns positions as the option `positions_rotation_deg` does."""
    return np.ascontiguousarray(rotate_positions(np.eye(2), angle_deg).T)


def propagate_probe(probe: Complex64[np.ndarray, "p n n"], edge_rad: float) -> Complex64[np.ndarray, "p n n"]:
    """Propagate a probe along the optical axis.

    Arguments:
        edge_rad: the phase that this adds at the edge of the frame in the far field, -pi lambda z / (4 p^2) over a
            distance z with the object pixel p (Goodman, Introduction to Fourier Optics, eq. 4-20).
    """
    n_px = probe.shape[-1]
    along = (np.arange(n_px) - n_px // 2) / (n_px / 2)
    phase = np.exp(1j * edge_rad * (along[:, None] ** 2 + along**2))
    wave = np.fft.fft2(np.fft.ifftshift(probe, axes=(-2, -1)))
    moved = np.fft.fftshift(np.fft.ifft2(wave * np.fft.ifftshift(phase)), axes=(-2, -1))
    return moved.astype(np.complex64)


def make_map_remedy(matrix: Float64[np.ndarray, "2 2"], value: str, number: float | None = None) -> Remedy:
    """Make the remedy of a linear map of the positions."""
    return Remedy(
        family="map",
        value=value,
        number=number,
        change=lambda scan: transform_positions(scan, matrix),
    )


def list_coarse_remedies(*, near: bool = False) -> list[Remedy]:
    """List orientations, scales, rotations and defoci, far enough apart for few of them to cover all.

    Arguments:
        near: only scales and rotations next to those of the scan. Its probe is near enough, too: a refinement that
            explains the frames has found the defocus.
    """
    if near:
        return [
            *(_make_scale(value) for value in _find_adjacent(1.0, _SCALES)),
            *(_make_rotation(value) for value in _find_adjacent(0.0, _ANGLES_DEG)),
        ]
    return [
        *(_make_orientation(*flags) for flags in itertools.product((False, True), repeat=3) if any(flags)),
        *(_make_scale(value) for value in _SCALES),
        *(_make_rotation(value) for value in _ANGLES_DEG),
        *(_make_defocus(value) for value in _DEFOCUS),
    ]


def list_neighbours(best: Remedy) -> list[Remedy]:
    """List the remedies halfway to the coarse neighbours of the best one."""
    if best.number is None:
        return []
    if best.value.startswith("scale"):
        return [_make_scale(value) for value in _find_between(best.number, (*_SCALES, 1.0))]
    if best.family == "map":
        return [_make_rotation(value) for value in _find_between(best.number, (*_ANGLES_DEG, 0.0))]
    if best.family == "defocus":
        return [_make_defocus(value) for value in _find_between(best.number, (*_DEFOCUS, 0.0))]
    return []


def list_model_remedies(n_modes: int) -> list[Remedy]:
    """List what the model of the refinement may lack.

    Arguments:
        n_modes: of the scan's probe.
    """
    return [
        Remedy(family="background", value="--background", options={"background": True}),
        Remedy(family="power", value="--frame-scale", options={"frame_scale": True}),
        Remedy(family="modes", value=f"--n-modes {n_modes + 2}", options={"n_modes": n_modes + 2}),
        Remedy(
            family="positions",
            value="--position-update frames",
            options={"position_update": "frames", "position_start_epoch": 3},
        ),
        Remedy(
            family="variable probe",
            value="--opr-modes 2 --frame-scale",
            options={"opr_modes": 2, "frame_scale": True},
        ),
    ]


def make_search_remedy(reach_px: float) -> Remedy:
    """Make the remedy of a search for lost positions."""
    return Remedy(
        family="search",
        value=f"--position-search-px {reach_px:g}",
        options={"position_update": "frames", "position_search_px": reach_px, "position_start_epoch": 3},
    )


def _find_adjacent(value: float, grid: Iterable[float]) -> list[float]:
    below, above = [x for x in grid if x < value], [x for x in grid if x > value]
    return [*([max(below)] if below else []), *([min(above)] if above else [])]


def _find_between(value: float, grid: Iterable[float]) -> list[float]:
    return [(value + near) / 2 for near in _find_adjacent(value, grid)]


def _make_orientation(swap: bool, flip_y: bool, flip_x: bool) -> Remedy:
    matrix = np.diag([-1.0 if flip_y else 1.0, -1.0 if flip_x else 1.0])
    matrix = matrix[:, ::-1] if swap else matrix
    names = [name for name, is_done in (("swap_xy", swap), ("flip_y", flip_y), ("flip_x", flip_x)) if is_done]
    return Remedy(
        family="orientation",
        value=", ".join(names),
        change=lambda scan: transform_positions(scan, np.ascontiguousarray(matrix)),
    )


def _make_scale(factor: float) -> Remedy:
    return make_map_remedy(factor * np.eye(2), f"scale {factor:.4g}", factor)


def _make_rotation(angle_deg: float) -> Remedy:
    return make_map_remedy(make_rotation_matrix(angle_deg), f"rotation {angle_deg:.4g} deg", angle_deg)


def _make_defocus(edge_rad: float) -> Remedy:
    return Remedy(
        family="defocus",
        value=f"{edge_rad:.4g} rad at the edge",
        number=edge_rad,
        change=lambda scan: dataclasses.replace(scan, probe=propagate_probe(scan.probe, edge_rad)),
    )
