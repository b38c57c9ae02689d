"""Weights of the prior: one safetensors file in half precision that says what it holds and how it was trained."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from torchptycho.core.errors import StoreError
from torchptycho.core.text import format_error
from torchptycho.io.storage.file_access import replace_atomically
from torchptycho.models.prior.network import PriorConfig, PriorNetwork

__all__ = ["SHIPPED_PRIOR", "TrainedPrior", "load_prior", "save_prior"]

SHIPPED_PRIOR = "prior.safetensors"
"""File within this package that `load_prior` reads when no other is named."""
_FORMAT, _VERSION = "torchptycho-prior", "1"


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedPrior:
    """A network with its weights, ready for use.

    Arguments:
        network: in evaluation mode, without gradients.
        report: how it was trained, in plain data: configuration, seed, steps, versions, validation.
        sha256: of the file that it was read from.
    """

    network: PriorNetwork
    report: dict[str, Any]
    sha256: str


def save_prior(network: PriorNetwork, path: str | Path, report: dict[str, Any]) -> Path:
    """Write the weights in half precision, with the network's configuration and the report of its training."""
    path = Path(path)
    tensors = {name: value.detach().cpu().half().contiguous() for name, value in network.state_dict().items()}
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "config": json.dumps(dataclasses.asdict(network.config)),
        "report": json.dumps(report),
    }
    packed = safetensors.torch.save(tensors, metadata)
    with replace_atomically(path) as stream:
        stream.write(packed)
    return path


def load_prior(path: str | Path | None = None, device: torch.device | str = "cpu") -> TrainedPrior:
    """Read a prior; without a path the one that comes with the package.

    Raises:
        StoreError: there is no such file, or it holds something else.
    """
    if path is None:
        prior = _load_shipped()
    else:
        path = Path(path)
        if not path.is_file():
            raise StoreError(f"{path}: expected weights of a prior, as `torchptycho pretrain` writes; found no file.")
        prior = _parse(path.read_bytes(), str(path))
    if torch.device(device).type == "cpu":
        return prior
    network = PriorNetwork(prior.network.config)
    network.load_state_dict(prior.network.state_dict())
    return dataclasses.replace(prior, network=network.to(device).eval().requires_grad_(False))


@functools.cache
def _load_shipped() -> TrainedPrior:
    data = importlib.resources.files(__package__).joinpath(SHIPPED_PRIOR).read_bytes()
    return _parse(data, SHIPPED_PRIOR)


def _parse(data: bytes, source: str) -> TrainedPrior:
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
        if metadata.get("format") != _FORMAT or metadata.get("version") != _VERSION:
            raise StoreError(
                f"{source}: expected a {_FORMAT} of version {_VERSION}; found "
                f"{metadata.get('format', 'another file')} {metadata.get('version', '')}. Name a file that "
                "`torchptycho pretrain` wrote."
            )
        values = json.loads(metadata["config"])
        network = PriorNetwork(PriorConfig(**(values | {"widths": tuple(values["widths"])})))
        network.load_state_dict({name: value.float() for name, value in tensors.items()})
        report = json.loads(metadata["report"])
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StoreError(f"{source}: damaged weights of a prior ({format_error(error)}).") from None
    return TrainedPrior(network.eval().requires_grad_(False), report, hashlib.sha256(data).hexdigest())
