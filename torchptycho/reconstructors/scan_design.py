"""Planned scans: from the options of a simulation, or from a scan that is to be repeated."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Complex, Float64

from torchptycho.core.config import RefineConfig, SimulateConfig, as_config
from torchptycho.core.errors import ConfigError
from torchptycho.core.geometry import energy_to_wavelength_m
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.data.simulation.objects import make_object
from torchptycho.data.simulation.positions import check_positions, make_positions
from torchptycho.data.simulation.probes import make_probe, scale_to_photons
from torchptycho.io import read_probe
from torchptycho.reconstructors.iterative import refine

__all__ = ["ScanDesign", "find_middle_frames", "measure_seconds", "plan_design", "plan_from_scan", "require_positive"]

_TIMED_FRAMES = 32


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScanDesign:
    """A planned scan.

    Arguments:
        object: [H, W] a stand-in for what will be scanned.
        probe: [P, N, N] modes in sqrt(photons).
        positions_px: [M, 2] as (y, x) in object pixels.
        object_pixel_m: edge of an object pixel, if known.
    """

    object: Complex[np.ndarray, "h w"]
    probe: Complex[np.ndarray, "p n n"]
    positions_px: Float64[np.ndarray, "m 2"]
    object_pixel_m: float | None = None

    @property
    def n_px(self) -> int:
        return int(self.probe.shape[-1])

    @property
    def photons_per_frame(self) -> float:
        return float(np.sum(np.abs(self.probe.astype(np.complex128)) ** 2))


def plan_design(
    config: SimulateConfig | dict[str, Any] | None = None,
    *,
    object: Complex[np.ndarray, "h w"] | None = None,
    probe: Complex[np.ndarray, "*p n n"] | None = None,
    positions_px: Float64[np.ndarray, "m 2"] | None = None,
    object_pixel_m: float | None = None,
) -> ScanDesign:
    """Build the design that `simulate` would scan with these options; arguments are those of `simulate`.

    Raises:
        ConfigError: the options contradict each other, or describe the near field.
    """
    config = as_config(SimulateConfig, config)
    if config.propagation != "far":
        raise ConfigError("propagation: expected far; found near. Designs of near-field scans are not predicted.")
    for name, plain in (("n_slices", 1), ("probe_drift_px", 0.0), ("power_fluctuation", 0.0), ("probe_wander", 0.0)):
        if getattr(config, name) != plain:
            raise ConfigError(
                f"{name}: expected {plain:g}; found {getattr(config, name):g}. Designs are predicted for a thin object "
                "and a probe that stays the same."
            )
    if not config.noise:
        raise ConfigError("noise: expected True; found False. Without noise there is no error to predict.")
    require_positive("object_pixel_m", object_pixel_m)
    is_simulated = probe is None and config.probe_file is None
    if object_pixel_m is None and is_simulated and config.probe_kind == "electron":
        angle_rad = config.n_px * config.angle_per_pixel_mrad * 1e-3
        object_pixel_m = energy_to_wavelength_m(config.energy_eV, "electron") / angle_rad
    object_seed, position_seed, *_ = np.random.SeedSequence(config.simulation_seed).spawn(4)
    if probe is not None:
        modes = scale_to_photons(probe.reshape(-1, *probe.shape[-2:]), config.photons_per_frame)
    elif config.probe_file is not None:
        modes = scale_to_photons(read_probe(config.probe_file, config.n_px), config.photons_per_frame)
    else:
        modes = make_probe(config)
    if modes.shape[-1] != config.n_px:
        raise ConfigError(f"probe: expected {config.n_px} px, as n_px says; found {modes.shape[-1]} px.")
    truth = make_object(config, np.random.default_rng(object_seed)) if object is None else object
    shape = (truth.shape[0], truth.shape[1])
    if positions_px is None:
        places = make_positions(config, np.random.default_rng(position_seed), shape)
    else:
        places = positions_px
        check_positions(places, config.n_px, shape)
    return ScanDesign(
        object=truth.astype(np.complex64), probe=modes, positions_px=places, object_pixel_m=object_pixel_m
    )


def require_positive(name: str, value: float | None) -> None:
    """Refuse a number that is not above 0; None passes.

    Raises:
        ConfigError: it is 0, negative, infinite or NaN.
    """
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"{name}: expected a number above 0; found {value:g}.")


def plan_from_scan(
    scan: Scan, config: SimulateConfig | dict[str, Any] | None = None, *, object_pixel_m: float | None = None
) -> ScanDesign:
    """Build the design that repeats a scan: its probe, positions and lengths, with the dose and the kind of object of
    the configuration.

    Raises:
        ConfigError: the scan is one of the near field, or the options contradict it.
    """
    scan.require_probe()
    if scan.geometry.propagation != "far":
        raise ConfigError(
            f"{scan.source}: expected a far-field scan; found one of the near field, whose designs are not predicted."
        )
    config = as_config(SimulateConfig, config)
    low = np.floor(scan.positions_px.min(axis=0)) - scan.n_px // 2
    places = scan.positions_px - low
    edge = int(np.ceil(places.max())) + scan.n_px // 2 + 1
    config = dataclasses.replace(config, n_px=scan.n_px, object_px=edge)
    pixel_m = object_pixel_m or scan.geometry.with_object_pixel(scan.n_px).object_pixel_m
    return plan_design(config, probe=scan.probe, positions_px=places, object_pixel_m=pixel_m)


def find_middle_frames(positions_px: Float64[np.ndarray, "m 2"], count: int) -> np.ndarray:
    """Find the frames nearest the middle of a scan, in their order."""
    distance = np.max(np.abs(positions_px - np.median(positions_px, axis=0)), axis=1)
    return np.sort(np.argsort(distance, kind="stable")[:count])


def measure_seconds(design: ScanDesign, epochs: int = 100) -> float:
    """Measure how long a refinement of the whole scan takes on this machine, by two epochs of a part of it."""
    near = find_middle_frames(design.positions_px, _TIMED_FRAMES)
    probe, places = design.probe, design.positions_px[near]
    shape = (len(near), design.n_px, design.n_px)
    mean = design.photons_per_frame / design.n_px**2
    counts = np.random.default_rng(0).poisson(mean, size=shape).astype(np.uint32)
    scan = Scan(
        frames=ArrayFrames(counts),
        domain="counts",
        positions_px=places,
        probe=probe,
        mask=np.ones(shape[1:], dtype=bool),
        scan_id=np.zeros(len(near), dtype=np.int64),
        source="a design",
        probe_is_calibrated=True,
    )
    image = refine(scan, config=RefineConfig(epochs=2, regularization="none", patience=None), judge=False)
    if not image.provenance["complete"]:
        raise KeyboardInterrupt
    seconds = np.diff(image.history["seconds"])[-1]
    return float(seconds * epochs * len(design.positions_px) / len(near))
