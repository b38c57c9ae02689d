"""torch.compile of the network, if the machine supports it."""

from __future__ import annotations

import logging

import torch

from torchptycho.core.text import format_error
from torchptycho.data.batch import GroupBatch
from torchptycho.models.lightning_module import PtychoPINN

__all__ = ["compile_generator"]

_log = logging.getLogger(__name__)


def compile_generator(module: PtychoPINN, batch: GroupBatch, device: torch.device) -> bool:
    """Compile the network in place and test it forwards and backwards; if this fails, it runs uncompiled.

    Only the network is compiled, because no code can be generated for the complex numbers of the physics. The names of
    its weights do not change.

    Arguments:
        batch: a training batch, whose shapes are compiled for.
        device: where training will run.

    Returns:
        Whether it is compiled.
    """
    generator = module.generator
    home = next(generator.parameters()).device
    generator.compile()
    try:
        module.to(device)
        patches = module(batch.to(device))
        patches.abs().sum().backward()
    # Only compiler errors are caught; errors of the network occur again without the compiler.
    except (RuntimeError, OSError, ImportError) as error:
        generator._compiled_call_impl = None
        torch._dynamo.reset()
        reason = format_error(error, 200)
        _log.warning("compile: the network runs without torch.compile, which fails here: %s", reason)
        return False
    finally:
        generator.zero_grad(set_to_none=True)
        module.to(home)
    return True
