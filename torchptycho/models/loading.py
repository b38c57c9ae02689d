"""Loading of networks for prediction, by torch or by another engine."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from torchptycho.core.devices import find_devices
from torchptycho.core.errors import ConfigError
from torchptycho.models.checkpoints import find_checkpoint, load_network
from torchptycho.models.export.runtimes import (
    EngineName,
    ExportedNetwork,
    has_cuda,
    is_exported,
    load_exported,
    require_cuda,
)
from torchptycho.models.network import PtychoNetwork

__all__ = ["export_for_engine", "load_for_inference", "open_network"]

_log = logging.getLogger(__name__)


def open_network(
    checkpoint: str | Path | PtychoNetwork,
    engine: EngineName | None = None,
    *,
    training_scan: int | None = None,
    accelerator: str = "auto",
    trust_generator: bool | str = False,
) -> PtychoNetwork:
    """Open a network for prediction with an engine.

    Arguments:
        checkpoint: a checkpoint or bundle, the folder of a run, an exported file, or a network.
        engine: `torch`, or `onnx` or `aot`, for which a checkpoint is exported first, which takes a minute or more.
            None is ONNX Runtime for .onnx files and torch for everything else.
        training_scan: for which it is exported then; None as trained.
        accelerator: where it is to compute: auto, cpu, gpu. An export stays where it is opened.
        trust_generator: as in `load_checkpoint`.

    Raises:
        StoreError: it is not a checkpoint.
        ExportError: it cannot be exported, or not be run here.
        ConfigError: it was exported for another engine.
    """
    network = load_for_inference(checkpoint, engine, accelerator=accelerator, trust_generator=trust_generator)
    return export_for_engine(network, engine, training_scan=training_scan, accelerator=accelerator)


def load_for_inference(
    checkpoint: str | Path | PtychoNetwork,
    engine: EngineName | None = None,
    *,
    accelerator: str = "auto",
    trust_generator: bool | str = False,
) -> PtychoNetwork:
    """Load a checkpoint into torch, or an exported file: the first part of `open_network`."""
    if isinstance(checkpoint, ExportedNetwork):
        if engine not in (None, checkpoint.metadata.engine):
            raise ConfigError(
                f"engine: expected {checkpoint.metadata.engine}, for which the network was exported; found {engine}."
            )
        return checkpoint
    if isinstance(checkpoint, PtychoNetwork):
        return checkpoint
    path = find_checkpoint(checkpoint)
    if is_exported(path):
        return load_exported(path, engine, _choose_device(engine or "onnx", accelerator))
    return load_network(path, trust_generator=trust_generator)


def export_for_engine(
    network: PtychoNetwork,
    engine: EngineName | None,
    *,
    training_scan: int | None = None,
    accelerator: str = "auto",
) -> PtychoNetwork:
    """Export a network where the engine needs it: the second half of `open_network`. `check_options` reports before
    what an export cannot do."""
    if isinstance(network, ExportedNetwork) or engine is None or engine == "torch":
        return network
    from torchptycho.models.export.export import export_network

    device = _choose_device(engine, accelerator)
    if engine == "onnx" and device == "cuda":
        require_cuda()
    _log.info("exporting the network for the engine %s; `torchptycho export` does this once for all runs", engine)
    home = network.probe_parts.device
    with tempfile.TemporaryDirectory(prefix="torchptycho-") as folder:
        file = Path(folder) / f"network{'.onnx' if engine == 'onnx' else '.pt2'}"
        try:
            export_network(network.to(device), file, training_scan=training_scan)
        finally:
            network.to(home)
        return load_exported(file, engine, device)


def _choose_device(engine: EngineName, accelerator: str) -> str:
    """Choose the device of an engine: a GPU if there is one, unless another device is requested."""
    (where,) = find_devices(accelerator, 1)
    if where.type == "cpu":
        return "cpu"
    if engine == "onnx" and accelerator == "auto" and not has_cuda():
        _log.warning("the installed onnxruntime runs on CPUs only; for a GPU: pip install onnxruntime-gpu")
        return "cpu"
    return "cuda"
