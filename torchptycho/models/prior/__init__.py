"""The prior: a network that knows what objects look like, and removes photon noise from refined images."""

from __future__ import annotations

from torchptycho.models.prior.canvas import apply_prior
from torchptycho.models.prior.network import PriorConfig, PriorNetwork
from torchptycho.models.prior.weights import TrainedPrior, load_prior, save_prior

__all__ = ["PriorConfig", "PriorNetwork", "TrainedPrior", "apply_prior", "load_prior", "save_prior"]
