"""First images of an electron scan, without iterations: virtual detectors, centre of mass, rotation of the scan."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float64

from torchptycho.core.config.read import ReadConfig
from torchptycho.core.errors import ScanError
from torchptycho.core.scan import Scan
from torchptycho.io import iter_checked_chunks
from torchptycho.io.electron_calibration import BrightFieldDisc, find_bright_field_disc
from torchptycho.io.position_scale import measure_steps
from torchptycho.io.scan_choice import refuse_several_scans

__all__ = ["ScanRotation", "VirtualImages", "advise_rotation", "compute_virtual_images", "estimate_rotation"]

# Grids of more points than this have coarser ones of the same field.
_MAX_GRID_EDGE = 512
# A dark field begins this far outside the bright-field disc.
_DARK_FIELD_START = 1.1
_MIN_GRID_EDGE = 4
# More curl than this is left where the frames do not tell the rotation.
_MAX_CURL_FRACTION = 0.6
# The rotation is not known better than this.
_SMALL_ROTATION_DEG = 2.0
# Skewness of the divergence beyond which it is one of atoms; textures and grains have less of either sign.
_MIN_SKEWNESS = 1.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanRotation:
    """How the axes of the scan lie against those of the detector.

    Arguments:
        rotation_deg: turning the positions by this angle, from x towards y, makes the centre of mass free of curl.
        reverse_is_known: whether this angle, and not the one 180 degrees away, is right.
        swap_xy: x and y of the positions are exchanged before.
        curl_fraction: what is left of the curl, over that of the worst angle; near 1 nothing is known.
        curl_fraction_other: the same for the other value of `swap_xy`.
    """

    rotation_deg: float
    reverse_is_known: bool
    swap_xy: bool
    curl_fraction: float
    curl_fraction_other: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VirtualImages:
    """Images on a regular grid along the axes of the positions, NaN where no position is near.

    Arguments:
        bright_field, dark_field: part of each frame inside the disc, and beyond it.
        center_of_mass_px: [2, H, W], (y, x) in detector pixels about its mean.
        mean_pattern: mean frame.
        disc: the bright-field disc in it, or None.
        integrated: phase of a thin object up to a factor and a constant, from the centre of mass.
        step_px: distance of grid points in object pixels.
        rotation: of the scan against the detector.
    """

    bright_field: Float64[np.ndarray, "h w"]
    dark_field: Float64[np.ndarray, "h w"]
    center_of_mass_px: Float64[np.ndarray, "2 h w"]
    mean_pattern: Float64[np.ndarray, "n n"]
    disc: BrightFieldDisc | None
    integrated: Float64[np.ndarray, "h w"]
    step_px: float
    rotation: ScanRotation


def compute_virtual_images(scan: Scan) -> VirtualImages:
    """Compute virtual images of a scan in two passes over its frames, with memory for a few of them.

    Positions need not be on a grid: values between them are interpolated linearly.

    Raises:
        ScanError: the positions span no area, or belong to several scans.
    """
    refuse_several_scans(scan, "virtual images")
    from scipy.interpolate import griddata

    mean_pattern = _compute_mean(scan)
    disc = find_bright_field_disc(mean_pattern, scan.mask)
    axis = np.arange(scan.n_px, dtype=np.float64)
    center = (scan.n_px / 2, scan.n_px / 2) if disc is None else disc.center_px
    radius_px = math.inf if disc is None else disc.radius_px
    distance_px = np.hypot(axis[:, None] - center[0], axis - center[1])
    inside, beyond = distance_px <= radius_px, distance_px > _DARK_FIELD_START * radius_px
    rows: list[np.ndarray] = []
    for chunk in iter_checked_chunks(scan):
        counts = _to_counts(chunk, scan)
        total = np.maximum(counts.sum(axis=(1, 2)), 1e-30)
        rows.append(
            np.stack(
                [
                    (counts * inside).sum(axis=(1, 2)) / total,
                    (counts * beyond).sum(axis=(1, 2)) / total,
                    (counts.sum(axis=2) @ axis) / total,
                    (counts.sum(axis=1) @ axis) / total,
                ],
                axis=1,
            )
        )
    values = np.concatenate(rows)
    values[:, 2:] -= values[:, 2:].mean(axis=0)
    step_px, grid_y, grid_x = _lay_out_grid(scan)
    images = griddata(scan.positions_px, values, (grid_y, grid_x), method="linear")
    center_of_mass = np.ascontiguousarray(np.moveaxis(images[..., 2:], -1, 0))
    rotation = estimate_rotation(center_of_mass, scan.geometry.particle == "electron")
    return VirtualImages(
        bright_field=np.ascontiguousarray(images[..., 0]),
        dark_field=np.ascontiguousarray(images[..., 1]),
        center_of_mass_px=center_of_mass,
        mean_pattern=mean_pattern,
        disc=disc,
        integrated=_integrate(_turn(center_of_mass, math.radians(rotation.rotation_deg), rotation.swap_xy)),
        step_px=step_px,
        rotation=rotation,
    )


def estimate_rotation(center_of_mass_px: Float64[np.ndarray, "2 h w"], electrons: bool) -> ScanRotation:
    """Find the rotation at which the centre of mass is a gradient: free of curl.

    The mean momentum that a phase object transfers is the gradient of its phase. Its curl on axes turned by an angle is
    c cos + s sin, so that the best angle has a closed form. Its reverse has as little curl: where small bright places
    stand out of a smooth phase they are taken for atoms, which attract electrons; otherwise the smaller angle is
    returned and the reverse is as good.
    Reference: Hachtel, Idrobo, Chi, Adv. Struct. Chem. Imaging 4, 10 (2018).

    Arguments:
        center_of_mass_px: (y, x) on a grid along the axes of the positions, with equal steps; NaN where unknown.
        electrons: whether the phase of matter is positive, in small places.
    """
    found = [_find_angle(center_of_mass_px, swap) for swap in (False, True)]
    best = int(found[1][1] < found[0][1])
    angle, left = found[best]
    skewness = _measure_skewness(center_of_mass_px, angle, bool(best))
    reverse_is_known = electrons and abs(skewness) > _MIN_SKEWNESS
    if reverse_is_known:
        angle = math.remainder(angle + (math.pi if skewness < 0 else 0.0), 2 * math.pi)
    else:
        angle = math.remainder(angle, math.pi)
    return ScanRotation(
        rotation_deg=math.degrees(angle),
        reverse_is_known=reverse_is_known,
        swap_xy=bool(best),
        curl_fraction=left,
        curl_fraction_other=found[1 - best][1],
    )


def advise_rotation(rotation: ScanRotation, reading: ReadConfig) -> str:
    """Say in one sentence how the positions are to be read, which were read with these options."""
    if rotation.curl_fraction > _MAX_CURL_FRACTION:
        return (
            f"The centre of mass does not tell the rotation of the scan: {100 * rotation.curl_fraction:.0f} % of its "
            "curl is left at the best angle. Use more counts, smaller steps or a focused probe."
        )
    reverse = "" if rotation.reverse_is_known else " Turned by 180 degrees more they fit as well: compare both images."
    if not rotation.swap_xy and abs(rotation.rotation_deg) < _SMALL_ROTATION_DEG:
        return f"The axes of the scan are those of the detector, by the centre of mass.{reverse}"
    # Exchanging the axes after a rotation is exchanging them before its reverse.
    before_deg = -reading.positions_rotation_deg if rotation.swap_xy else reading.positions_rotation_deg
    angle_deg = math.remainder(rotation.rotation_deg + before_deg, 360.0)
    flags = ["--swap-xy"] if rotation.swap_xy != reading.swap_xy else []
    if rotation.swap_xy and (reading.flip_y or reading.flip_x):
        return (
            f"By the centre of mass the positions have x and y exchanged, and are then to be turned by "
            f"{rotation.rotation_deg:.1f} degrees: read them without the flips and ask again."
        )
    kept = [f"--{name.replace('_', '-')}" for name in ("flip_y", "flip_x") if getattr(reading, name)]
    options = " ".join([*flags, *kept, f"--positions-rotation-deg {angle_deg:.1f}"])
    return f"By the centre of mass the positions are to be turned: read them with {options}.{reverse}"


def _compute_mean(scan: Scan) -> np.ndarray:
    summed = np.zeros((scan.n_px, scan.n_px))
    for chunk in iter_checked_chunks(scan):
        summed += _to_counts(chunk, scan).sum(axis=0)
    return summed / scan.n_frames


def _to_counts(chunk: np.ndarray, scan: Scan) -> np.ndarray:
    values = chunk.astype(np.float64)
    return np.asarray((values**2 if scan.domain == "amplitude" else values) * scan.mask)


def _lay_out_grid(scan: Scan) -> tuple[float, np.ndarray, np.ndarray]:
    low, high = scan.positions_px.min(axis=0), scan.positions_px.max(axis=0)
    step_px = float(measure_steps(scan.positions_px, scan.scan_id)[0])
    step_px = max(step_px, float((high - low).max()) / _MAX_GRID_EDGE)
    n_y, n_x = (round(float(extent) / step_px) + 1 if step_px > 0 else 1 for extent in (high - low))
    if min(n_y, n_x) < _MIN_GRID_EDGE:
        raise ScanError(
            scan.source,
            None,
            expected=f"positions over an area, for virtual images of {_MIN_GRID_EDGE} points a side",
            found=f"{n_y} x {n_x} points",
            remedy="Use a longer scan.",
        )
    grid_y, grid_x = np.meshgrid(low[0] + step_px * np.arange(n_y), low[1] + step_px * np.arange(n_x), indexing="ij")
    return step_px, grid_y, grid_x


def _turn(center_of_mass_px: np.ndarray, angle: float, swap_xy: bool) -> np.ndarray:
    """Express the centre of mass, a vector on the detector, along the axes of the scan that are turned by an angle."""
    y, x = center_of_mass_px
    along_y, along_x = y * math.cos(angle) - x * math.sin(angle), x * math.cos(angle) + y * math.sin(angle)
    return np.stack([along_x, along_y] if swap_xy else [along_y, along_x])


def _curl(field: np.ndarray) -> np.ndarray:
    """Compute the curl where it is known."""
    curl = np.gradient(field[0], axis=1) - np.gradient(field[1], axis=0)
    return np.asarray(curl[np.isfinite(curl)])


def _find_angle(center_of_mass_px: np.ndarray, swap_xy: bool) -> tuple[float, float]:
    """Return the angle of least curl, and its square over that of the angle of most."""
    cosine, sine = (_curl(_turn(center_of_mass_px, angle, swap_xy)) for angle in (0.0, math.pi / 2))
    # |c cos + s sin|^2 = mean + half the difference at twice the angle.
    mean = (np.vdot(cosine, cosine) + np.vdot(sine, sine)) / 2
    along, across = (np.vdot(cosine, cosine) - np.vdot(sine, sine)) / 2, np.vdot(cosine, sine)
    swing = math.hypot(along, across)
    angle = (math.atan2(across, along) + math.pi) / 2
    return angle, float((mean - swing) / max(mean + swing, 1e-300))


def _measure_skewness(center_of_mass_px: np.ndarray, angle: float, swap_xy: bool) -> float:
    """Measure the skewness of minus the divergence, which is that of the phase's sharp maxima."""
    along_y, along_x = _turn(center_of_mass_px, angle, swap_xy)
    bulge = -(np.gradient(along_y, axis=0) + np.gradient(along_x, axis=1))
    bulge = bulge[np.isfinite(bulge)]
    bulge = bulge - bulge.mean()
    return float((bulge**3).mean() / max(float((bulge**2).mean()) ** 1.5, 1e-300))


def _integrate(field: Float64[np.ndarray, "2 h w"]) -> Float64[np.ndarray, "h w"]:
    """Find the function whose gradient is nearest to a field, by Fourier transform; 0 stands where it is unknown.

    The field is mirrored at its borders, so that its two sides need not be alike.
    Reference: Lazic, Bosch, Lazar, Ultramicroscopy 160, 265 (2016).
    """
    known = np.isfinite(field[0])
    along_y, along_x = (np.where(known, part, 0.0) for part in field)
    along_y = np.block([[along_y, along_y[:, ::-1]], [-along_y[::-1], -along_y[::-1, ::-1]]])
    along_x = np.block([[along_x, -along_x[:, ::-1]], [along_x[::-1], -along_x[::-1, ::-1]]])
    q_y, q_x = np.fft.fftfreq(along_y.shape[0])[:, None], np.fft.fftfreq(along_y.shape[1])[None]
    squared = q_y**2 + q_x**2
    squared[0, 0] = 1.0
    spectrum = (q_y * np.fft.fft2(along_y) + q_x * np.fft.fft2(along_x)) / (2j * math.pi * squared)
    spectrum[0, 0] = 0.0
    height, width = known.shape
    return np.where(known, np.fft.ifft2(spectrum).real[:height, :width], np.nan)
