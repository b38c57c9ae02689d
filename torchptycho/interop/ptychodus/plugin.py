"""The entry point that Ptychodus calls at its start through the plugin file of `torchptycho ptychodus enable`.

The file of every enabled Ptychodus imports `torchptycho.interop.ptychodus.plugin`: this module must keep its name.
"""

from __future__ import annotations

import logging
import sys

from ptychodus.api.plugins import PluginRegistry

__all__ = ["register_plugins"]

_log = logging.getLogger(__name__)

_CORE, _LIBRARY = "ptychodus.model.core", "PtychoPINNTorchReconstructorLibrary"


def register_plugins(registry: PluginRegistry) -> None:
    """Replace Ptychodus' empty library of this network by torchptycho's.

    Ptychodus' core looks its libraries up by name, and loads plugins before it builds the libraries. Nothing is done in
    a program that loads plugins without the core.
    """
    core = sys.modules.get(_CORE)
    if core is None:
        return
    if not hasattr(core, _LIBRARY):
        _log.warning("torchptycho is not listed: expected Ptychodus 1.7, whose %s has %s", _CORE, _LIBRARY)
        return
    # Imported here because it imports the core, which some programs must not load.
    from torchptycho.interop.ptychodus.reconstructor_library import TorchptychoReconstructorLibrary

    setattr(core, _LIBRARY, TorchptychoReconstructorLibrary)
