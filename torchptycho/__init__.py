"""Ptychography in PyTorch: from a scan file to an image.

The public names are loaded on first use (PEP 562), so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchptycho.analysis.comparison import compare as compare
    from torchptycho.analysis.evaluation import Metrics as Metrics
    from torchptycho.analysis.evaluation import evaluate as evaluate
    from torchptycho.analysis.inspection import inspect_scan as inspect_scan
    from torchptycho.core.config import GroupConfig as GroupConfig
    from torchptycho.core.config import LossConfig as LossConfig
    from torchptycho.core.config import MappingConfig as MappingConfig
    from torchptycho.core.config import ModelConfig as ModelConfig
    from torchptycho.core.config import PrepareConfig as PrepareConfig
    from torchptycho.core.config import ReadConfig as ReadConfig
    from torchptycho.core.config import ReconstructConfig as ReconstructConfig
    from torchptycho.core.config import RefineConfig as RefineConfig
    from torchptycho.core.config import RunConfig as RunConfig
    from torchptycho.core.config import SimulateConfig as SimulateConfig
    from torchptycho.core.config import TrainConfig as TrainConfig
    from torchptycho.core.config import load_config as load_config
    from torchptycho.core.errors import TorchptychoError as TorchptychoError
    from torchptycho.core.geometry import Geometry as Geometry
    from torchptycho.core.reconstruction import Reconstruction as Reconstruction
    from torchptycho.core.scan import Scan as Scan
    from torchptycho.data.batch import GroupBatch as GroupBatch
    from torchptycho.data.datamodule import PtychoDataModule as PtychoDataModule
    from torchptycho.data.datasets import GroupDataset as GroupDataset
    from torchptycho.data.grouping import Groups as Groups
    from torchptycho.data.grouping import group as group
    from torchptycho.data.prepare import append_scans as append_scans
    from torchptycho.data.prepare import drop_scans as drop_scans
    from torchptycho.data.prepare import prepare as prepare
    from torchptycho.data.simulation import simulate as simulate
    from torchptycho.data.store import Store as Store
    from torchptycho.io import (
        read_probe as read_probe,
    )
    from torchptycho.io import (
        read_reconstruction as read_reconstruction,
    )
    from torchptycho.io import (
        read_scan as read_scan,
    )
    from torchptycho.io import (
        write_reconstruction as write_reconstruction,
    )
    from torchptycho.io import (
        write_scan as write_scan,
    )
    from torchptycho.io import (
        write_tiff as write_tiff,
    )
    from torchptycho.models.bundles import save_bundle as save_bundle
    from torchptycho.models.checkpoints import load_checkpoint as load_checkpoint
    from torchptycho.models.checkpoints import load_network as load_network
    from torchptycho.models.export.export import export_network as export_network
    from torchptycho.models.lightning_module import PtychoPINN as PtychoPINN
    from torchptycho.models.loading import open_network as open_network
    from torchptycho.reconstructors.callbacks import CanvasWriter as CanvasWriter
    from torchptycho.reconstructors.canvas import Canvas as Canvas
    from torchptycho.reconstructors.diagnosis import Diagnosis as Diagnosis
    from torchptycho.reconstructors.diagnosis import diagnose as diagnose
    from torchptycho.reconstructors.growing_canvas import GrowingCanvas as GrowingCanvas
    from torchptycho.reconstructors.iterative import estimate_uncertainty as estimate_uncertainty
    from torchptycho.reconstructors.iterative import refine as refine
    from torchptycho.reconstructors.network_reconstruction import reconstruct as reconstruct
    from torchptycho.reconstructors.orientation import rank_orientations as rank_orientations
    from torchptycho.reconstructors.resolution import Resolution as Resolution
    from torchptycho.reconstructors.resolution import resolution as resolution
    from torchptycho.training.train import TrainResult as TrainResult
    from torchptycho.training.train import train as train
    from torchptycho.visualization.plot import plot_comparison as plot_comparison
    from torchptycho.visualization.plot import plot_diagnosis as plot_diagnosis
    from torchptycho.visualization.plot import plot_reconstruction as plot_reconstruction
    from torchptycho.visualization.report import write_report as write_report

_HOME = {
    "analysis.comparison": ["compare"],
    "analysis.evaluation": ["Metrics", "evaluate"],
    "analysis.inspection": ["inspect_scan"],
    "core.config": [
        "GroupConfig", "LossConfig", "MappingConfig", "ModelConfig", "PrepareConfig", "ReadConfig", "ReconstructConfig",
        "RefineConfig", "RunConfig", "SimulateConfig", "TrainConfig", "load_config",
    ],
    "core.errors": ["TorchptychoError"],
    "core.geometry": ["Geometry"],
    "core.reconstruction": ["Reconstruction"],
    "core.scan": ["Scan"],
    "data.batch": ["GroupBatch"],
    "data.datamodule": ["PtychoDataModule"],
    "data.datasets": ["GroupDataset"],
    "data.grouping": ["Groups", "group"],
    "data.prepare": ["append_scans", "drop_scans", "prepare"],
    "data.simulation": ["simulate"],
    "data.store": ["Store"],
    "io": ["read_probe", "read_reconstruction", "read_scan", "write_reconstruction", "write_scan", "write_tiff"],
    "models.bundles": ["save_bundle"],
    "models.checkpoints": ["load_checkpoint", "load_network"],
    "models.export.export": ["export_network"],
    "models.lightning_module": ["PtychoPINN"],
    "models.loading": ["open_network"],
    "reconstructors.callbacks": ["CanvasWriter"],
    "reconstructors.canvas": ["Canvas"],
    "reconstructors.diagnosis": ["Diagnosis", "diagnose"],
    "reconstructors.growing_canvas": ["GrowingCanvas"],
    "reconstructors.iterative": ["estimate_uncertainty", "refine"],
    "reconstructors.network_reconstruction": ["reconstruct"],
    "reconstructors.orientation": ["rank_orientations"],
    "reconstructors.resolution": ["Resolution", "resolution"],
    "training.train": ["TrainResult", "train"],
    "visualization.plot": ["plot_comparison", "plot_diagnosis", "plot_reconstruction"],
    "visualization.report": ["write_report"],
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'torchptycho' has no attribute '{name}'")
    return getattr(importlib.import_module(f"torchptycho.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
