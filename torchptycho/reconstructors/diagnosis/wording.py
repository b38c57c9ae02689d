"""What a remedy that gains means: the fault, a sentence, its picture, and the options of the next refinement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.scan import Scan
from torchptycho.reconstructors.diagnosis.findings import Evidence, Finding
from torchptycho.reconstructors.diagnosis.search import Attempt

__all__ = ["combine_orientation", "describe_attempt", "fit_map"]

# Part of the motion of positions that a linear map, or a smooth drift, has to explain to be named.
_EXPLAINED = 0.7
# Degree of the polynomial in time that stands for a drift.
_DRIFT_DEGREE = 3
_LOST_PX = 3.0


def fit_map(
    given_px: Float64[np.ndarray, "m 2"], found_px: Float64[np.ndarray, "m 2"]
) -> tuple[Float64[np.ndarray, "2 2"], float]:
    """Fit the linear map from given to found positions (y, x).

    Returns:
        the matrix A, found = A given + constant, and the part of the motion that it explains.
    """
    given, found = given_px - given_px.mean(axis=0), found_px - found_px.mean(axis=0)
    matrix = np.linalg.lstsq(given, found, rcond=None)[0].T
    moved = float(((found - given) ** 2).sum())
    left = float(((found - given @ matrix.T) ** 2).sum())
    return matrix, 1 - left / moved if moved > 0 else 0.0


def combine_orientation(reading: ReadConfig, remedy: str) -> tuple[str, float]:
    """Return the options that orient the positions of a file as the remedy asks for, and the rotation that remains.

    Arguments:
        reading: with which the scan was read; the remedy comes after its operations.
        remedy: names of operations, such as "swap_xy, flip_y".
    """
    done = _make_matrix(reading.swap_xy, reading.flip_y, reading.flip_x)
    more = _make_matrix("swap_xy" in remedy, "flip_y" in remedy, "flip_x" in remedy)
    total = more @ done
    swap = total[0, 0] == 0
    flip_y, flip_x = total[0].sum() < 0, total[1].sum() < 0
    # A reflection turns the rotation that comes after the operations into its reverse.
    angle = reading.positions_rotation_deg * float(np.linalg.det(more))
    flags = [flag for flag, is_set in (("--swap-xy", swap), ("--flip-y", flip_y), ("--flip-x", flip_x)) if is_set]
    for name in ("swap_xy", "flip_y", "flip_x"):
        flag = f"--{name.replace('_', '-')}"
        if getattr(reading, name) and flag not in flags:
            flags.append(f"--no-{name.replace('_', '-')}")
    if angle:
        flags.append(f"--positions-rotation-deg {angle:.4g}")
    return " ".join(flags), angle


def describe_attempt(attempt: Attempt, given: Scan, scan: Scan, tried: Sequence[Attempt]) -> Finding | None:
    """Describe what the best remedy says; None where it changes nothing.

    Arguments:
        given: the neighbourhood as it was before the remedy.
        scan: the whole scan.
        tried: the coarse search, for the picture.
    """
    family = attempt.remedy.family
    if family == "orientation":
        return _describe_orientation(attempt, scan, tried)
    if family == "defocus":
        return _describe_defocus(attempt, scan, tried)
    if family in ("map", "positions", "search"):
        return _describe_positions(attempt, given, scan, tried)
    return _describe_model(attempt)


def _make_finding(attempt: Attempt, fault: str, sentence: str, option: str | None, **other: Any) -> Finding:
    gain = attempt.gain
    assert gain is not None
    return Finding(
        fault=fault,
        sentence=sentence,
        option=option,
        gain=gain.per_count,
        error=gain.error,
        share=gain.share,
        **other,
    )


def _describe_orientation(attempt: Attempt, scan: Scan, tried: Sequence[Attempt]) -> Finding:
    option, _ = combine_orientation(scan.reading, attempt.remedy.value)
    names = {"swap_xy": "x and y are exchanged", "flip_y": "y is reversed", "flip_x": "x is reversed"}
    what = " and ".join(names[name] for name in attempt.remedy.value.split(", "))
    alike = [one for one in tried if one.remedy.family in ("orientation", "none")]
    bars = Evidence(
        kind="bars",
        title="likelihood of the orientations",
        values=np.array([one.gain.per_count if one.gain else 0.0 for one in alike]),
        labels=tuple(one.remedy.value for one in alike),
        y_label="gain per held-out photon",
    )
    twin = (
        " If the probe has no structure of its own, the orientation with both axes reversed fits as well."
        if any(_is_twin(attempt, one) for one in alike)
        else ""
    )
    return _make_finding(
        attempt, "orientation", f"In the positions {what}, relative to the frames.{twin}", option, evidence=bars
    )


def _is_twin(attempt: Attempt, other: Attempt) -> bool:
    """Return whether another orientation, with both axes reversed, does about as well."""
    mine, its = ({name for name in one.remedy.value.split(", ") if name} for one in (attempt, other))
    if mine ^ its != {"flip_y", "flip_x"} or other.gain is None or attempt.gain is None:
        return False
    return other.gain.per_count > 0.5 * attempt.gain.per_count


def _describe_defocus(attempt: Attempt, scan: Scan, tried: Sequence[Attempt]) -> Finding:
    geometry = scan.geometry.with_object_pixel(scan.n_px)
    edge_rad = attempt.remedy.number or 0.0
    probe = attempt.image.probe
    option, where = "--probe probe.npz:probe", ""
    if geometry.wavelength_m and geometry.object_pixel_m:
        distance_m = -4 * geometry.object_pixel_m**2 * edge_rad / (math.pi * geometry.wavelength_m)
        where = f", which is {distance_m:.3g} m"
        if scan.reading.guess_probe:
            option = f"--guess-probe --probe-defocus-m {scan.reading.probe_defocus_m + distance_m:.4g}"
    return _make_finding(
        attempt,
        "defocus",
        f"The probe is out of focus by {edge_rad:+.3g} rad at the edge of the frame{where}: with the one given, the "
        "refinement does not find its way.",
        option,
        evidence=_draw_curve(tried, "defocus", "phase at the edge of the frame (rad)", edge_rad, 0.0),
        files={} if probe is None or "probe.npz" not in option else {"probe.npz": {"probe": probe}},
    )


def _describe_positions(attempt: Attempt, given: Scan, scan: Scan, tried: Sequence[Attempt]) -> Finding | None:
    found_px = attempt.image.positions_px
    assert found_px is not None
    matrix, explained = fit_map(given.positions_px, found_px)
    if attempt.remedy.family == "map" or explained > _EXPLAINED:
        return _describe_map(attempt, matrix, scan, tried)
    moved = found_px - given.positions_px
    moved = moved - np.median(moved, axis=0)
    rms = float(np.sqrt((moved**2).sum(axis=1).mean()))
    reach = max(8, math.ceil(1.5 * float(np.abs(moved).max())))
    option = f"--position-update frames --position-limit-px {reach}"
    drift = _measure_drift(moved)
    if drift > _EXPLAINED:
        what = f"The positions drift during the scan, by {np.ptp(moved, axis=0).max():.2g} px"
    elif attempt.remedy.family == "search" or rms > _LOST_PX:
        what = f"The positions are lost: they are off by {rms:.2g} px RMS"
        option += f" --position-search-px {max(24, reach)}"
    else:
        what = f"The positions are off by {rms:.2g} px RMS, each on its own"
    arrows = Evidence(
        kind="arrows",
        title="given positions and how they move",
        x=given.positions_px,
        values=moved,
        x_label="x (px)",
        y_label="y (px)",
    )
    return _make_finding(attempt, "positions", f"{what}.", option, evidence=arrows)


def _describe_map(
    attempt: Attempt, matrix: Float64[np.ndarray, "2 2"], scan: Scan, tried: Sequence[Attempt]
) -> Finding | None:
    scale = math.sqrt(abs(float(np.linalg.det(matrix))))
    angle = math.atan2(matrix[0, 1] - matrix[1, 0], matrix[0, 0] + matrix[1, 1])
    stretch = np.linalg.svd(matrix / scale, compute_uv=False)
    shear = float(stretch[0] / stretch[1] - 1) / 2
    sizes = {"scale": abs(math.log(scale)), "rotation": abs(angle), "shear": shear}
    fault = max(sizes, key=lambda name: sizes[name])
    extent = float(np.ptp(scan.positions_px, axis=0).max())
    reach = max(8, math.ceil(0.6 * extent * max(sizes.values())))
    affine = f"--position-update affine --position-limit-px {reach}"
    turn = math.degrees(angle)
    rotated = f"--positions-rotation-deg {scan.reading.positions_rotation_deg + turn:.4g}"
    also = [name for name, size in sizes.items() if name != fault and size > 0.4 * sizes[fault]]
    if fault == "scale":
        text = (
            f"The positions are {abs(scale - 1):.1%} too {'small' if scale > 1 else 'large'}: energy, distance, "
            "detector pixel or their unit is off; the counts cannot tell which."
        )
        option = _scale_option(scan, scale) or affine
        picture = _draw_curve(tried, "scale", "scale of the positions", scale, 1.0)
        option += f" {rotated}" if "rotation" in also else ""
    elif fault == "rotation":
        text = f"The positions are turned by {turn:+.3g} degrees against the detector."
        option, picture = rotated, _draw_curve(tried, "rotation", "rotation of the positions (deg)", turn, 0.0)
        option += f" {_scale_option(scan, scale) or affine}" if "scale" in also else ""
    else:
        text = f"The axes of the positions are sheared or stretched by {shear:.1%}."
        option, picture = affine, _draw_curve(tried, "scale", "scale of the positions", scale, 1.0)
    if also and fault != "shear":
        others = {"scale": f"scaled by {scale:.4g}", "rotation": f"turned by {turn:+.3g} degrees", "shear": "sheared"}
        text += f" They are also {' and '.join(others[name] for name in also)}."
    return _make_finding(attempt, fault, text, option, evidence=picture)


def _scale_option(scan: Scan, scale: float) -> str | None:
    """Return the option that makes positions in object pixels larger by a factor; None for positions in pixels."""
    geometry = scan.geometry
    if scan.positions_unit == "px":
        return None
    if geometry.distance_m is not None and geometry.propagation == "far":
        return f"--distance-m {geometry.distance_m / scale:.6g}"
    pixel_m = geometry.with_object_pixel(scan.n_px).object_pixel_m
    return None if pixel_m is None else f"--object-pixel-m {pixel_m / scale:.6g}"


def _describe_model(attempt: Attempt) -> Finding:
    image, family = attempt.image, attempt.remedy.family
    option = attempt.remedy.value
    if family == "background":
        assert image.background is not None
        photons = float(image.background.sum())
        part = photons / max(float(image.provenance["photons_per_frame"]), 1e-30)
        text = f"{part:.0%} of the counts are the same in every frame and do not come from the sample."
        picture = Evidence(kind="image", title="background (counts)", values=image.background)
        return _make_finding(attempt, "background", text, option, evidence=picture)
    if family == "modes":
        assert image.probe is not None
        power = (np.abs(image.probe) ** 2).sum(axis=(1, 2))
        power = power / power.sum()
        text = (
            f"The illumination is partially coherent: {1 - power[0]:.0%} of the light is in further modes of the probe "
            "(vibration looks the same)."
        )
        bars = Evidence(
            kind="bars",
            title="light in the modes of the probe",
            values=power,
            labels=tuple(str(number) for number in range(1, len(power) + 1)),
        )
        return _make_finding(attempt, "modes", text, option, evidence=bars)
    scale = image.frame_scale
    assert scale is not None
    frames = np.arange(len(scale), dtype=np.float64)
    power_rms = float(np.std(scale.astype(np.float64) ** 2))
    if family == "power":
        text = f"The power of the probe fluctuates from frame to frame, by {power_rms:.1%} RMS."
        picture = Evidence(
            kind="curve", title="power of the frames", x=frames, values=scale**2, x_label="frame", y_label="power"
        )
        return _make_finding(attempt, "power", text, option, evidence=picture)
    assert image.opr_weights is not None
    text = "The probe changes its shape from frame to frame."
    picture = Evidence(
        kind="curve",
        title="weight of the first mode of variation",
        x=frames,
        values=image.opr_weights[:, 0],
        x_label="frame",
    )
    return _make_finding(attempt, "variable probe", text, option, evidence=picture)


def _draw_curve(tried: Sequence[Attempt], kind: str, label: str, mark: float, none: float) -> Evidence:
    """Draw the likelihood over the values that were tried."""
    points = [(none, 0.0)]
    for one in tried:
        is_kind = one.remedy.family == kind or one.remedy.value.startswith(kind)
        if is_kind and one.gain is not None and one.remedy.number is not None:
            points.append((one.remedy.number, one.gain.per_count))
    values = np.array(sorted(points))
    return Evidence(
        kind="curve",
        title=f"likelihood over the {label.partition(' (')[0]}",
        x=values[:, 0],
        values=values[:, 1],
        x_label=label,
        y_label="gain per held-out photon",
        mark=mark,
    )


def _measure_drift(moved_px: Float64[np.ndarray, "m 2"]) -> float:
    """Measure the part of a motion that is smooth in time."""
    total = float((moved_px**2).sum())
    if not total > 0:
        return 0.0
    time = np.linspace(-1, 1, len(moved_px))
    basis = np.polynomial.chebyshev.chebvander(time, _DRIFT_DEGREE)
    fitted = basis @ np.linalg.lstsq(basis, moved_px, rcond=None)[0]
    return 1 - float(((moved_px - fitted) ** 2).sum()) / total


def _make_matrix(swap: bool, flip_y: bool, flip_x: bool) -> Float64[np.ndarray, "2 2"]:
    matrix = np.diag([-1.0 if flip_y else 1.0, -1.0 if flip_x else 1.0])
    return np.ascontiguousarray(matrix[:, ::-1]) if swap else matrix
