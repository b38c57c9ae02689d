"""Trained modules on disk: finding, loading and naming them."""

from __future__ import annotations

import contextlib
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from torchptycho.core.errors import ConfigError, StoreError
from torchptycho.core.inputs import as_path
from torchptycho.core.text import format_error
from torchptycho.core.versions import collect_versions
from torchptycho.models.bundles import BUNDLE, is_bundle, load_bundle, load_bundled_network
from torchptycho.models.generators import require_trusted_generator
from torchptycho.models.network import CHECKPOINT_FORMAT, TRAINING_ARGUMENTS, PtychoNetwork

if TYPE_CHECKING:
    from torchptycho.models.lightning_module import PtychoPINN

__all__ = ["find_checkpoint", "load_checkpoint", "load_network", "names_network"]

_NETWORK_SUFFIXES = (".ckpt", ".onnx", ".pt2", ".pt", ".pth", ".pkl", ".pickle")
_REMEDY = "The checkpoint comes before the scans; if this is one, train again."


def load_checkpoint(path: str | Path, *, trust_generator: bool | str = False) -> PtychoPINN:
    """Load a trained module from its checkpoint or bundle alone; nothing in the file is executed.

    Arguments:
        trust_generator: whether a generator that the file names as `package.module:Class` may be imported, which runs
            that module; or the one such name that may. Registered generators always are.

    Raises:
        StoreError: not there, neither of the two, not one of this package, or its generator is not trusted.
    """
    # Lightning takes as long to import as everything else, and prediction does not need it.
    from torchptycho.models.lightning_module import PtychoPINN

    path = _require_file(path)
    if is_bundle(path):
        return load_bundle(path, trust_generator=trust_generator)
    with _convert_load_errors(path):
        module = PtychoPINN.load_from_checkpoint(
            path, map_location="cpu", weights_only=True, trust_generator=trust_generator
        )
    module.require_statistics()
    module.record_checkpoint(path)
    return module


def load_network(path: str | Path, *, trust_generator: bool | str = False) -> PtychoNetwork:
    """Load a trained network from its checkpoint or bundle alone, ready to predict but not to train.

    Arguments:
        trust_generator: as in `load_checkpoint`.

    Raises:
        StoreError: as `load_checkpoint`.
    """
    path = _require_file(path)
    if is_bundle(path):
        return load_bundled_network(path, trust_generator=trust_generator)
    with _convert_load_errors(path):
        content = torch.load(path, map_location="cpu", weights_only=True)
        if (version := content["format"]["version"]) != CHECKPOINT_FORMAT:
            raise ValueError(f"its format is {version}, expected {CHECKPOINT_FORMAT}")
        arguments = {
            name: value for name, value in content["hyper_parameters"].items() if name not in TRAINING_ARGUMENTS
        }
        require_trusted_generator(arguments.get("config"), path, trust_generator)
        network = PtychoNetwork(**arguments)
        network.load_state_dict(content["state_dict"])
    network.require_statistics()
    network.record_checkpoint(path)
    return network.eval()


def _require_file(path: str | Path) -> Path:
    path = find_checkpoint(path)
    if not path.is_file():
        raise StoreError(f"{path}: expected a checkpoint (.ckpt), or the folder of a run; found nothing.")
    return path


@contextlib.contextmanager
def _convert_load_errors(path: Path) -> Iterator[None]:
    """Convert errors of loading a checkpoint to a StoreError that says what to do."""
    with warnings.catch_warnings():
        # torch warns of the protocol of another program's pickle before it refuses the file.
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        try:
            yield
        except pickle.UnpicklingError as error:
            # torch's own message recommends to load it unsafely.
            reason = (
                "it is another kind of file, or holds Python objects, which are never unpickled because they run code"
            )
            raise StoreError(f"{path}: expected a torchptycho checkpoint; {reason}. {_REMEDY}") from error
        except (
            OSError,
            RuntimeError,
            LookupError,
            EOFError,
            TypeError,
            AttributeError,
            ValueError,
            ConfigError,
        ) as error:
            reason = format_error(error, 300) or "it ends too early"
            raise StoreError(
                f"{path}: expected a torchptycho checkpoint; it does not load "
                f"({reason}).{_describe_differences(path)} {_REMEDY}"
            ) from error


def _describe_differences(path: Path) -> str:
    """Describe how the program that wrote a checkpoint differs from this one."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        written_format = content["format"] if isinstance(content, dict) else {}
        format_, written = written_format["version"], dict(written_format["written_with"])
    except (OSError, pickle.UnpicklingError, RuntimeError, LookupError, EOFError, TypeError, ValueError):
        return ""
    here = collect_versions()
    differs = [f"{name} {there}, here {here.get(name)}" for name, there in written.items() if here.get(name) != there]
    if format_ != CHECKPOINT_FORMAT:
        differs.insert(0, f"format {format_}, here {CHECKPOINT_FORMAT}")
    return f" It was written with {'; '.join(differs)}." if differs else ""


def find_checkpoint(path: str | Path) -> Path:
    """Find the checkpoint at a path: a file, the best one of a run's folder, or the bundle in it.

    Raises:
        StoreError: the folder holds none.
    """
    path = as_path(path, "checkpoint", "a checkpoint or the folder of a run")
    if not path.is_dir():
        return path
    for candidate in (path / "checkpoints" / "best.ckpt", path / "checkpoints" / "last.ckpt", path / BUNDLE):
        if candidate.is_file():
            return candidate
    raise StoreError(
        f"{path}: expected a run with checkpoints/best.ckpt, or {BUNDLE}; found none. Train first, or name a file."
    )


def names_network(path: str | Path) -> bool:
    """Return whether a path names a network: a run's folder, or a file with the name or content of a network."""
    path = Path(path)
    if path.is_dir():
        try:
            find_checkpoint(path)
        except StoreError:
            return False
        return True
    return path.suffix.lower() in _NETWORK_SUFFIXES or (zipfile.is_zipfile(path) and _holds_network(path))


def _holds_network(path: Path) -> bool:
    if is_bundle(path):
        return True
    with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())
    return False
