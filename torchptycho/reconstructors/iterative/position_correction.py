"""Where the frames really are: a Gauss-Newton step for each, of its own or as part of an affine change of the scan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Complex, Float, Float64, Int64
from torch import Tensor

from torchptycho.physics.multislice import propagate_object_change
from torchptycho.physics.patches import extract_derivatives
from torchptycho.physics.propagation import Propagator
from torchptycho.reconstructors.iterative.reducer import Reducer

__all__ = ["PositionSteps", "add_momentum", "fit_linear_part", "random_search"]

# Momentum, because the object adapts to wrong positions, so that single steps are too short.
_MOMENTUM = 0.9
# Step limit of the affine correction: it moves the frames at the edge of the field most, and may exceed the limit of
# single frames.
_AFFINE_STEP_FACTOR = 4.0
# Misfit, relative to the median, above which a frame is tried at other positions, and the improvement that a new
# position needs.
_LOST_RATIO, _ACCEPT_RATIO = 3.0, 0.8
# A frame is apart when its nearest other one is this many times as far as that of the median frame.
_APART = 2.5
MIN_TRIALS = 8
"""Places at which a lost frame is tried in an epoch."""
_MAX_TRIALS = 64


def plan_trials(n_lost: int, n_frames: int) -> int:
    """Plan as many trials for each lost frame as take half of the time of an epoch together, within limits."""
    return min(_MAX_TRIALS, max(MIN_TRIALS, n_frames // (2 * max(1, n_lost))))


def fit_linear_part(shift_px: Float64[Tensor, "m 2"], positions_px: Float64[Tensor, "m 2"]) -> Float64[Tensor, "m 2"]:
    """Fit one linear map of all positions about their centre to these shifts, in least squares."""
    away = positions_px - positions_px.mean(0)
    # By the pseudoinverse, because frames on a line or at one position do not determine the whole map.
    part: Tensor = away @ (torch.linalg.pinv(away.T @ away, hermitian=True) @ (away.T @ (shift_px - shift_px.mean(0))))
    return part


def add_momentum(
    step_px: Float64[Tensor, "m 2"],
    drift_px: Float64[Tensor, "m 2"],
    positions_px: Float64[Tensor, "m 2"],
    longest_px: float,
) -> Float64[Tensor, "m 2"]:
    """Add momentum to a step: no frame moves farther than `longest_px`, the whole scan at most four times as far.

    Without it a scale that is off by a few percent needs hundreds of epochs: the object that was fitted to the wrong
    positions agrees with most of the error.
    """
    drift = step_px + _MOMENTUM * drift_px
    common = fit_linear_part(drift, positions_px)
    separate = drift - drift.mean(0) - common
    reach = common.norm(dim=1).max().clamp_min(1e-12)
    common = common * (_AFFINE_STEP_FACTOR * longest_px / reach).clamp_max(1)
    bounded: Tensor = common + separate * (longest_px / separate.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(
        1
    )
    return bounded


class PositionSteps:
    """Collects for each frame the shift that brings its exit wave nearest to where the counts want it.

    With J the exit wave's derivatives by the frame's position, (J^H J) shift = J^H change; its 2x2 curvature is kept,
    so that frames that know nothing of their place have no say in a common change.
    """

    def __init__(self, n_frames: int, device: torch.device) -> None:
        self._curvature = torch.zeros(n_frames, 2, 2, dtype=torch.float64, device=device)
        self._slope = torch.zeros(n_frames, 2, dtype=torch.float64, device=device)
        self.residual = torch.zeros(n_frames, dtype=torch.float64, device=device)
        """[M] squared change that the counts ask of each frame's exit waves: how badly it fits."""

    def add(
        self,
        index: Int64[Tensor, " k"],
        slices: Complex[Tensor, "slices h w"],
        patches: Complex[Tensor, "slices k n n"],
        incident: Sequence[Complex[Tensor, "..."]],
        corners_px: Float[Tensor, "k 2"],
        changes: Sequence[Complex[Tensor, "k p n n"]],
        gap: Propagator | None = None,
    ) -> None:
        """Add one batch of frames, at the estimate that the changes were computed for.

        Arguments:
            slices: of the object.
            patches: of each slice.
            incident: waves in front of each slice.
            changes: of each frame's waves behind each slice.
            gap: from one slice to the next.
        """
        exit_change = changes[-1]
        self.residual[index] = exit_change.abs().square().sum((1, 2, 3)).double()
        if len(slices) > 1:
            self._add_thick(index, slices, patches, incident, corners_px, exit_change, gap)
            return
        object, probe = slices[0], incident[0]
        power = (probe.real.square() + probe.imag.square()).sum(-3)
        backprojection = (exit_change * probe.conj()).sum(1)
        dy, dx = extract_derivatives(object, corners_px, probe.shape[-1])
        columns = torch.stack([dy, dx], 1)
        weighted = torch.view_as_real(columns * power.unsqueeze(-3)).flatten(2)
        plain = torch.view_as_real(columns).flatten(2)
        self._curvature[index] = (weighted @ plain.mT).double()
        self._slope[index] = (plain @ torch.view_as_real(backprojection).flatten(1)[..., None])[..., 0].double()

    def _add_thick(
        self,
        index: Int64[Tensor, " k"],
        slices: Complex[Tensor, "slices h w"],
        patches: Complex[Tensor, "slices k n n"],
        incident: Sequence[Complex[Tensor, "..."]],
        corners_px: Float[Tensor, "k 2"],
        exit_change: Complex[Tensor, "k p n n"],
        gap: Propagator | None,
    ) -> None:
        """Add frames of a thick object, whose exit wave depends on the position through every slice."""
        of_slices = [extract_derivatives(each, corners_px, patches.shape[-1]) for each in slices]
        columns = [
            torch.view_as_real(propagate_object_change(each, patches, incident, gap)).flatten(1)
            for each in zip(*of_slices, strict=True)
        ]
        design = torch.stack(columns, 1)
        self._curvature[index] = (design @ design.mT).double()
        self._slope[index] = (design @ torch.view_as_real(exit_change).flatten(1)[..., None])[..., 0].double()

    def add_others(self, reducer: Reducer) -> None:
        """Add the frames of the other processes."""
        reducer.sum(self.residual, self._curvature, self._slope)

    def solve_per_frame(self) -> Float64[Tensor, "m 2"]:
        """Solve for each frame's own shift."""
        shift: Tensor = torch.linalg.solve(self._regularize_curvature(), self._slope)
        return shift

    def solve_affine(self, positions_px: Float64[Tensor, "m 2"]) -> Float64[Tensor, "m 2"]:
        """Solve for the shifts of one linear map of all positions about their centre: scale, rotation, shear.

        The least squares of all frames at once: sum_j X_j^T C_j X_j a = sum_j X_j^T s_j, with shift_j = X_j a.
        """
        away = positions_px - positions_px.mean(0)
        design = torch.zeros(len(away), 2, 4, dtype=away.dtype, device=away.device)
        design[:, 0, :2], design[:, 1, 2:] = away, away
        normal = torch.einsum("mia,mij,mjb->ab", design, self._curvature, design)
        right_side = torch.einsum("mia,mi->a", design, self._slope)
        ridge = (1e-6 * normal.diagonal().mean() + 1e-30) * torch.eye(4, dtype=away.dtype, device=away.device)
        return torch.einsum("mia,a->mi", design, torch.linalg.solve(normal + ridge, right_side))

    def _regularize_curvature(self) -> Tensor:
        size = self._curvature.diagonal(dim1=1, dim2=2).mean()
        return self._curvature + (1e-3 * size + 1e-30) * torch.eye(2, dtype=torch.float64, device=size.device)


def measure_nearest(
    places_px: Float64[Tensor, "k 2"],
    positions_px: Float64[Tensor, "m 2"] | None = None,
    frames: Int64[Tensor, " k"] | None = None,
) -> Float64[Tensor, " k"]:
    """Measure how far the nearest other frame is from each place.

    Arguments:
        positions_px: of all frames; None where the places are those.
        frames: that are at these places, and are no others to themselves.
    """
    from scipy.spatial import cKDTree

    places = places_px.cpu().numpy()
    if positions_px is None or frames is None:
        positions, own = places, np.arange(len(places))
    else:
        positions, own = positions_px.cpu().numpy(), frames.cpu().numpy()
    distances, numbers = cKDTree(positions).query(places, k=min(2, len(positions)))
    distances, numbers = distances.reshape(len(places), -1), numbers.reshape(len(places), -1)
    others = np.where(numbers == own[:, None], np.inf, distances)
    return torch.from_numpy(others.min(axis=1)).to(places_px.device)


def random_search(
    measure_misfits: Callable[[Int64[Tensor, " k"], Float64[Tensor, "t k 2"]], Float64[Tensor, "t k"]],
    positions_px: Float64[Tensor, "m 2"],
    given_px: Float64[Tensor, "m 2"],
    residual: Float64[Tensor, " m"],
    reach_px: float,
    generator: torch.Generator,
    *,
    thorough: bool = False,
) -> tuple[Int64[Tensor, " found"], Float64[Tensor, "found 2"]]:
    """Find better positions for frames that are too far off for derivatives to lead them back.

    Those that fit far worse than the median frame are tried at a few random places around where they are and where they
    were said to be; the best is theirs when it is clearly better.
    Reference: Maiden, Humphry, Sarahan, Kraus, Rodenburg, Ultramicroscopy 120, 64 (2012).

    Arguments:
        measure_misfits: how badly these frames fit at each of some positions, in the measure of
            `PositionSteps.residual`.
        positions_px, given_px: where the frames are by now, and where they were said to be.
        residual: how badly each frame fitted in the last pass.
        reach_px: radius to look in.
        generator: of the places, on the CPU.
        thorough: try few lost frames at more places, see `plan_trials`; also those that lie apart from all others, and
            only at places near others.

    Returns:
        which frames moved, and where to.
    """
    bound = _LOST_RATIO * residual.median()
    is_lost, reach_of_others_px = residual > bound, math.inf
    if thorough:
        nearest_px = measure_nearest(positions_px)
        reach_of_others_px = _APART * float(nearest_px.median())
        is_lost = is_lost | (nearest_px > reach_of_others_px)
    lost = torch.nonzero(is_lost).ravel()
    if not len(lost):
        return lost, positions_px[lost]
    n_trials = plan_trials(len(lost), len(residual)) if thorough else MIN_TRIALS
    here = positions_px[lost]
    trials = [here]
    for number in range(n_trials):
        radius, turn = torch.rand(2, len(lost), generator=generator, dtype=torch.float64).to(lost.device)
        direction = torch.stack([(2 * math.pi * turn).sin(), (2 * math.pi * turn).cos()], 1)
        trials.append((here, given_px[lost])[number % 2] + reach_px * radius[:, None] * direction)
    # Together, because each frame is then read once.
    first, *others = measure_misfits(lost, torch.stack(trials))
    place, least = here, _ACCEPT_RATIO * first
    if thorough:
        # A frame away from all others fits what it alone has made of the canvas.
        least = torch.where(nearest_px[lost] > reach_of_others_px, bound, least)
    moved = torch.zeros(len(lost), dtype=torch.bool, device=lost.device)
    for there, misfits in zip(trials[1:], others, strict=True):
        better = misfits < least
        if thorough:
            better = better & (measure_nearest(there, positions_px, lost) < reach_of_others_px)
        place, least = torch.where(better[:, None], there, place), torch.where(better, misfits, least)
        moved = moved | better
    return lost[moved], place[moved]
