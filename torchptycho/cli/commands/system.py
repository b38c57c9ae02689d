"""Commands for the installation and a demonstration."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional

from torchptycho.cli.base import Command, WritingCommand
from torchptycho.core.config import SimulateConfig
from torchptycho.visualization.tables import make_doctor_table

__all__ = ["Demo", "Doctor"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor(Command):
    """Report versions, GPU, memory, disk and optional packages.

    torchptycho doctor
    torchptycho doctor /data/runs --json
    """

    path: Positional[Path] = Path()
    """Folder whose disk speed is measured, with a temporary file."""
    disk_mb: int = 128
    """Megabytes to write and read for the measurement; 0 skips it."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        from torchptycho.cli.doctor import examine

        with self.show_status("looking around"):
            properties = examine(self.path, disk_mb=self.disk_mb)
        self.print_result(
            properties,
            make_doctor_table(properties),
            *(f"! {problem}" for problem in properties["problems"]),
            json=self.json,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(WritingCommand):
    """Run all steps on a simulated experiment.

    Simulate, inspect, train, reconstruct, refine, evaluate, draw.

    torchptycho demo --out demo
    """

    out: Path = Path("demo")
    """Folder for all results."""
    steps: int = 200
    """Number of training steps."""
    json: bool = False
    """Print the content of demo.json instead of sentences."""
    simulation: SimulateConfig = dataclasses.field(default_factory=SimulateConfig)

    def run(self) -> None:
        from torchptycho.cli.demo import run_demo

        console = Console(stderr=True) if self.json else self.console
        report = run_demo(self.out, self.simulation, steps=self.steps, console=console, overwrite=self.overwrite)
        if self.json:
            self.print_result(report, json=True)
