"""Terms of the loss, each with the domain that it compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from torchptycho.core.config import LossConfig, RunConfig
from torchptycho.core.errors import ConfigError
from torchptycho.physics.noise import poisson_deviance

__all__ = ["Loss", "LossInputs", "total_variation"]


@dataclasses.dataclass(frozen=True, eq=False)
class LossInputs:
    """Everything a term may look at, for one batch.

    Arguments:
        expected, counts: [B, C, N, N] photon counts of the model and of the detector; None if no term uses them.
        mean_count: [B] mean count per pixel of each group's scan.
        mask: [B, 1, N, N] good detector pixels.
        patches: [B, C, N, N] object patches as predicted, before merging.
        truth: [B, C, N, N] or None.
        truth_weight: [N, N] where patches are compared with the truth.
    """

    expected: Float[Tensor, "b c n n"] | None
    counts: Float[Tensor, "b c n n"] | None
    mean_count: Float[Tensor, " b"]
    mask: Bool[Tensor, "b 1 n n"]
    patches: Complex[Tensor, "b c n n"]
    truth: Complex[Tensor, "b c n n"] | None
    truth_weight: Float[Tensor, "n n"]


def _require_counts(batch: LossInputs) -> tuple[Tensor, Tensor]:
    assert batch.expected is not None
    assert batch.counts is not None
    return batch.expected, batch.counts


def _nll(batch: LossInputs) -> Tensor:
    # Half the deviance is the NLL minus its smallest possible value: the gradient is the same, and 0 is a perfect fit.
    # Division by the mean count gives the learning rate the same meaning at any dose.
    expected, counts = _require_counts(batch)
    scale = batch.mean_count[:, None, None, None]
    return 0.5 * poisson_deviance(expected / scale, counts / scale, batch.mask, offset=0.5 / scale)


def _mae(batch: LossInputs) -> Tensor:
    scale = batch.mean_count[:, None, None, None]
    # Half a count is added because the gradient of a square root at 0 is infinite.
    model, measured = ((values + 0.5) / scale for values in _require_counts(batch))
    error = (model.sqrt() - measured.sqrt()).abs() * batch.mask
    return error.sum() / batch.mask.expand(error.shape).sum().clamp_min(1)


def total_variation(patches: Complex[Tensor, "b c n n"]) -> Float[Tensor, ""]:
    """Sum of squared finite differences of real and imaginary part, per patch."""
    parts = torch.view_as_real(patches)
    down, right = parts.diff(dim=-3), parts.diff(dim=-2)
    return (down.square().sum() + right.square().sum()) / (patches.shape[0] * patches.shape[1])


def _require_truth(batch: LossInputs) -> Tensor:
    if batch.truth is None:
        raise ConfigError("realspace_weight, realspace_mae_weight: expected scans with a truth; found one without.")
    return batch.truth


def _real_space_mse(batch: LossInputs) -> Tensor:
    error = torch.view_as_real(batch.patches - _require_truth(batch)).square().sum(-1)
    return (error * batch.truth_weight).sum() / batch.truth_weight.expand(error.shape).sum()


def _real_space_mae(batch: LossInputs) -> Tensor:
    error = torch.view_as_real(batch.patches - _require_truth(batch)).abs().sum(-1)
    return (error * batch.truth_weight).sum() / batch.truth_weight.expand(error.shape).sum()


LossDomain = Literal["counts", "amplitude", "object"]
_TERMS: tuple[tuple[str, LossDomain, Callable[[LossInputs], Tensor]], ...] = (
    ("nll", "counts", _nll),
    ("mae", "amplitude", _mae),
    ("tv", "object", lambda batch: total_variation(batch.patches)),
    ("realspace", "object", _real_space_mse),
    ("realspace_mae", "object", _real_space_mae),
)


class Loss:
    """The weighted sum of the configured terms.

    Raises:
        ConfigError: no term has a weight, or terms weigh the data in two domains (counts and amplitude) at once.
    """

    def __init__(self, config: LossConfig) -> None:
        self._terms = [
            (name, domain, term, weight)
            for name, domain, term in _TERMS
            if (weight := float(getattr(config, f"{name}_weight"))) > 0
        ]
        if not any(name != "tv" for name, *_ in self._terms):
            raise ConfigError("loss: expected a term that depends on the data (e.g. nll_weight); found none.")
        domains = {domain for _, domain, _, _ in self._terms} - {"object"}
        if len(domains) > 1:
            raise ConfigError(
                "loss: nll_weight compares counts and mae_weight amplitudes, whose scales differ; "
                "found both above 0. Set one of them to 0."
            )

    @classmethod
    def from_config(cls, config: RunConfig) -> Loss:
        """Build the configured loss, when the quantities to be trained can be learnt from it.

        Raises:
            ConfigError: as above, or the experiment is trained and no term depends on the detector.
        """
        loss = cls(config.loss)
        experiment = config.experiment
        learns = config.model.probe_trainable or experiment.scale_trainable or experiment.background_trainable
        if learns and not loss.needs_counts:
            raise ConfigError(
                "probe_trainable, scale_trainable, background_trainable: expected a loss term that depends on the "
                "detector, from which they are learnt; found real-space terms only."
            )
        return loss

    @property
    def needs_truth(self) -> bool:
        return any(name.startswith("realspace") for name, *_ in self._terms)

    @property
    def needs_counts(self) -> bool:
        """Whether a term compares counts; otherwise no diffraction needs to be computed."""
        return any(domain != "object" for _, domain, _, _ in self._terms)

    @property
    def monitored(self) -> str:
        """Name of the criterion for the best model: the likelihood if it has a weight, else the total loss."""
        return "nll" if any(name == "nll" for name, *_ in self._terms) else "loss"

    def __call__(self, batch: LossInputs) -> dict[str, Float[Tensor, ""]]:
        """Compute each term by its name, unweighted, and their weighted sum as `loss`."""
        values = {name: term(batch) for name, _, term, _ in self._terms}
        total = sum(weight * values[name] for name, _, _, weight in self._terms)
        assert isinstance(total, Tensor)
        return values | {"loss": total}
