"""All commands by name."""

from __future__ import annotations

from torchptycho.cli.base import Command
from torchptycho.cli.commands.design import Design
from torchptycho.cli.commands.diagnosis import Diagnose
from torchptycho.cli.commands.evaluation import Compare, Evaluate
from torchptycho.cli.commands.files import Convert, Inspect, Simulate
from torchptycho.cli.commands.interop import Export, Ptychodus
from torchptycho.cli.commands.iterative import Refine, Resolution
from torchptycho.cli.commands.live import Keys, Replay, Watch
from torchptycho.cli.commands.network import Reconstruct, Train
from torchptycho.cli.commands.pretraining import Pretrain
from torchptycho.cli.commands.stores import Append, Drop, Prepare
from torchptycho.cli.commands.system import Demo, Doctor
from torchptycho.cli.commands.tuning import Tune

__all__ = ["COMMANDS", "COMMAND_GROUPS"]

COMMANDS: dict[str, type[Command]] = {
    "inspect": Inspect,
    "diagnose": Diagnose,
    "convert": Convert,
    "simulate": Simulate,
    "design": Design,
    "demo": Demo,
    "tune": Tune,
    "refine": Refine,
    "prepare": Prepare,
    "append": Append,
    "drop": Drop,
    "train": Train,
    "reconstruct": Reconstruct,
    "pretrain": Pretrain,
    "export": Export,
    "watch": Watch,
    "replay": Replay,
    "keys": Keys,
    "evaluate": Evaluate,
    "compare": Compare,
    "resolution": Resolution,
    "doctor": Doctor,
    "ptychodus": Ptychodus,
}

COMMAND_GROUPS: dict[str, tuple[str, ...]] = {
    "scan files": ("inspect", "diagnose", "convert"),
    "something to try": ("simulate", "demo", "replay"),
    "an image without training": ("tune", "refine"),
    "a network": ("prepare", "append", "drop", "train", "reconstruct", "watch", "pretrain", "export"),
    "before a scan": ("design",),
    "how good it is": ("evaluate", "compare", "resolution"),
}
"""Purpose of the commands, as the overview groups them; those in no group come last."""
