"""Random simulated scans for training a prior: any object, many probes, overlaps and doses, some with wrong inputs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Complex64
from scipy import ndimage

from torchptycho.core.config import SimulateConfig
from torchptycho.core.errors import ConfigError
from torchptycho.core.scan import Scan
from torchptycho.data.simulation.probes import make_probe
from torchptycho.data.simulation.random_objects import draw_random_object
from torchptycho.data.simulation.simulator import simulate
from torchptycho.data.simulation.textures import TRAINING_FAMILIES

__all__ = ["draw_random_scan"]

# Parts of the scans that are larger, and whose probe or positions are given wrongly.
_LARGE_FRACTION, _WRONG_PROBE_FRACTION, _WRONG_POSITIONS_FRACTION = 0.03, 0.06, 0.06
_MAX_FRAMES = 140
_MIN_DOSE, _MAX_DOSE = 1e2, 1e8
_USEFUL_DOSES = (5e2, 1e6)
"""Where the photon noise matters and structure is seen: two thirds of the scans lie here, the rest anywhere."""


def draw_random_scan(
    seed: np.random.SeedSequence,
    *,
    families: tuple[str, ...] = tuple(TRAINING_FAMILIES),
    probe: Complex64[np.ndarray, "p n n"] | None = None,
) -> tuple[Scan, dict[str, Any]]:
    """Draw a scan with its truth, and say in plain data what was drawn.

    In a few scans the probe or the positions are not those that the frames were recorded with.

    Arguments:
        probe: modes that every scan is illuminated by, such as those of an instrument; None draws a probe.
    """
    rng = np.random.default_rng(seed)
    if probe is None:
        n_px = 128 if rng.random() < _LARGE_FRACTION else 64
        modes, kind, diameter_px = _draw_probe(n_px, rng)
    else:
        n_px, modes, kind = probe.shape[-1], probe, "given"
        diameter_px = 2 * float(np.sqrt(_count_bright_pixels(probe) / np.pi))
    object_px = n_px + int(rng.integers(64, 97))
    truth, family = draw_random_object(object_px, rng, families)
    if rng.random() < 2 / 3:
        dose = 10 ** rng.uniform(*np.log10(_USEFUL_DOSES))
    else:
        dose = 10 ** rng.uniform(np.log10(_MIN_DOSE), np.log10(_MAX_DOSE))
    overlap = rng.uniform(0.3, 0.85)
    step_px = max((1 - overlap) * diameter_px, 2.0)
    config = SimulateConfig(
        n_px=n_px,
        object_px=object_px,
        position_kind=rng.choice(["raster", "fermat", "random"], p=[0.3, 0.5, 0.2]),
        n_frames=int(np.clip((object_px - n_px) ** 2 / step_px**2, 12, _MAX_FRAMES)),
        position_jitter_px=rng.choice([0.0, 1.0]),
        photons_per_frame=dose,
        simulation_seed=int(rng.integers(2**31)),
    )
    scan = simulate(config, object=truth, probe=modes)
    wrong = "nothing"
    draw = rng.random()
    if draw < _WRONG_PROBE_FRACTION:
        wrong, scan = "probe", dataclasses.replace(scan, probe=_distort_probe(scan.probe, rng))
    elif draw < _WRONG_PROBE_FRACTION + _WRONG_POSITIONS_FRACTION:
        error_px = rng.normal(0, rng.uniform(0.3, 1.2), scan.positions_px.shape)
        low, high = scan.positions_px.min(0), scan.positions_px.max(0)
        wrong, scan = (
            "positions",
            dataclasses.replace(scan, positions_px=np.clip(scan.positions_px + error_px, low, high)),
        )
    drawn = {"family": family, "probe": kind, "n_px": n_px, "dose": dose, "overlap": overlap, "wrong": wrong}
    return scan, drawn


def _draw_probe(n_px: int, rng: np.random.Generator) -> tuple[np.ndarray, str, float]:
    kind = str(rng.choice(["disk", "gaussian", "zone_plate", "diffuser"], p=[0.2, 0.2, 0.4, 0.2]))
    diameter_px = float(n_px * rng.uniform(0.2, 0.5))
    shape: Any = str(rng.choice(["disk", "zone_plate"])) if kind == "diffuser" else kind
    for _ in range(8):
        try:
            modes = make_probe(
                SimulateConfig(
                    n_px=n_px,
                    probe_kind=shape,
                    probe_diameter_px=diameter_px,
                    probe_defocus_waves=rng.uniform(-3, 3),
                    probe_modes=int(rng.choice([1, 2, 3], p=[0.8, 0.1, 0.1])),
                )
            )
            break
        except ConfigError:
            continue  # too strong a defocus for the pixels: draw another
    else:
        modes = make_probe(SimulateConfig(n_px=n_px, probe_kind="gaussian", probe_diameter_px=diameter_px))
    if kind == "diffuser":
        grain_px = rng.uniform(2, 8)
        phase = ndimage.gaussian_filter(rng.standard_normal((n_px, n_px)), grain_px, mode="wrap")
        modes = modes * np.exp(1j * rng.uniform(0.5, 3) * phase / phase.std())
    elif rng.random() < 0.5:
        y, x = np.mgrid[:n_px, :n_px] / n_px - 0.5
        # A curved wave front, which each kind of probe has somewhere in front of its focus.
        modes = modes * np.exp(1j * rng.uniform(-40, 40) * (y**2 + x**2))
    return modes.astype(np.complex64), kind, diameter_px


def _distort_probe(probe: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n_px = probe.shape[-1]
    y, x = np.mgrid[:n_px, :n_px] / n_px - 0.5
    curved = probe * np.exp(1j * rng.uniform(-8, 8) * (y**2 + x**2))
    blur_px = rng.uniform(0.2, 1.5)
    parts = [ndimage.gaussian_filter(part, (0, blur_px, blur_px)) for part in (curved.real, curved.imag)]
    return np.asarray(parts[0] + 1j * parts[1], dtype=np.complex64)


def _count_bright_pixels(probe: np.ndarray) -> int:
    """Count the pixels that hold half of the power."""
    power = np.sort(np.sum(np.abs(probe) ** 2, axis=0), axis=None)[::-1]
    return int(np.searchsorted(np.cumsum(power), 0.5 * power.sum())) + 1
