"""The commands that have to do with other programs."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tyro.conf import Positional

from torchptycho.command import Command

__all__ = ["Ptychodus"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ptychodus(Command):
    """List the reconstructors in an installed Ptychodus, or no longer.

    torchptycho ptychodus enable
    torchptycho ptychodus status
    """

    action: Positional[Literal["enable", "disable", "status"]]
    """enable puts one file among its plugins, disable removes it, status tells whether it is there."""

    def run(self) -> None:
        from torchptycho.interop.ptychodus import installing

        actions = {"enable": installing.enable, "disable": installing.disable, "status": installing.standing}
        self.console.print(f"torchptycho is {actions[self.action]()}")
