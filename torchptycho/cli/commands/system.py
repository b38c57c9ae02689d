"""The command that looks at the installation and the machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tyro.conf import Positional

from torchptycho.cli.base import Command
from torchptycho.visualization.tables import make_doctor_table

__all__ = ["Doctor"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor(Command):
    """Look at versions, GPU, memory, disk and optional packages.

    torchptycho doctor
    torchptycho doctor /data/runs --json
    """

    path: Positional[Path] = Path()
    """Folder whose disk is measured, with a temporary file."""
    disk_mb: int = 128
    """Megabytes written and read for that; 0 leaves it out."""
    json: bool = False
    """Print one JSON object instead of a table."""

    def run(self) -> None:
        from torchptycho.cli.doctor import examine

        with self.show_status("looking around"):
            found = examine(self.path, disk_mb=self.disk_mb)
        self.print_result(
            found, make_doctor_table(found), *(f"! {problem}" for problem in found["problems"]), json=self.json
        )
