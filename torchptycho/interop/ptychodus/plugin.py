"""What Ptychodus calls when it starts and finds the file that `torchptycho ptychodus enable` put among its plugins."""

from __future__ import annotations

import logging
import sys

from ptychodus.api.plugins import PluginRegistry

__all__ = ["register_plugins"]

_log = logging.getLogger(__name__)

_CORE, _LIBRARY = "ptychodus.model.core", "PtychoPINNTorchReconstructorLibrary"


def register_plugins(registry: PluginRegistry) -> None:
    """Have Ptychodus' core, which knows its libraries by name, build this package's in the place of its empty one.

    Plugins are loaded before the libraries are built. Programs that load plugins without the core are left alone.
    """
    core = sys.modules.get(_CORE)
    if core is None:
        return
    if not hasattr(core, _LIBRARY):
        _log.warning("torchptycho is not listed: expected Ptychodus 1.7, whose %s has %s", _CORE, _LIBRARY)
        return
    # Not above: it brings the core along, which programs without it have reasons not to load.
    from torchptycho.interop.ptychodus.reconstructor_library import TorchptychoReconstructorLibrary

    setattr(core, _LIBRARY, TorchptychoReconstructorLibrary)
