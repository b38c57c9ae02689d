"""Ptychography in PyTorch: from a scan file to an image.

The public names are loaded on first use (PEP 562), so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchptycho.bundles import save_bundle as save_bundle
    from torchptycho.checkpoints import load_checkpoint as load_checkpoint
    from torchptycho.checkpoints import load_network as load_network
    from torchptycho.comparison import compare as compare
    from torchptycho.config import (
        GroupConfig as GroupConfig,
    )
    from torchptycho.config import (
        LossConfig as LossConfig,
    )
    from torchptycho.config import (
        MappingConfig as MappingConfig,
    )
    from torchptycho.config import (
        ModelConfig as ModelConfig,
    )
    from torchptycho.config import (
        PrepareConfig as PrepareConfig,
    )
    from torchptycho.config import (
        ReadConfig as ReadConfig,
    )
    from torchptycho.config import (
        ReconstructConfig as ReconstructConfig,
    )
    from torchptycho.config import (
        RefineConfig as RefineConfig,
    )
    from torchptycho.config import (
        RunConfig as RunConfig,
    )
    from torchptycho.config import (
        SimulateConfig as SimulateConfig,
    )
    from torchptycho.config import (
        TrainConfig as TrainConfig,
    )
    from torchptycho.config import (
        load_config as load_config,
    )
    from torchptycho.data.batch import GroupBatch as GroupBatch
    from torchptycho.data.dataset import GroupDataset as GroupDataset
    from torchptycho.data.module import PtychoDataModule as PtychoDataModule
    from torchptycho.data.preparing import (
        append_scans as append_scans,
    )
    from torchptycho.data.preparing import (
        drop_scans as drop_scans,
    )
    from torchptycho.data.preparing import (
        prepare as prepare,
    )
    from torchptycho.data.store import Store as Store
    from torchptycho.errors import TorchptychoError as TorchptychoError
    from torchptycho.evaluation import Metrics as Metrics
    from torchptycho.evaluation import evaluate as evaluate
    from torchptycho.export import export_network as export_network
    from torchptycho.geometry import Geometry as Geometry
    from torchptycho.grouping import Groups as Groups
    from torchptycho.grouping import group as group
    from torchptycho.growing import GrowingCanvas as GrowingCanvas
    from torchptycho.halves import (
        Resolution as Resolution,
    )
    from torchptycho.halves import (
        resolution as resolution,
    )
    from torchptycho.inspection import inspect_scan as inspect_scan
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
    from torchptycho.model import PtychoPINN as PtychoPINN
    from torchptycho.opening import open_network as open_network
    from torchptycho.orientation import rank_orientations as rank_orientations
    from torchptycho.plot import plot_comparison as plot_comparison
    from torchptycho.plot import plot_reconstruction as plot_reconstruction
    from torchptycho.predict import CanvasWriter as CanvasWriter
    from torchptycho.reconstructing import reconstruct as reconstruct
    from torchptycho.reconstruction import Reconstruction as Reconstruction
    from torchptycho.refinement import refine as refine
    from torchptycho.report import write_report as write_report
    from torchptycho.scan import Scan as Scan
    from torchptycho.simulation import simulate as simulate
    from torchptycho.stitch import Canvas as Canvas
    from torchptycho.workflows import (
        TrainResult as TrainResult,
    )
    from torchptycho.workflows import (
        train as train,
    )

_HOME = {
    "bundles": ["save_bundle"],
    "checkpoints": ["load_checkpoint", "load_network"],
    "comparison": ["compare"],
    "config": [
        "GroupConfig", "LossConfig", "MappingConfig", "ModelConfig", "PrepareConfig", "ReadConfig", "ReconstructConfig",
        "RefineConfig", "RunConfig", "SimulateConfig", "TrainConfig", "load_config",
    ],
    "data.batch": ["GroupBatch"],
    "data.dataset": ["GroupDataset"],
    "data.module": ["PtychoDataModule"],
    "data.preparing": ["append_scans", "drop_scans", "prepare"],
    "data.store": ["Store"],
    "errors": ["TorchptychoError"],
    "evaluation": ["Metrics", "evaluate"],
    "export": ["export_network"],
    "geometry": ["Geometry"],
    "grouping": ["Groups", "group"],
    "growing": ["GrowingCanvas"],
    "halves": ["Resolution", "resolution"],
    "inspection": ["inspect_scan"],
    "io": ["read_probe", "read_reconstruction", "read_scan", "write_reconstruction", "write_scan"],
    "model": ["PtychoPINN"],
    "opening": ["open_network"],
    "orientation": ["rank_orientations"],
    "plot": ["plot_comparison", "plot_reconstruction"],
    "predict": ["CanvasWriter"],
    "reconstructing": ["reconstruct"],
    "reconstruction": ["Reconstruction"],
    "refinement": ["refine"],
    "report": ["write_report"],
    "scan": ["Scan"],
    "simulation": ["simulate"],
    "stitch": ["Canvas"],
    "workflows": ["TrainResult", "train"],
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'torchptycho' has no attribute '{name}'")
    return getattr(importlib.import_module(f"torchptycho.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
