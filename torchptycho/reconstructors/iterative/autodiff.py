"""Descent on the Poisson likelihood with automatic derivatives and an optimiser of torch's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from torchptycho.core.config import RefineConfig
from torchptycho.physics.noise import poisson_deviance
from torchptycho.physics.patches import extract
from torchptycho.physics.variable_probe import combine_probe
from torchptycho.reconstructors.iterative.fit import (
    EpochFit,
    ReducedChiSquared,
    compute_wave_correction,
    propagate_to_detector,
)
from torchptycho.reconstructors.iterative.problem import Problem
from torchptycho.reconstructors.iterative.regularization import compute_penalty
from torchptycho.reconstructors.iterative.rpie import choose_batch_size, split_into_batches
from torchptycho.reconstructors.iterative.state import RefinementState
from torchptycho.reconstructors.iterative.variable_probe import MIN_SCALE

__all__ = ["AutodiffSolver", "compute_objective"]


def compute_objective(
    problem: Problem,
    object: Tensor,
    probe: Tensor,
    positions_px: Tensor,
    background: Tensor,
    index: Int64[Tensor, " k"],
    likelihood: str,
    misfit: ReducedChiSquared | None = None,
    counts: Float[Tensor, "k n n"] | None = None,
    variation: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Float[Tensor, ""]:
    """Compute half the deviance of these frames over the mean count, mean over good pixels; differentiable everywhere.

    For the amplitude likelihood it is twice the squared difference of the square roots, whose noise variance is 1/4.

    Arguments:
        object: of a thick object all slices.
        misfit: receives these frames.
        counts: of these frames, where they have been loaded.
        variation: modes, weights and scale of a probe that changes from frame to frame, see `physics.variable_probe`.
    """
    corners_px = problem.compute_corners_px(positions_px[index]).to(object.real.dtype)
    corners_px = corners_px.expand(*object.shape[:-2], -1, -1)
    patches = extract(object, corners_px, problem.n_px)
    if variation is not None:
        modes, weights, scale = variation
        probe = combine_probe(probe, modes, weights[index], scale[index])
    _, intensity = propagate_to_detector(patches, probe, problem.propagator, problem.gap)
    intensity = intensity + background
    counts = problem.load_counts(index) if counts is None else counts
    if misfit is not None:
        compute_wave_correction(intensity.detach(), counts, problem.mask_or_none, "poisson", misfit)
    mean = problem.scaling.photons_per_frame / problem.n_px**2
    if likelihood == "poisson":
        return 0.5 * poisson_deviance(intensity / mean, counts / mean, problem.mask[None], offset=0.5 / mean)
    # Half a count is added because the derivative of the square root at 0 is infinite.
    difference = ((intensity + 0.5).sqrt() - (counts + 0.5).sqrt()) * problem.mask
    return 2 * difference.square().sum() / (problem.mask.sum() * len(index) * mean)


class AutodiffSolver:
    """Holds the parameters in units in which 1 is much, and the optimiser with its memory, over all epochs.

    The optimiser's memory is not part of the state: a resumed run starts without it.
    """

    def __init__(self, problem: Problem, state: RefinementState, config: RefineConfig) -> None:
        self._problem, self._config = problem, config
        mean = problem.scaling.photons_per_frame / problem.n_px**2
        self._units = {
            "object": 1.0,
            "probe": float(state.probe.abs().square().mean().sqrt()),
            "positions_px": config.position_step_px,
            "background": 0.1 * mean,
        }
        wanted = {
            "object": True,
            "probe": config.probe_update,
            "positions_px": config.position_update != "none",
            "background": config.background,
        }
        if state.has_variable_probe:
            self._units |= {"opr_modes": self._units["probe"], "opr_weights": 0.2, "frame_scale": 0.1}
            wanted |= dict.fromkeys(("opr_modes", "opr_weights"), config.opr_modes > 0)
            wanted["frame_scale"] = config.frame_scale
        # L-BFGS needs contiguous tensors, and the decomposition into orthogonal modes does not return such.
        self._parameters = {
            name: _view_as_real(getattr(state, name) / unit)
            .clone(memory_format=torch.contiguous_format)
            .requires_grad_(wanted[name])
            for name, unit in self._units.items()
        }
        self._frozen: set[str] = set()
        self.penalty: Callable[[Tensor], Tensor] | None = None
        """Added to half the deviance of all counts: a function of the object."""
        free = [tensor for tensor in self._parameters.values() if tensor.requires_grad]
        self._optimizer: torch.optim.Optimizer
        if config.optimizer == "adam":
            self._optimizer = torch.optim.Adam(free, lr=config.learning_rate, betas=(0.9, 0.99))
        else:
            self._optimizer = torch.optim.LBFGS(
                free, lr=1.0, max_iter=1, max_eval=8, history_size=10, line_search_fn="strong_wolfe"
            )

    def run_epoch(
        self,
        state: RefinementState,
        order: Int64[Tensor, " m"],
        *,
        rate: float,
        update_probe: bool,
        update_positions: bool,
        update_variation: bool,
    ) -> EpochFit:
        """Run one pass over the frames and return its fit: a step for each batch (Adam), or one for all of them
        (L-BFGS).

        Arguments:
            rate: factor of the learning rate.
        """
        self._frozen = set() if update_probe else {"probe"}
        self._frozen |= set() if update_positions else {"positions_px"}
        if not update_variation:
            self._frozen |= {"opr_modes", "opr_weights", "frame_scale"}
        elif not update_probe:
            self._frozen |= {"opr_modes", "opr_weights"}
        batches = split_into_batches(order, choose_batch_size(self._config, len(order)))
        if isinstance(self._optimizer, torch.optim.LBFGS):
            fits: list[EpochFit] = []

            def evaluate_all_frames() -> Tensor:
                misfit = ReducedChiSquared(state.background)
                self._optimizer.zero_grad()
                losses = [
                    self._backward(index, counts, len(batch), len(batch) / len(order), misfit)
                    for batch, (index, counts) in zip(batches, self._problem.iterate_counts(batches), strict=True)
                ]
                total = torch.stack(losses).sum()
                self._add_others(total)
                misfit.add_others(self._problem.reducer)
                fits.append(misfit.compute_fit(self._problem.n_good_pixels))
                return total

            self._optimizer.step(evaluate_all_frames)  # type: ignore[no-untyped-call]
        else:
            misfit = ReducedChiSquared(state.background)
            for group in self._optimizer.param_groups:
                group["lr"] = self._config.learning_rate * rate
            for batch, (index, counts) in zip(batches, self._problem.iterate_counts(batches), strict=True):
                self._optimizer.zero_grad()
                loss = self._backward(index, counts, len(batch), 1.0, misfit)
                self._add_others(loss)
                self._optimizer.step()
                with torch.no_grad():
                    # No wave explains fewer than no counts.
                    self._parameters["background"].clamp_min_(0)
            misfit.add_others(self._problem.reducer)
            fits = [misfit.compute_fit(self._problem.n_good_pixels)]
        with torch.no_grad():
            self._parameters["background"].clamp_min_(0)
            if "frame_scale" in self._parameters:
                self._parameters["frame_scale"].clamp_min_(MIN_SCALE / self._units["frame_scale"])
            self._write_state(state)
        return fits[0]

    def _add_others(self, loss: Tensor) -> None:
        """Add loss and gradients of the other processes."""
        if self._problem.reducer.size == 1:
            return
        gradients = []
        for name, tensor in self._parameters.items():
            if tensor.requires_grad and name not in self._frozen:
                # A process without frames in this batch has none.
                tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
                gradients.append(tensor.grad)
        self._problem.reducer.sum(loss, *gradients)

    def _backward(
        self, index: Tensor, counts: Tensor, n_frames: int, weight: float, misfit: ReducedChiSquared
    ) -> Tensor:
        with torch.enable_grad():
            return self._compute_loss_and_gradient(index, counts, n_frames, weight, misfit)

    def _compute_loss_and_gradient(
        self, index: Tensor, counts: Tensor, n_frames: int, weight: float, misfit: ReducedChiSquared
    ) -> Tensor:
        """Compute this process' part of the weighted loss of a batch of `n_frames`, and its gradients."""
        config, values = self._config, self._get_physical_values()
        loss = values["object"].real.new_zeros(())
        if len(index):
            loss = (
                weight
                * (len(index) / n_frames)
                * compute_objective(
                    self._problem,
                    values["object"],
                    values["probe"],
                    values["positions_px"],
                    values["background"],
                    index,
                    config.likelihood,
                    misfit,
                    counts,
                    (values["opr_modes"], values["opr_weights"], values["frame_scale"])
                    if "opr_modes" in values
                    else None,
                )
            )
        # Each process has the whole object, and adds its part of the penalties.
        weight = weight / self._problem.reducer.size
        if config.smoothness_weight or config.tv_weight:
            loss = loss + weight * compute_penalty(values["object"], config.smoothness_weight, config.tv_weight)
        if self.penalty is not None:
            problem = self._problem
            all_counts = problem.n_frames * problem.n_good_pixels * problem.scaling.photons_per_frame / problem.n_px**2
            loss = loss + weight * self.penalty(values["object"]) / all_counts
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        for name in self._frozen:
            if name in self._parameters:
                self._parameters[name].grad = None
        return loss.detach()

    def _get_physical_values(self) -> dict[str, Tensor]:
        """Return the variables in their physical units."""
        values = {name: tensor * self._units[name] for name, tensor in self._parameters.items()}
        waves = values.keys() & {"object", "probe", "opr_modes"}
        return values | {name: torch.view_as_complex(values[name]) for name in waves}

    def _write_state(self, state: RefinementState) -> None:
        for name, value in self._get_physical_values().items():
            setattr(state, name, value.detach().clone())

    def read_state(self, state: RefinementState) -> None:
        """Go on from what has been done to the state since."""
        with torch.no_grad():
            for name, unit in self._units.items():
                self._parameters[name].copy_(_view_as_real(getattr(state, name) / unit))


def _view_as_real(values: Tensor) -> Tensor:
    return torch.view_as_real(values) if values.is_complex() else values
