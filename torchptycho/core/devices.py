"""The torch devices that the words of the command line mean."""

from __future__ import annotations

import torch

from torchptycho.core.errors import ConfigError

__all__ = ["devices_of"]


def devices_of(accelerator: str, count: int) -> list[torch.device]:
    """The devices that are meant; `auto` is a GPU where there is one.

    Raises:
        ConfigError: there are none such.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 1:
        raise ConfigError(f"devices: expected at least 1; found {count}.")
    if accelerator == "cpu" or (accelerator == "auto" and not gpus):
        return [torch.device("cpu")] * count
    if accelerator in ("auto", "gpu", "cuda") and gpus >= count:
        return [torch.device("cuda", number) for number in range(count)]
    known = accelerator in ("auto", "gpu", "cuda")
    reason = f"it has {gpus} GPUs" if known else "expected auto, cpu or gpu"
    raise ConfigError(f"accelerator '{accelerator}', devices {count}: not on this machine ({reason}).")
