"""The prior on an object of any size: global phase, padding and tiles."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional

from torchptycho.models.prior.network import PriorNetwork, measure_amplitude

__all__ = ["apply_prior"]

_TILE_PX, _MARGIN_PX = 512, 80
"""Edge of a tile, and how much of it is cut off at each side: pixels farther away have no influence on what is kept."""


@torch.no_grad()
def apply_prior(
    network: PriorNetwork,
    object: Complex[Tensor, "h w"],
    sigma: Float[Tensor, "h w"],
    *,
    tile_px: int = _TILE_PX,
    average: bool = True,
) -> Complex[Tensor, "h w"]:
    """Return the object with less noise; its global phase and its scale do not matter.

    Arguments:
        sigma: standard deviation of real and imaginary part; may be infinite where there are no photons.
        tile_px: edge of the parts that a larger object is computed in.
        average: take the mean over the object, its mirror image and its conjugate, each turned by a quarter: for four
            times the work a slightly smaller error.
    """
    sigma = sigma.float()
    usable = torch.isfinite(sigma) & torch.isfinite(object)
    if not bool(usable.any()):
        return object
    # Photons tell nothing there; a number instead of infinity keeps its neighbours finite.
    largest = sigma[usable].max()
    sigma = torch.where(usable, sigma, largest)
    noisy = torch.where(usable, object, 0).to(torch.complex64)
    scale = measure_amplitude(noisy[None], sigma[None])[0]
    weight = sigma.clamp_min(1e-12).square().reciprocal()
    mean = (weight * noisy).sum()
    phase_factor = mean / mean.abs() if float(mean.abs()) > 0 else torch.ones_like(mean)
    noisy, sigma = noisy * phase_factor.conj() / scale, sigma / scale
    denoised = torch.zeros_like(noisy)
    views = range(4) if average else range(1)
    for view in views:
        denoised += _from_view(_apply_tiled(network, _to_view(noisy, view), _turn(sigma, view), tile_px), view)
    denoised = denoised / len(views) * phase_factor * scale
    return torch.where(usable, denoised.to(object.dtype), object)


def _apply_tiled(network: PriorNetwork, object: Tensor, sigma: Tensor, tile_px: int) -> Tensor:
    """Compute overlapping tiles, each with the whole object's scale, and keep the middle of each."""
    height, width = object.shape
    if max(height, width) <= tile_px:
        return _apply_padded(network, object, sigma)
    denoised = torch.empty_like(object)
    step = tile_px - 2 * _MARGIN_PX
    for top in range(0, height, step):
        for left in range(0, width, step):
            rows, columns = (
                slice(max(0, start - _MARGIN_PX), min(extent, start + step + _MARGIN_PX))
                for start, extent in ((top, height), (left, width))
            )
            tile = _apply_padded(network, object[rows, columns], sigma[rows, columns])
            kept = tile[top - rows.start : top - rows.start + step, left - columns.start : left - columns.start + step]
            denoised[top : top + step, left : left + step] = kept
    return denoised


def _apply_padded(network: PriorNetwork, object: Tensor, sigma: Tensor) -> Tensor:
    """Repeat the edges up to a size that the network takes."""
    height, width = object.shape
    multiple = network.multiple_px
    below, right = -height % multiple, -width % multiple
    parts = torch.stack([object.real, object.imag, sigma])[None]
    real, imaginary, noise = functional.pad(parts, (0, right, 0, below), mode="replicate")[0]
    denoised: Tensor = network(torch.complex(real, imaginary)[None], noise[None], scale=noise.new_ones(1, 1, 1))[0]
    return denoised[:height, :width]


def _turn(values: Tensor, view: int) -> Tensor:
    return torch.rot90(values, view, (0, 1)) if view % 2 == 0 else torch.rot90(values, view, (0, 1)).flip(1)


def _turn_back(values: Tensor, view: int) -> Tensor:
    return torch.rot90(values if view % 2 == 0 else values.flip(1), -view, (0, 1))


def _to_view(object: Tensor, view: int) -> Tensor:
    turned = _turn(object, view) * 1j**view
    return turned.conj().resolve_conj() if view >= 2 else turned


def _from_view(object: Tensor, view: int) -> Tensor:
    plain = object.conj().resolve_conj() if view >= 2 else object
    return _turn_back(plain * (1j**-view), view)
