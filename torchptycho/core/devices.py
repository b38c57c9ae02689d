"""Names of devices on the command line, and the torch devices that they select."""

from __future__ import annotations

import torch

from torchptycho.core.errors import ConfigError
from torchptycho.core.inputs import describe_type

__all__ = ["find_devices"]


def find_devices(name: str | torch.device, count: int = 1, *, option: str = "accelerator") -> list[torch.device]:
    """Return `count` devices of a kind; `auto` is a GPU where there is one, else the CPU.

    Arguments:
        name: auto, cpu, gpu (or cuda), cuda:1, mps.
        count: number of devices; a CPU is returned that many times.
        option: name of the option, for the error.

    Raises:
        ConfigError: this machine has no such devices.
    """
    name = str(name) if isinstance(name, torch.device) else name
    if not isinstance(name, str):
        raise ConfigError(f"{option}: expected auto, cpu, gpu, cuda:1 or mps; found {describe_type(name)}.")
    if count < 1:
        raise ConfigError(f"devices: expected at least 1; found {count}.")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, number = name.partition(":")
    if kind == "cpu" or (name == "auto" and not n_gpus):
        return [torch.device("cpu")] * count
    if kind == "mps" and count == 1 and torch.backends.mps.is_available():
        return [torch.device("mps")]
    if name in ("auto", "gpu", "cuda") and n_gpus >= count:
        return [torch.device("cuda", index) for index in range(count)]
    if kind == "cuda" and number.isdecimal() and int(number) < n_gpus and count == 1:
        return [torch.device("cuda", int(number))]
    known = kind in ("auto", "gpu", "cuda", "mps")
    reason = f"it has {n_gpus} GPUs" if known and kind != "mps" else "it has no MPS" if known else ""
    asked = f"{option} '{name}'" + (f", devices {count}" if count > 1 else "")
    raise ConfigError(f"{asked}: not on this machine ({reason or 'expected auto, cpu, gpu, cuda:1 or mps'}).")
