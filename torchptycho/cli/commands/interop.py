"""Commands for other programs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from torchptycho.cli.base import Command, ModelCommand, WritingCommand

__all__ = ["Export", "Ptychodus"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(ModelCommand, WritingCommand):
    """Write a trained network as one file for another engine.

    The file is written only if it reproduces the network. `reconstruct` accepts it instead of a checkpoint.

    torchptycho export run network.onnx
    torchptycho export run network.pt2
    """

    checkpoint: Positional[Path]
    """Checkpoint or bundle, or the folder of a run (its best checkpoint)."""
    out: Positional[Path]
    """File to write: .onnx, or .pt2 for machine code of AOTInductor, which needs a C++ compiler and runs on this
    kind of machine only."""
    training_scan: int | None = None
    """Number of the training scan whose probe, input scale and mask are exported; None uses the configured one."""
    max_offset_px: float | None = None
    """Largest distance of a frame from its group's centre along an axis; None uses that of training."""
    accelerator: str = "auto"
    """Device of the machine code: auto, cpu or gpu. ONNX runs on both."""
    json: bool = False
    """Print one JSON object instead of a sentence."""

    def run(self) -> None:
        import json

        from torchptycho.core.devices import find_devices
        from torchptycho.models.checkpoints import load_network
        from torchptycho.models.export.export import export_network

        self.claim_files("out", self.out, inputs=[self.checkpoint])
        network = load_network(self.checkpoint, trust_generator=self.trust_generator)
        (device,) = find_devices(self.accelerator, 1)
        with self.show_status("exporting"):
            metadata = export_network(
                network.to(device), self.out, training_scan=self.training_scan, max_offset_px=self.max_offset_px
            )
        values = json.loads(metadata.to_json())
        shown = {name: value for name, value in values.items() if name not in ("config", "tensors")}
        self.print_result(
            {"out": str(self.out)} | shown,
            f"{self.out}: {values['generator']} for groups of {metadata.gridsize}x{metadata.gridsize} frames of "
            f"{metadata.n_px}x{metadata.n_px} {metadata.domain}, within {metadata.error:.1e} of the network",
            json=self.json,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ptychodus(Command):
    """Enable or disable the reconstructors in an installed Ptychodus.

    torchptycho ptychodus enable
    torchptycho ptychodus status
    """

    action: Positional[Literal["enable", "disable", "status"]]
    """enable adds one file to its plugins, disable removes it, status reports whether it exists."""

    def run(self) -> None:
        from torchptycho.interop.ptychodus import installation

        actions = {"enable": installation.enable, "disable": installation.disable, "status": installation.read_status}
        self.console.print(f"torchptycho is {actions[self.action]()}")
