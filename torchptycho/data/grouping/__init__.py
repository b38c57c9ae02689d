"""Which frames go together: positions become groups of overlapping neighbours.

Everything here is a pure function of positions, configuration and seeds. Loops run over scans, never over frames.
"""

from __future__ import annotations

from torchptycho.data.grouping.groups import Groups
from torchptycho.data.grouping.partition import partition
from torchptycho.data.grouping.training_groups import group

__all__ = ["Groups", "group", "partition"]
