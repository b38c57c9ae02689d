"""A canvas for positions that are not known in advance."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, distributed

from torchptycho.core.reconstruction import Reconstruction
from torchptycho.reconstructors.canvas import Canvas, compute_extent

__all__ = ["GrowingCanvas"]


class GrowingCanvas(Canvas):
    """A `Canvas` that grows in tiles as patches arrive; its image equals that of a canvas made for all positions.

    Arguments:
        device: where it is kept, and where patches must be.
        with_spread: also sum the squares that `spread` is computed from.
        tile_px: its edges are multiples of this.
        largest_px: longest edge. Patches that would make it longer are not placed: a wrong position must not take all
            memory.
    """

    def __init__(
        self,
        device: torch.device | str | None = None,
        *,
        with_spread: bool = True,
        tile_px: int = 256,
        largest_px: int = 16384,
    ) -> None:
        if not 0 < 4 * tile_px <= largest_px:
            raise ValueError(f"largest_px: expected at least four tiles of {tile_px} px; found {largest_px}")
        super().__init__((0, 0), (0, 0), device, with_spread=with_spread)
        self._tile_px, self._largest_px = tile_px, largest_px
        self._center_px: Tensor | None = None
        self._used_px: tuple[tuple[int, int], tuple[int, int]] | None = None

    @property
    def used_px(self) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """First object pixel (y, x) under any patch so far, and the one after the last; None before the first patch."""
        return self._used_px

    def add(
        self,
        patches: Complex[Tensor, "k n n"],
        positions_px: Float[Tensor, "k 2"],
        weight: Float[Tensor, "*weight_k n n"],
    ) -> Bool[Tensor, " k"]:
        """Add patches as `Canvas.add` does, and grow where there is no space.

        Returns:
            Which patches were placed. Left out are, besides those that are not finite, patches at positions that are
            not finite or lie farther than half of `largest_px` from the middle of those that came first.
        """
        placed = torch.zeros(len(patches), dtype=torch.bool, device=patches.device)
        # Patches that are not finite must not enlarge the canvas: their positions may be wrong too.
        good = self._select_within_reach(positions_px.double(), patches.shape[-1])
        good &= torch.view_as_real(patches).isfinite().flatten(1).all(-1)
        if bool(good.any()):
            self._grow_to(*compute_extent(positions_px[good].double(), patches.shape[-1]))
            good_weight = weight if weight.dim() == 2 else weight[good]
            placed[good] = super().add(patches[good], positions_px[good], good_weight)
        return placed

    def __add__(self, other: Canvas) -> GrowingCanvas:
        """Add the canvases of two sets of patches, wherever they are.

        Raises:
            ValueError: the other one does not grow, or only one of them has a spread.
        """
        if not isinstance(other, GrowingCanvas) or (self._squares is None) != (other._squares is None):
            raise ValueError("expected two growing canvases, both with or both without a spread")
        total = GrowingCanvas(
            self.device, with_spread=self._squares is not None, tile_px=self._tile_px, largest_px=self._largest_px
        )
        for part in (self, other):
            if part._used_px is not None:
                total._center_px = part._center_px if total._center_px is None else total._center_px
                total._grow_to(*part._used_px)
        total.paste(self)
        total.paste(other)
        return total

    def all_reduce(self, group: distributed.ProcessGroup | None = None) -> None:
        """Become, in place and on every process, the canvas of the patches of all processes of a group."""
        far = 2**40
        low, high = self._used_px or ((far, far), (-far, -far))
        # One reduction for both: the maximum of -low and of high.
        ends = torch.tensor([*(-side for side in low), *high], dtype=torch.int64, device=self.device)
        distributed.all_reduce(ends, distributed.ReduceOp.MAX, group=group)
        top, left, bottom, right = ends.tolist()
        if bottom == -far:
            return
        self._grow_to((-top, -left), (bottom, right))
        super().all_reduce(group)

    def _select_within_reach(self, positions_px: Tensor, n_px: int) -> Bool[Tensor, " k"]:
        """Select positions in reach of those that came first."""
        finite = positions_px.isfinite().all(-1)
        if self._center_px is None and bool(finite.any()):
            # The median, computed by sorting because CUDA has no deterministic algorithm for it.
            first = positions_px[finite].sort(0).values
            self._center_px = first[(len(first) - 1) // 2]
        if self._center_px is None:
            return finite
        reach = (self._largest_px - n_px) // 2 - self._tile_px - 1
        return finite & ((positions_px - self._center_px).abs() <= reach).all(-1)

    def _grow_to(self, low: tuple[int, int], high: tuple[int, int]) -> None:
        if self._used_px is not None:
            low = (min(low[0], self._used_px[0][0]), min(low[1], self._used_px[0][1]))
            high = (max(high[0], self._used_px[1][0]), max(high[1], self._used_px[1][1]))
        self._used_px = (low, high)
        first = tuple(side // self._tile_px * self._tile_px for side in low)
        last = tuple(-(-side // self._tile_px) * self._tile_px for side in high)
        size = (last[0] - first[0], last[1] - first[1])
        if (first, size) != (self.origin_px, self.shape):
            larger = Canvas(size, (first[0], first[1]), self.device, with_spread=self._squares is not None)
            larger.paste(self)
            self._take_over(larger)

    def finish(self, object_pixel_m: float | None = None, provenance: dict[str, Any] | None = None) -> Reconstruction:
        """Return the image of all patches so far, without the empty parts of its tiles.

        Raises:
            ValueError: nothing was placed.
        """
        return self.crop().finish(object_pixel_m, provenance)

    def crop(self) -> Canvas:
        """Return a copy without the empty parts of its tiles: the canvas of the positions that were placed.

        Raises:
            ValueError: nothing was placed.
        """
        if self._used_px is None:
            raise ValueError("no patch was placed on the canvas")
        low, high = self._used_px
        part = Canvas((high[0] - low[0], high[1] - low[1]), low, self.device, with_spread=self._squares is not None)
        part.paste(self)
        return part
