"""Slices of a thick object while a scan is refined: how far apart they are, how they begin, and their standard form."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Complex
from torch import Tensor

from torchptycho.core.angular_spectrum import compute_depth_of_focus_m
from torchptycho.core.config import RefineConfig
from torchptycho.core.errors import ConfigError
from torchptycho.core.scan import Scan
from torchptycho.physics.multislice import build_gap
from torchptycho.physics.propagation import Propagator

__all__ = [
    "balance_slices",
    "build_scan_gap",
    "check_slices",
    "choose_spacing_m",
    "compute_gap_depth",
    "judge_spacing",
    "smooth_slices",
    "split_into_slices",
]


def check_slices(config: RefineConfig, scan: Scan) -> None:
    """Refuse options that contradict each other, or that need lengths which the scan does not have.

    Raises:
        ConfigError: slices without a distance, a distance without slices, no wavelength or object pixel, or what is not
            made for thick objects.
    """
    if config.n_slices == 1:
        given = [name for name in ("slice_spacing_m", "thickness_m", "slice_smoothing") if getattr(config, name)]
        if given:
            raise ConfigError(
                f"{given[0]}: expected none for a thin object; found {getattr(config, given[0]):g}. Set "
                "n_slices to 2 or more."
            )
        return
    choose_spacing_m(config, scan)
    if config.regularization == "learned":
        raise ConfigError(
            f"regularization: expected tv, none or auto with {config.n_slices} slices; found learned, which knows thin "
            "objects. Choose one of the others."
        )
    if config.prior_weights is not None:
        raise ConfigError(
            f"prior_weights: expected none with {config.n_slices} slices; found {config.prior_weights}, of a prior "
            "that knows thin objects. Leave it out."
        )
    if config.regularization == "tv" and config.regularization_strength is None:
        raise ConfigError(
            f"regularization_strength: expected a number with tv and {config.n_slices} slices; found none, and "
            "held-out counts choose one for thin objects only. Give it."
        )
    if config.position_search_px:
        raise ConfigError(
            f"position_search_px: expected 0 with {config.n_slices} slices; found {config.position_search_px:g}. "
            "Search with one slice, and start from its image."
        )


def choose_spacing_m(config: RefineConfig, scan: Scan) -> float | None:
    """Return the distance between neighbouring slices; None for a thin object.

    Raises:
        ConfigError: it is not given, or twice, or the scan lacks the wavelength or the object pixel.
    """
    if config.n_slices == 1:
        return None
    pixel_m, wavelength_m = scan.geometry.with_object_pixel(scan.n_px).object_pixel_m, scan.geometry.wavelength_m
    if wavelength_m is None:
        raise ConfigError(
            f"{scan.source}: n_slices: expected a scan with a wavelength; found none. Give it with --energy-eV."
        )
    if pixel_m is None:
        raise ConfigError(
            f"{scan.source}: n_slices: expected a scan with an object pixel in metres; found none. Give it with "
            "--object-pixel-m, or with --distance-m and --detector-pixel-m."
        )
    given = [name for name in ("slice_spacing_m", "thickness_m") if getattr(config, name)]
    if len(given) != 1:
        found = "none" if not given else "both"
        raise ConfigError(
            f"{scan.source}: n_slices: expected slice_spacing_m or thickness_m with {config.n_slices} slices; found "
            f"{found}. The depth of focus is {compute_depth_of_focus_m(pixel_m, wavelength_m):.3g} m; slices that are "
            "closer are hardly distinguished."
        )
    if config.thickness_m is not None:
        return config.thickness_m / (config.n_slices - 1)
    return config.slice_spacing_m


def build_scan_gap(
    scan: Scan, spacing_m: float | None, *, dtype: torch.dtype, device: torch.device
) -> Propagator | None:
    """Build the propagator from one slice to the next; None for a thin object."""
    pixel_m, wavelength_m = scan.geometry.with_object_pixel(scan.n_px).object_pixel_m, scan.geometry.wavelength_m
    if spacing_m is None or pixel_m is None or wavelength_m is None:
        return None
    return build_gap(scan.n_px, pixel_m, wavelength_m, spacing_m, dtype=dtype, device=device)


def compute_gap_depth(scan: Scan, spacing_m: float | None) -> float:
    """Compute the distance between slices in units of p^2 / lambda; 0 for a thin object."""
    pixel_m, wavelength_m = scan.geometry.with_object_pixel(scan.n_px).object_pixel_m, scan.geometry.wavelength_m
    if spacing_m is None or pixel_m is None or wavelength_m is None:
        return 0.0
    return spacing_m * wavelength_m / pixel_m**2


def judge_spacing(gap_depth: float, n_px: int, source: str) -> str | None:
    """Say that light leaves the frames between slices, where the propagator leaves it out; None if it does not.

    Light of the largest sampled angle moves by half a frame over N p^2 / lambda.
    Reference: Matsushima, Shimobaba, Opt. Express 17, 19662 (2009).

    Arguments:
        gap_depth: distance between slices in units of p^2 / lambda.
        source: the scan, for the message.
    """
    if gap_depth <= n_px:
        return None
    return (
        f"{source}: slice_spacing_m: light of large angles leaves the frames between slices and is left out, because "
        f"they are {gap_depth / n_px:.3g} times as far apart as frames of {n_px} px allow. Check the unit (metres), or "
        "put more slices between them."
    )


def split_into_slices(object: Complex[Tensor, "h w"], n_slices: int) -> Complex[Tensor, "*slices h w"]:
    """Copy an object into slices, each its root: of the amplitude, and of the phase between -pi and pi.

    Their product is the object. One slice is the object itself.
    """
    if n_slices == 1:
        return object
    root = torch.polar(object.abs() ** (1 / n_slices), object.angle() / n_slices)
    return root.expand(n_slices, -1, -1).contiguous()


def smooth_slices(
    slices: Complex[Tensor, "s h w"], probe: Complex[Tensor, "p n n"], depth_px: float, strength: float
) -> Complex[Tensor, "s h w"]:
    """Low-pass along the depth: reduce differences between slices at spatial frequencies where the counts hardly
    distinguish the slices.

    Seen under an angle, structure of lateral frequency q moves by lambda k d from one slice to the next, k being the
    lateral frequency of the light: a wave of frequency f along the depth is distinguished where f < lambda q k. It is
    multiplied by 1 - strength (1 - 1 / (1 + (f / lambda q k)^2)), with the root mean square k of the probe along an
    axis.
    Reference: Thibault and others' missing wedge, as in Tsai et al., Opt. Express 24, 29089 (2016).

    Arguments:
        depth_px: lambda d / p^2, the distance between slices in units of p^2 / lambda.
        strength: 0 to 1.
    """
    n_slices, height, width = slices.shape
    far = torch.fft.fft2(probe).abs().square().sum(0)
    k = torch.fft.fftfreq(probe.shape[-1], device=probe.device, dtype=far.dtype)
    spread = ((far.sum(0) + far.sum(1)) @ k.square() / (2 * far.sum())).sqrt()
    rows, columns = (torch.fft.fftfreq(edge, device=probe.device, dtype=far.dtype) for edge in (height, width))
    lateral = (rows[:, None].square() + columns.square()).sqrt() * spread * depth_px
    order, place = (torch.arange(n_slices, device=probe.device, dtype=far.dtype) for _ in range(2))
    waves = (2 / n_slices) ** 0.5 * torch.cos(math.pi / n_slices * (place[:, None] + 0.5) * order)
    waves[:, 0] *= 0.5**0.5
    depth = (order / (2 * n_slices))[:, None, None]
    kept = lateral.square() / (lateral.square() + depth.square()).clamp_min(1e-30)
    kept[0] = 1
    spectrum = torch.fft.fft2(torch.tensordot(waves.mT.to(slices.dtype), slices, 1))
    spectrum = spectrum * (1 - strength * (1 - kept))
    smoothed: Tensor = torch.tensordot(waves.to(slices.dtype), torch.fft.ifft2(spectrum), 1)
    return smoothed


def balance_slices(
    object: Complex[np.ndarray, "slices h w"], valid: Bool[np.ndarray, "h w"]
) -> Complex[np.ndarray, "slices h w"]:
    """Give all slices the same mean amplitude and mean phase; their product does not change.

    A factor of one slice and its inverse of another leave every exit wave as it is.
    """
    if not valid.any():
        return object
    means = object[:, valid].mean(1, dtype=np.complex128)
    sizes = np.sqrt((np.abs(object[:, valid].astype(np.complex128)) ** 2).mean(1))
    phases = np.angle(means)
    factors = math.exp(np.log(np.maximum(sizes, 1e-30)).mean()) / np.maximum(sizes, 1e-30)
    factors = factors * np.exp(-1j * (phases - phases.mean()))
    balanced: np.ndarray = (object * factors[:, None, None]).astype(object.dtype)
    return balanced
