"""Jobs that Ptychodus' process sends to the computing process; without torch, which the former does not import."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ptychodus.api.reconstruct import ReconstructInput

__all__ = ["ReconstructJob", "RefineJob", "TrainJob"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainJob:
    """A training run.

    Arguments:
        mode: "PINN" or "Supervised".
        config: `RunConfig` as plain data.
        input_path: folder (or file) with the training data.
        output_path: folder in which the folder of the run is created.
        subtract_mean_phase: remove the mean phase of the labels.
        visible_gpus: indices for CUDA_VISIBLE_DEVICES; an empty text changes nothing.
    """

    mode: str
    config: dict[str, Any]
    input_path: Path
    output_path: Path
    subtract_mean_phase: bool
    visible_gpus: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructJob:
    """A reconstruction by a trained network.

    Arguments:
        mode: "PINN" or "Supervised".
        config: `RunConfig` as plain data; only `train.accelerator` and the section reconstruct are used.
        checkpoint: the trained network.
        parameters: Ptychodus' patterns, bad pixels and product.
        goal: progress to report at the end.
        visible_gpus: indices for CUDA_VISIBLE_DEVICES; an empty text changes nothing.
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
        config: `RunConfig` as plain data; only `train.accelerator` and the section refine are used.
        parameters: Ptychodus' patterns, bad pixels and product.
        from_product: start from the product's object, else from a uniform object.
        image_every_epochs: epochs between two intermediate products.
        visible_gpus: indices for CUDA_VISIBLE_DEVICES; an empty text changes nothing.
    """

    config: dict[str, Any]
    parameters: ReconstructInput
    from_product: bool
    image_every_epochs: int
    visible_gpus: str
