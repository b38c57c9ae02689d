"""The canvas: patches in, their weighted average out."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Complex, Complex128, Float, Float64
from torch import Tensor, distributed

from torchptycho.core.reconstruction import MIN_COVERAGE, Reconstruction
from torchptycho.io.field import check_field
from torchptycho.physics.exact_sums import QUANTUM, add_blocks, round_to_quanta, shift_blocks

__all__ = ["MIN_COVERAGE", "Canvas", "compute_extent"]

# Pixels processed at a time: on a CPU few enough for its cache, on a GPU enough to occupy it, in some hundred MB.
_CPU_CHUNK_PIXELS, _GPU_CHUNK_PIXELS = 1 << 17, 1 << 22
# Sub-pixel interpolation may write zeros one row and one pixel beyond the canvas.
_SPARE_ROWS = 2
# Largest rounding error of the sums of some hundred patches at one pixel.
_ROUNDING = 256 * QUANTUM


class Canvas:
    """Sums of weighted patches and of their weights, at absolute positions. Canvases of the same size and origin add.

    The sums are bit-identical for any order and batches of the patches, on several processes and on a GPU (see
    `physics.exact_sums`), as long as neither the weights of a pixel nor their products with the patches sum to more
    than 8,000. Weights and patches should be of order 1: the sums are multiples of 2^-40.

    Arguments:
        shape: (H, W) pixels.
        origin_px: (y, x) object pixel of [0, 0].
        device: of the sums and of the patches.
        with_spread: also sum the squares, for `spread`.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        origin_px: tuple[int, int],
        device: torch.device | str | None = None,
        *,
        with_spread: bool = True,
    ) -> None:
        self.origin_px = origin_px
        self._height = shape[0]
        self._lock = threading.Lock()
        rows = (shape[0] + _SPARE_ROWS, shape[1])
        self._numerator = torch.zeros(*rows, 2, dtype=torch.float64, device=device)
        self._weight = torch.zeros(rows, dtype=torch.float64, device=device)
        self._squares = torch.zeros(rows, dtype=torch.float64, device=device) if with_spread else None

    @classmethod
    def for_positions(
        cls,
        positions_px: Float[Tensor, "m 2"],
        n_px: int,
        device: torch.device | str | None = None,
        *,
        with_spread: bool = True,
    ) -> Canvas:
        """Create an empty canvas that holds every patch of n_px pixels at these positions.

        Raises:
            ScanError: a position lies so far away that the canvas would be empty.
        """
        check_field(positions_px.double().cpu().numpy(), n_px, "canvas", ("positions", "positions"))
        low, high = compute_extent(positions_px.double(), n_px)
        return cls((high[0] - low[0], high[1] - low[1]), low, device, with_spread=with_spread)

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) pixels."""
        return (self._height, int(self._weight.shape[1]))

    @property
    def device(self) -> torch.device:
        return self._weight.device

    @property
    def numerator(self) -> Complex128[Tensor, "h w"]:
        """Sum of weight * patch, not a copy."""
        return torch.view_as_complex(self._numerator)[: self._height]

    @property
    def weight(self) -> Float64[Tensor, "h w"]:
        """Sum of weights, not a copy."""
        return self._weight[: self._height]

    def add(
        self,
        patches: Complex[Tensor, "k n n"],
        positions_px: Float[Tensor, "k 2"],
        weight: Float[Tensor, "*weight_k n n"],
    ) -> Bool[Tensor, " k"]:
        """Accumulate patches in place, bilinearly at sub-pixel positions, touching their own pixels only.

        Products are in the precision of patches and weight, sums in float64. Several threads may add at once.

        Arguments:
            patches: object patches.
            positions_px: (y, x) of each patch's pixel N/2.
            weight: not negative; one for all patches, or [K, N, N].

        Returns:
            Mask of the placed patches; patches with non-finite values are left out.

        Raises:
            ValueError: a patch is outside the canvas, which was made for other positions; nothing is placed.
        """
        n_px = patches.shape[-1]
        # Split before the origin is subtracted, because the rounding of the difference would change the fraction.
        base = positions_px.double().floor()
        fraction = positions_px.double() - base
        base = base - base.new_tensor([origin + n_px // 2 for origin in self.origin_px])
        room = base.new_tensor(self.shape) - n_px
        outside = ~((base >= 0) & (base + fraction <= room)).all(-1)  # so written, NaN is outside too
        if bool(outside.any()):
            first = positions_px[outside][0].tolist()
            raise ValueError(f"{int(outside.sum())} patches fall outside the canvas, the first at (y, x) = {first}")
        if not len(patches):
            return outside
        at_once = max(1, (_GPU_CHUNK_PIXELS if patches.is_cuda else _CPU_CHUNK_PIXELS) // n_px**2)
        placed = []
        for start in range(0, len(patches), at_once):
            chunk = slice(start, start + at_once)
            chunk_weight = weight if weight.dim() == 2 else weight[chunk]
            placed.append(self._place(patches[chunk], base[chunk].long(), fraction[chunk], chunk_weight))
        return torch.cat(placed)

    def _place(self, patches: Tensor, base: Tensor, fraction: Tensor, weight: Tensor) -> Bool[Tensor, " k"]:
        weight = weight.expand(patches.shape)
        numerator = shift_blocks(torch.view_as_real(patches) * weight[..., None], fraction).double()
        finite = torch.ones(len(patches), dtype=torch.bool, device=patches.device)
        if not bool(numerator.sum().isfinite()):
            finite = numerator.isfinite().flatten(1).all(-1)
            numerator, base, fraction, weight = numerator[finite], base[finite], fraction[finite], weight[finite]
        total = shift_blocks(weight, fraction).double()
        terms: list[tuple[Tensor, Tensor]] = []
        if self._squares is not None:
            # The interpolated contribution of a patch to a pixel counts as one value with its summed weight.
            squares = numerator[..., 0] * numerator[..., 0]
            squares += numerator[..., 1] * numerator[..., 1]
            # 0/0 where there is no weight.
            squares.div_(total).nan_to_num_(0.0, 0.0, 0.0)
            terms.append((self._squares, round_to_quanta(squares)))
        terms += [(self._numerator, round_to_quanta(numerator)), (self._weight, round_to_quanta(total))]
        with self._lock:
            for sums, blocks in terms:
                add_blocks(sums, blocks, base)
        return finite

    @property
    def _sums(self) -> Iterator[Tensor]:
        yield from (self._numerator, self._weight)
        if self._squares is not None:
            yield self._squares

    def __add__(self, other: Canvas) -> Canvas:
        """Add the canvases of two sets of patches.

        Raises:
            ValueError: the two differ in place or size, or only one of them has a spread.
        """
        if (self.origin_px, self.shape) != (other.origin_px, other.shape):
            raise ValueError(
                f"canvases at {self.origin_px} {self.shape} and {other.origin_px} {other.shape} do not cover the same "
                "pixels"
            )
        if (self._squares is None) != (other._squares is None):
            raise ValueError("canvases with and without spread do not add")
        total = Canvas(self.shape, self.origin_px, self.device, with_spread=self._squares is not None)
        for to, one, two in zip(total._sums, self._sums, other._sums, strict=True):
            torch.add(one, two, out=to)
        return total

    def paste(self, other: Canvas) -> None:
        """Add, in place, the common pixels of another canvas on the same device."""
        first = [max(pair) for pair in zip(self.origin_px, other.origin_px, strict=True)]
        last = [
            min(here + extent, there + size)
            for here, extent, there, size in zip(self.origin_px, self.shape, other.origin_px, other.shape, strict=True)
        ]
        if not all(low < high for low, high in zip(first, last, strict=True)):
            return
        to, source = (
            tuple(slice(low - o, high - o) for low, high, o in zip(first, last, canvas.origin_px, strict=True))
            for canvas in (self, other)
        )
        for sums, theirs in zip(self._sums, other._sums, strict=True):
            sums[to] += theirs[source]

    def to_sums(self) -> dict[str, Tensor]:
        """Return the sums as plain tensors on the CPU, to be saved and restored by `from_sums`."""
        names = ("numerator", "weight", "squares")
        tensors = {name: sums[: self._height].cpu() for name, sums in zip(names, self._sums, strict=False)}
        return tensors | {"origin_px": torch.tensor(self.origin_px)}

    @classmethod
    def from_sums(cls, sums: dict[str, Tensor], device: torch.device | str | None = None) -> Canvas:
        """Build a canvas from the result of `to_sums`."""
        height, width = sums["weight"].shape
        top, left = sums["origin_px"].tolist()
        canvas = cls((height, width), (top, left), device, with_spread="squares" in sums)
        for name, to in zip(("numerator", "weight", "squares"), canvas._sums, strict=False):
            to[:height] = sums[name].to(to.device)
        return canvas

    def _take_over(self, other: Canvas) -> None:
        self.origin_px, self._height = other.origin_px, other._height
        self._numerator, self._weight, self._squares = other._numerator, other._weight, other._squares

    def all_reduce(self, group: distributed.ProcessGroup | None = None) -> None:
        """Sum the canvases of all processes of a group, in place on every process.

        Each process must call it, with a canvas for the same positions. The result is bit-identical to that of one
        process.
        """
        for sums in self._sums:
            distributed.all_reduce(sums, group=group)

    def finish(self, object_pixel_m: float | None = None, provenance: dict[str, Any] | None = None) -> Reconstruction:
        """Divide the sums; return the image with its coverage and valid pixels.

        Raises:
            ValueError: no patch was placed, or the sums are not finite.
        """
        weight = self.weight.cpu().numpy()
        peak = float(weight.max()) if weight.size else 0.0
        if not 0 < peak < math.inf:
            raise ValueError(f"no patch was placed on the canvas (largest weight {peak})")
        covered = weight > 1e-9 * peak
        image = np.divide(self.numerator.cpu().numpy(), weight, out=np.zeros(weight.shape, complex), where=covered)
        coverage = (weight / peak).astype(np.float32)
        spread = None
        if self._squares is not None:
            squares = self._squares[: self._height].cpu().numpy()
            mean = np.divide(squares, weight, out=np.zeros(weight.shape), where=covered)
            square = image.real**2 + image.imag**2
            # For a single patch the two differ only by the rounding of their sums.
            rounded = np.divide(_ROUNDING, weight, out=np.zeros(weight.shape), where=covered) * (1 + square)
            spread = np.sqrt(np.where(mean - square > rounded, mean - square, 0)).astype(np.float32)
        return Reconstruction(
            object=image.astype(np.complex64),
            coverage=coverage,
            valid=coverage >= MIN_COVERAGE,
            origin_px=self.origin_px,
            object_pixel_m=object_pixel_m,
            provenance=provenance or {},
            spread=spread,
        )


def compute_extent(positions_px: Float64[Tensor, "m 2"], n_px: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the first object pixel under any patch, and the end of the range, one spare pixel included."""
    # Rounded down before the subtraction: -1e-20 - 32 rounds to -32, and the canvas would start too late.
    low = positions_px.amin(0).floor() - n_px // 2
    high = positions_px.amax(0).floor() - n_px // 2 + n_px + 1
    (top, left), (bottom, right) = low.tolist(), high.tolist()
    return (int(top), int(left)), (int(bottom), int(right))
