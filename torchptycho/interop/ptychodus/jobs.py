"""What the parent process sends to the one that computes; without torch, which the parent does not load."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ptychodus.api.reconstruct import ReconstructInput

__all__ = ["ReconstructJob", "RefineJob", "TrainJob"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJob:
    """A training.

    Arguments:
        mode: "PINN" or "Supervised".
        config: of the run, as plain data.
        input_path: folder (or file) with the training data.
        output_path: folder in which the folder of the run is made.
        subtract_mean_phase: of the labels.
        visible_gpus: indexes for CUDA_VISIBLE_DEVICES, or nothing.
    """

    mode: str
    config: dict[str, Any]
    input_path: Path
    output_path: Path
    subtract_mean_phase: bool
    visible_gpus: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructJob:
    """A pass of a trained network.

    Arguments:
        mode: "PINN" or "Supervised".
        config: of the run, as plain data; of it the sections train (where to compute) and reconstruct count.
        checkpoint: the trained network.
        parameters: what Ptychodus hands over.
        goal: progress at the end.
        visible_gpus: indexes for CUDA_VISIBLE_DEVICES, or nothing.
    """

    mode: str
    config: dict[str, Any]
    checkpoint: Path
    parameters: ReconstructInput
    goal: int
    visible_gpus: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefineJob:
    """A refinement.

    Arguments:
        config: of the run, as plain data; of it the sections train (where to compute) and refine count.
        parameters: what Ptychodus hands over.
        from_product: begin with the product's object.
        image_every_epochs: how often the product is sent back on the way.
        visible_gpus: indexes for CUDA_VISIBLE_DEVICES, or nothing.
    """

    config: dict[str, Any]
    parameters: ReconstructInput
    from_product: bool
    image_every_epochs: int
    visible_gpus: str
