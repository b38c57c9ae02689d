"""Where the frames really are: a Gauss-Newton step for each, of its own or as part of an affine change of the scan."""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float, Float64, Int64
from torch import Tensor

from torchptycho.physics.patches import slopes

__all__ = ["Shifts", "linear_part"]


def linear_part(shift_px: Float64[Tensor, "m 2"], positions_px: Float64[Tensor, "m 2"]) -> Float64[Tensor, "m 2"]:
    """What of these shifts is one linear map of all positions about their centre, in least squares."""
    away = positions_px - positions_px.mean(0)
    part: Tensor = away @ torch.linalg.lstsq(away, shift_px - shift_px.mean(0)).solution
    return part


class Shifts:
    """Collects for each frame the shift that brings its exit wave nearest to where the counts want it.

    With J the exit wave's derivatives by the frame's position, (J^H J) shift = J^H change; its 2x2 curvature is kept,
    so that frames that know nothing of their place have no say in a common change.
    """

    def __init__(self, n_frames: int, device: torch.device) -> None:
        self._curvature = torch.zeros(n_frames, 2, 2, dtype=torch.float64, device=device)
        self._slope = torch.zeros(n_frames, 2, dtype=torch.float64, device=device)

    def add(
        self,
        index: Int64[Tensor, " k"],
        object: Complex[Tensor, "h w"],
        probe: Complex[Tensor, "p n n"],
        corners_px: Float[Tensor, "k 2"],
        exit_change: Complex[Tensor, "k p n n"],
    ) -> None:
        """One batch of frames, at the estimate that `exit_change` was computed for."""
        power = (probe.real.square() + probe.imag.square()).sum(0)
        wish = (exit_change * probe.conj()).sum(1)
        dy, dx = slopes(object, corners_px, probe.shape[-1])
        columns = torch.stack([dy, dx], 1)
        weighted = torch.view_as_real(columns * power).flatten(2)
        plain = torch.view_as_real(columns).flatten(2)
        self._curvature[index] = (weighted @ plain.mT).double()
        self._slope[index] = (plain @ torch.view_as_real(wish).flatten(1)[..., None])[..., 0].double()

    def of_frames(self, longest_px: float) -> Float64[Tensor, "m 2"]:
        """Each frame's own shift, no longer than this, without their mean, which is the object's."""
        shift = torch.linalg.solve(self._damped(), self._slope)
        length = shift.norm(dim=1, keepdim=True).clamp_min(1e-12)
        shift = shift * (longest_px / length).clamp_max(1)
        centred: Tensor = shift - shift.mean(0)
        return centred

    def affine(self, positions_px: Float64[Tensor, "m 2"], longest_px: float) -> Float64[Tensor, "m 2"]:
        """The shifts of one linear map of all positions about their centre: scale, rotation, shear; bounded.

        The least squares of all frames at once: sum_j X_j^T C_j X_j a = sum_j X_j^T s_j, with shift_j = X_j a.
        """
        away = positions_px - positions_px.mean(0)
        design = torch.zeros(len(away), 2, 4, dtype=away.dtype, device=away.device)
        design[:, 0, :2], design[:, 1, 2:] = away, away
        normal = torch.einsum("mia,mij,mjb->ab", design, self._curvature, design)
        wanted = torch.einsum("mia,mi->a", design, self._slope)
        ridge = 1e-6 * normal.diagonal().mean() * torch.eye(4, dtype=away.dtype, device=away.device)
        shift = torch.einsum("mia,a->mi", design, torch.linalg.solve(normal + ridge, wanted))
        bounded: Tensor = shift * (longest_px / shift.norm(dim=1).max().clamp_min(1e-12)).clamp_max(1)
        return bounded

    def _damped(self) -> Tensor:
        size = self._curvature.diagonal(dim1=1, dim2=2).mean()
        return self._curvature + (1e-3 * size + 1e-30) * torch.eye(2, dtype=torch.float64, device=size.device)
