"""From a configuration to a scan, as the detector would have recorded it."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from torchptycho.core.angular_spectrum import compute_depth_of_focus_m
from torchptycho.core.config import SimulateConfig, as_config, to_dict
from torchptycho.core.errors import ConfigError
from torchptycho.core.geometry import Geometry
from torchptycho.core.scan import ArrayFrames, Scan
from torchptycho.core.versions import collect_versions
from torchptycho.data.simulation.objects import make_object
from torchptycho.data.simulation.positions import check_positions, make_positions
from torchptycho.data.simulation.probes import border_fraction, make_probe, scale_to_photons
from torchptycho.data.simulation.unstable_probe import ProbeChanges, draw_probe_changes
from torchptycho.io import read_probe
from torchptycho.physics.diffraction import measurement
from torchptycho.physics.multislice import build_gap, pass_through_slices
from torchptycho.physics.noise import poisson_sample
from torchptycho.physics.patches import extract, locate_corner
from torchptycho.physics.propagation import Propagator, compute_detector_wave

__all__ = ["simulate"]

_log = logging.getLogger(__name__)

# Complex values of exit waves in memory at a time: 8 MiB in complex64, about ten times that with intermediate results.
_BATCH_ELEMENTS = 2**20

# Lengths of a simulated near-field experiment, whose images depend on their Fresnel number only.
_NEAR_FIELD_ENERGY_EV, _NEAR_FIELD_PIXEL_M = 10e3, 1e-7
# Lengths of a simulated far-field experiment on a thick object, with photons.
_THICK_ENERGY_EV, _THICK_PIXEL_M, _THICK_DETECTOR_PIXEL_M = 10e3, 1e-8, 75e-6
# A larger fraction of the probe's power in the outer tenth of the frame causes a warning.
_MAX_BORDER_FRACTION = 0.01


def simulate(
    config: SimulateConfig | dict[str, Any] | None = None,
    *,
    object: ArrayLike | None = None,
    probe: ArrayLike | None = None,
    positions_px: ArrayLike | None = None,
) -> Scan:
    """Simulate a ptychographic scan: y ~ Poisson(sum_m |D(P_m O)|^2), D being the propagation to the detector.

    Object, positions and noise are drawn from independent streams of one seed: the object does not depend on the
    number of frames, nor the positions on the dose.

    Arguments:
        config: the experiment; None takes the defaults.
        object: complex [H, W] that replaces the drawn object, used unchanged, or [S, H, W] with the slices of a thick
            one.
        probe: complex [N, N] or [P, N, N] that replaces the simulated probe, `config.probe_file` included; it is scaled
            to `config.photons_per_frame`, as is the probe of such a file.
        positions_px: [M, 2] as (y, x) in object pixels that replace the drawn positions; each patch must lie within
            the object: N/2 <= y <= H - N/2, x alike.

    Returns:
        A scan with truth, a calibrated probe and all pixels good. Frames are counts in uint16, or in uint32 if
        necessary, or with `noise=False` the expected counts in float32.

    Raises:
        ScanError: `config.probe_file` contains no probe of this size.
        ConfigError: the inputs contradict each other, a given array is invalid, or the dose overflows.
    """
    config = as_config(SimulateConfig, config)
    if config.simulation_seed < 0:
        raise ConfigError(f"simulation_seed: expected 0 or more; found {config.simulation_seed}.")
    object_seed, position_seed, noise_seed, probe_seed = np.random.SeedSequence(config.simulation_seed).spawn(4)
    modes = _choose_probe(probe, config)
    if object is None:
        slices = _draw_slices(config, np.random.default_rng(object_seed))
    else:
        slices = _to_complex_array("object", object, "[H, W] or [S, H, W]", (2, 3))
        slices = slices.reshape(-1, *slices.shape[-2:])
    n_slices, height, width = slices.shape
    if positions_px is None:
        places = make_positions(config, np.random.default_rng(position_seed), (height, width))
    else:
        places = np.array(positions_px, dtype=np.float64)
        check_positions(places, config.n_px, (height, width))
    border = border_fraction(modes)
    if border > _MAX_BORDER_FRACTION:
        _log.warning(
            "%.1f %% of the probe's power reach the outer tenth of the frame of %d px and would wrap around; "
            "take a smaller "
            "probe or a larger frame.",
            100 * border,
            config.n_px,
        )

    generator = torch.Generator().manual_seed(int(noise_seed.generate_state(1, np.uint64)[0])) if config.noise else None
    geometry = _make_geometry(config, thick=n_slices > 1)
    spacing_m = _choose_spacing_m(config, geometry, n_slices)
    changes = draw_probe_changes(config, modes, len(places), np.random.default_rng(probe_seed))
    frames = _record_frames(slices, modes, places, geometry, spacing_m, generator, changes)
    total = frames.sum(dtype=np.float64 if generator is None else np.uint64).item()
    given = [
        name
        for name, value in (("object", object), ("probe", probe), ("positions_px", positions_px))
        if value is not None
    ]
    metadata: dict[str, Any] = {
        "simulation": to_dict(config),
        "given": given,
        "domain": "counts",
        "nphotons": config.photons_per_frame,
        "probe_is_calibrated": True,
        "photons_drawn_total": total,
        "photons_drawn_mean": total / len(frames),
        "versions": collect_versions(),
    } | ({} if changes is None else changes.describe())
    if spacing_m is not None:
        metadata["slice_spacing_m"] = spacing_m
    return Scan(
        frames=ArrayFrames(frames),
        domain="counts",
        positions_px=places,
        probe=modes,
        mask=np.ones((config.n_px, config.n_px), dtype=bool),
        scan_id=np.zeros(len(frames), dtype=np.int64),
        geometry=geometry,
        source=f"simulate({config.object_kind if object is None else 'given object'}, seed {config.simulation_seed})",
        truth=slices[0] if spacing_m is None else slices.prod(0),
        truth_slices=None if spacing_m is None else slices,
        metadata=metadata,
        probe_is_calibrated=True,
    )


def _draw_slices(config: SimulateConfig, rng: np.random.Generator) -> np.ndarray:
    """Draw the slices [S, H, W] of the object one after another."""
    root = dataclasses.replace(config, amplitude_min=config.amplitude_min ** (1 / config.n_slices))
    return np.stack([make_object(root, rng) for _ in range(config.n_slices)])


def _choose_spacing_m(config: SimulateConfig, geometry: Geometry, n_slices: int) -> float | None:
    """Return the distance between the slices, None for a thin object.

    Raises:
        ConfigError: a distance without slices, or one over which light of the sampled angles leaves the frames.
    """
    if n_slices == 1:
        if config.slice_spacing_m is not None:
            raise ConfigError(
                f"slice_spacing_m: expected none for a thin object; found {config.slice_spacing_m:g}. Set n_slices to "
                "2 or more."
            )
        return None
    pixel_m, wavelength_m = geometry.with_object_pixel(config.n_px).object_pixel_m, geometry.wavelength_m
    assert pixel_m is not None
    assert wavelength_m is not None
    if config.slice_spacing_m is not None:
        largest_m = config.n_px * pixel_m**2 / wavelength_m
        if config.slice_spacing_m > largest_m:
            raise ConfigError(
                f"slice_spacing_m: expected at most {largest_m:.3g}, over which light stays within frames of "
                f"{config.n_px} px; found {config.slice_spacing_m:g}. Take larger frames or a smaller distance."
            )
        return config.slice_spacing_m
    return compute_depth_of_focus_m(pixel_m, wavelength_m)


def _make_geometry(config: SimulateConfig, *, thick: bool) -> Geometry:
    """Make the lengths of a near-field experiment of this Fresnel number, those of an electron microscope, or those of
    a thick object; another far-field experiment needs none."""
    if config.propagation == "far" and config.probe_kind == "electron":
        geometry = Geometry(energy_eV=config.energy_eV, particle="electron")
        assert geometry.wavelength_m is not None
        angle_rad = config.n_px * config.angle_per_pixel_mrad * 1e-3
        return dataclasses.replace(geometry, object_pixel_m=geometry.wavelength_m / angle_rad)
    if config.propagation == "far" and thick:
        geometry = Geometry(energy_eV=_THICK_ENERGY_EV, detector_pixel_m=_THICK_DETECTOR_PIXEL_M)
        assert geometry.wavelength_m is not None
        distance_m = _THICK_PIXEL_M * config.n_px * _THICK_DETECTOR_PIXEL_M / geometry.wavelength_m
        return dataclasses.replace(geometry, distance_m=distance_m, object_pixel_m=_THICK_PIXEL_M)
    if config.propagation == "far":
        return Geometry()
    pixel_m = _NEAR_FIELD_PIXEL_M
    geometry = Geometry(energy_eV=_NEAR_FIELD_ENERGY_EV, detector_pixel_m=pixel_m, propagation="near")
    assert geometry.wavelength_m is not None
    distance_m = pixel_m**2 / (geometry.wavelength_m * config.fresnel_number)
    return dataclasses.replace(geometry, distance_m=distance_m, object_pixel_m=pixel_m)


def _record_frames(
    slices: np.ndarray,
    modes: np.ndarray,
    positions_px: np.ndarray,
    geometry: Geometry,
    spacing_m: float | None,
    generator: torch.Generator | None,
    changes: ProbeChanges | None,
) -> np.ndarray:
    """Record frames [M, N, N] in batches; counts with a generator, expected counts in float32 without."""
    count, n_px = len(positions_px), modes.shape[-1]
    fields, probe = [torch.from_numpy(each) for each in slices], torch.from_numpy(modes)
    gap = None if spacing_m is None else _build_gap(geometry, n_px, spacing_m)
    corners_px = locate_corner(torch.from_numpy(positions_px), n_px)
    frames = np.empty((count, n_px, n_px), dtype=np.float32 if generator is None else np.uint16)
    step = max(1, _BATCH_ELEMENTS // (modes.size * len(slices)))
    for start in range(0, count, step):
        batch = slice(start, start + step)
        shown = probe if changes is None else changes.apply(probe, batch)
        patches = torch.stack([extract(field, corners_px[batch], n_px) for field in fields])
        exit_waves = pass_through_slices(patches, shown, gap).exit
        expected = measurement(compute_detector_wave(exit_waves, geometry))
        if generator is None:
            frames[batch] = expected.numpy()
            continue
        # In float64, because float32 cannot represent odd numbers beyond 2^24.
        _check_countable(expected.max().item())
        counts = poisson_sample(expected.double(), generator).numpy()
        brightest = counts.max().item()
        _check_countable(brightest)
        if brightest > np.iinfo(frames.dtype).max:
            frames = frames.astype(np.uint32)
        frames[batch] = counts
    return frames


def _build_gap(geometry: Geometry, n_px: int, spacing_m: float) -> Propagator:
    pixel_m = geometry.with_object_pixel(n_px).object_pixel_m
    assert pixel_m is not None
    assert geometry.wavelength_m is not None
    return build_gap(n_px, pixel_m, geometry.wavelength_m, spacing_m)


def _check_countable(brightest: float) -> None:
    limit = np.iinfo(np.uint32).max
    if not brightest <= limit:
        raise ConfigError(
            f"photons_per_frame: {brightest:.3g} photons in a pixel are more than the {limit} that uint32 holds. "
            "Lower photons_per_frame, or take noise=False."
        )


def _choose_probe(given: ArrayLike | None, config: SimulateConfig) -> np.ndarray:
    if given is not None:
        return _validate_probe(given, config)
    if config.probe_file is not None:
        return scale_to_photons(read_probe(config.probe_file, config.n_px), config.photons_per_frame)
    return make_probe(config)


def _validate_probe(probe: ArrayLike, config: SimulateConfig) -> np.ndarray:
    modes = _to_complex_array("probe", probe, "[N, N] or [P, N, N]", (2, 3))
    if modes.shape[-2:] != (config.n_px, config.n_px):
        raise ConfigError(
            f"probe: expected {config.n_px} x {config.n_px} px, as n_px says; found shape {modes.shape}. "
            "Set n_px to the probe's size, or crop the probe."
        )
    if not modes.any():
        raise ConfigError("probe: expected non-zero values; found zeros only.")
    return scale_to_photons(modes.reshape(-1, config.n_px, config.n_px), config.photons_per_frame)


def _to_complex_array(name: str, values: ArrayLike, expected: str, dimensions: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim not in dimensions or array.size == 0 or array.dtype.kind not in "fciu":
        raise ConfigError(f"{name}: expected numbers {expected}; found {array.dtype} of shape {array.shape}.")
    wide = array.astype(np.complex64)
    if not np.isfinite(wide).all():
        raise ConfigError(f"{name}: expected finite numbers; found {int((~np.isfinite(wide)).sum())} that are not.")
    return wide
