"""The bundle: a trained module in one zip file, as safetensors and JSON, that is read without running anything.

    manifest.json            format, version and backend, the models by name, the module's arguments
    config.json              the configuration of the run, as a `RunConfig` in plain data
    weights.safetensors      the network, and the trained scale and background where there are any
    probe.safetensors        `probe_parts` [S, P, N, N, 2], real and imaginary part in sqrt(photons)
    statistics.safetensors   `input_scale` and `photons_per_frame` f64 [S], `masks` bool [S, N, N]

Members are stored, not compressed, so that a bundle never asks for more memory than it has bytes, and nothing is ever
extracted to a disk. Two bundles of one module are the same to the byte.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from torchptycho.core.errors import ConfigError, StoreError
from torchptycho.core.inputs import as_path
from torchptycho.core.text import format_error
from torchptycho.core.versions import collect_versions
from torchptycho.io.storage.file_access import replace_atomically
from torchptycho.io.storage.outputs import check_output_file
from torchptycho.models.generators import require_trusted_generator
from torchptycho.models.network import TRAINING_ARGUMENTS, PtychoNetwork

if TYPE_CHECKING:
    from torchptycho.models.lightning_module import PtychoPINN

__all__ = ["BUNDLE", "MODEL_NAMES", "find_bundle", "is_bundle", "load_bundle", "load_bundled_network", "save_bundle"]

_Network = TypeVar("_Network", bound=PtychoNetwork)

BUNDLE = "wts.h5.zip"
"""Usual name of a bundle, the one that the original PtychoPINN gives its own archives."""
MODEL_NAMES = ("autoencoder", "diffraction_to_obj")
"""Names under which the original keeps the two views of one network; both stand for the one module here."""

_FORMAT, _VERSION = "torchptycho-bundle", 1
_MANIFEST, _CONFIG = "manifest.json", "config.json"
_PROBE, _STATISTICS, _WEIGHTS = "probe.safetensors", "statistics.safetensors", "weights.safetensors"
_TENSOR_MEMBERS = (_PROBE, _STATISTICS, _WEIGHTS)
_MEMBERS = (_MANIFEST, _CONFIG, *_TENSOR_MEMBERS)
_MEMBER_BY_TENSOR = {
    "probe_parts": _PROBE,
    "input_scale": _STATISTICS,
    "photons_per_frame": _STATISTICS,
    "masks": _STATISTICS,
}
# Arguments of PtychoPINN besides the configuration.
_MODULE_ARGUMENTS = ("n_px", "n_scans", "n_modes", "domain", "max_offset_px", "has_validation", "started_from")
_MAX_TEXT_BYTES = 1 << 20
_MEMBER_DATE = (1980, 1, 1, 0, 0, 0)
_ZIP_ERRORS = (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, ValueError)
# The manifest of the original, in either of its backends, and the models next to it.
_FOREIGN_MANIFEST = "manifest.dill"
_KERAS_SUFFIXES = (".keras", ".h5", ".pb")
_TORCH_SUFFIXES = (".pth", ".pt", ".ckpt")


def save_bundle(module: PtychoPINN | str | Path, path: str | Path) -> Path:
    """Write a trained module as a bundle, atomically.

    Arguments:
        module: with its statistics, from `load_checkpoint`.
        path: the file, ending in .zip (optional after wts.h5), or a folder, which is created and gets wts.h5.zip.

    Returns:
        The file that was written.

    Raises:
        StoreError: the module has no statistics, or holds what safetensors cannot.
        ConfigError: the place cannot be written to.
    """
    if isinstance(module, str | Path) or not hasattr(module, "require_statistics"):
        from torchptycho.models.checkpoints import load_checkpoint

        module = load_checkpoint(as_path(module, "module", "a trained module or its file"))
    module.require_statistics()
    path = _complete_path(Path(path))
    check_output_file(path, option="bundle")
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in _TENSOR_MEMBERS}
    for name, tensor in module.state_dict().items():
        # Copied, because safetensors accepts neither channels-last tensors nor tensors that share memory.
        plain = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        parts[_MEMBER_BY_TENSOR.get(name, _WEIGHTS)][name] = plain
    manifest = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "backend": "pytorch",
        "version": collect_versions()["torchptycho"],
        "models": list(MODEL_NAMES),
        "written_with": collect_versions(),
        "module": {name: module.hparams[name] for name in _MODULE_ARGUMENTS},
    }
    try:
        content = {name: safetensors.torch.save(tensors) for name, tensors in parts.items()}
    except (safetensors.SafetensorError, LookupError, ValueError) as error:
        raise StoreError(f"{path}: expected weights that safetensors can hold; {error}. Nothing was written.") from None
    content |= {_MANIFEST: _encode_json(manifest), _CONFIG: _encode_json(module.hparams["config"])}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as target, zipfile.ZipFile(target, "w") as archive:
        for name in _MEMBERS:
            info = zipfile.ZipInfo(name, _MEMBER_DATE)
            info.external_attr = 0o644 << 16
            archive.writestr(info, content[name])
    return path


def load_bundle(path: str | Path, *, trust_generator: bool | str = False) -> PtychoPINN:
    """Load the trained module in a bundle, ready to predict; nothing in the file is executed.

    Arguments:
        path: the file, the folder that holds it, or the file's name without .zip.
        trust_generator: as in `load_checkpoint`.

    Raises:
        StoreError: not there, damaged, of another version, or written by another program; or its generator is not
            trusted.
    """
    # Lightning takes as long to import as everything else, and prediction does not need it.
    from torchptycho.models.lightning_module import PtychoPINN

    path = find_bundle(path)
    module = _load(path, lambda config, arguments: PtychoPINN(config, **arguments), trust_generator)
    module.record_checkpoint(path)
    return module


def load_bundled_network(path: str | Path, *, trust_generator: bool | str = False) -> PtychoNetwork:
    """Load the network alone, without what trains it.

    Arguments:
        trust_generator: as in `load_checkpoint`.

    Raises:
        StoreError: as `load_bundle`.
    """

    def build(config: dict[str, Any], arguments: dict[str, Any]) -> PtychoNetwork:
        return PtychoNetwork(config, **{k: v for k, v in arguments.items() if k not in TRAINING_ARGUMENTS})

    path = find_bundle(path)
    network = _load(path, build, trust_generator)
    network.record_checkpoint(path)
    return network


def _load(
    path: str | Path, build: Callable[[dict[str, Any], dict[str, Any]], _Network], trust_generator: bool | str
) -> _Network:
    path = find_bundle(path)
    content = _read_members(path)
    manifest, config = _decode_json(path, _MANIFEST, content), _decode_json(path, _CONFIG, content)
    arguments = _read_module_arguments(path, manifest)
    require_trusted_generator(config, path, trust_generator)
    state: dict[str, Tensor] = {}
    for name in _TENSOR_MEMBERS:
        try:
            state |= safetensors.torch.load(content[name])
        except (safetensors.SafetensorError, LookupError, ValueError, TypeError) as error:
            raise _make_damage_error(path, name, error) from None
    # Checked before memory of that size is allocated.
    sizes = tuple(arguments[name] for name in ("n_scans", "n_modes", "n_px", "n_px"))
    probe_shape = tuple(state["probe_parts"].shape) if "probe_parts" in state else "nothing"
    if probe_shape != (*sizes, 2):
        raise StoreError(f"{path}: '{_PROBE}': expected probe_parts {(*sizes, 2)}; found {probe_shape}. Save it again.")
    try:
        module = build(config, arguments)
        _check_tensors(path, module.state_dict(), state)
        module.load_state_dict(state)
    except (RuntimeError, LookupError, TypeError, AttributeError, ValueError, ConfigError) as error:
        reason = format_error(error, 300)
        raise StoreError(
            f"{path}: expected a bundle of this version; it does not load ({reason}). It was written with torchptycho "
            f"{manifest.get('version')}, here {collect_versions()['torchptycho']}. Save it again."
        ) from error
    module.require_statistics()
    return module.eval()


def find_bundle(path: str | Path) -> Path:
    """Find the bundle at a path: the file, the one in a folder, or `path` with .zip appended.

    Raises:
        StoreError: there is none.
    """
    path = Path(path)
    for candidate in (path / BUNDLE, path, path.with_name(f"{path.name}.zip")):
        if candidate.is_file():
            return candidate
    fault = f"a folder without {BUNDLE}" if path.is_dir() else "nothing"
    raise StoreError(f"{path}: expected a bundle ({BUNDLE}) or the folder that holds it; found {fault}.")


def is_bundle(path: Path) -> bool:
    """Return whether a file is a bundle, of whatever program, and no checkpoint; a damaged one is recognised by its
    name."""
    names = _list_members(path)
    if any(PurePosixPath(name).name == "data.pkl" for name in names):
        return False
    return path.suffix == ".zip" or _MANIFEST in names or _FOREIGN_MANIFEST in names


def _complete_path(path: Path) -> Path:
    if path.suffix == ".zip":
        return path
    return path.with_name(BUNDLE) if f"{path.name}.zip" == BUNDLE else path / BUNDLE


def _list_members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except _ZIP_ERRORS:
        return []


def _read_members(path: Path) -> dict[str, bytes]:
    """Read every member of the file, when it has those of a bundle and no others."""
    content: dict[str, bytes] = {}
    name: str | None = None
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            _check_members(path, [info.filename for info in infos])
            for info in infos:
                name = info.filename
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise StoreError(
                        f"{path}: '{name}': expected a member that is stored; found a compressed one, which may grow "
                        "without bounds. Pack it with `zip -0`, or save the bundle again."
                    )
                if name in (_MANIFEST, _CONFIG) and info.file_size > _MAX_TEXT_BYTES:
                    raise _make_damage_error(path, name, f"{info.file_size} bytes are more than it can have")
                content[name] = archive.read(info)
    except _ZIP_ERRORS as error:
        raise _make_damage_error(path, name, error) from None
    return content


def _check_members(path: Path, names: list[str]) -> None:
    """Refuse archives of other programs, and member names that no bundle has, such as ../x."""
    if _MANIFEST not in names:
        _refuse_foreign(path, names)
    for name in names:
        if name not in _MEMBERS:
            raise StoreError(
                f"{path}: expected {', '.join(_MEMBERS)}; found also {name[:80]!r}. Nothing was read; ask where the "
                "file comes from."
            )
    missing = [name for name in _MEMBERS if name not in names]
    twice = [name for name in _MEMBERS if names.count(name) > 1]
    if missing or twice:
        what = f"no {', '.join(missing)}" if missing else f"{', '.join(twice)} twice"
        raise StoreError(f"{path}: expected each of {', '.join(_MEMBERS)} once; found {what}. Save the bundle again.")


def _refuse_foreign(path: Path, names: Iterable[str]) -> None:
    names = list(names)
    endings = {PurePosixPath(name).suffix for name in names}
    if endings & set(_KERAS_SUFFIXES):
        writer, why = "the TensorFlow backend of the original PtychoPINN", "Keras models and pickles"
    elif _FOREIGN_MANIFEST in names and endings & set(_TORCH_SUFFIXES):
        writer, why = "the PyTorch backend of the original PtychoPINN", "pickles"
    elif _FOREIGN_MANIFEST in names:
        writer, why = "the original PtychoPINN, by default its TensorFlow backend", "pickles"
    else:
        shown = ", ".join(repr(name[:80]) for name in names[:3]) or "nothing"
        raise StoreError(f"{path}: expected a bundle of torchptycho ({_MANIFEST} in a zip file); found {shown}.")
    raise StoreError(
        f"{path}: expected a bundle of torchptycho; found one that was written by {writer}. It holds {why}, which are "
        "never opened because they run code. Train again here; the weights of a Keras network can be carried over "
        "with torchptycho.interop.keras_weights."
    )


def _read_module_arguments(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Read and validate the arguments of the module."""
    for key, expected in (("format", _FORMAT), ("format_version", _VERSION), ("backend", "pytorch")):
        if manifest.get(key) != expected:
            raise StoreError(
                f"{path}: '{_MANIFEST}', {key}: expected {expected!r}; found {manifest.get(key)!r}. It was written by "
                "another program or version: train again, or update torchptycho."
            )
    arguments = manifest.get("module")
    if (
        manifest.get("models") != list(MODEL_NAMES)
        or not isinstance(arguments, dict)
        or set(arguments) != set(_MODULE_ARGUMENTS)
    ):
        raise StoreError(
            f"{path}: '{_MANIFEST}': expected the models {MODEL_NAMES} and the module's arguments; found other "
            "ones. Save the bundle again."
        )
    reach = arguments["max_offset_px"]
    good = {
        "domain": arguments["domain"] in ("counts", "amplitude"),
        "max_offset_px": isinstance(reach, int | float) and math.isfinite(reach) and reach >= 0,
        "has_validation": isinstance(arguments["has_validation"], bool),
        "started_from": arguments["started_from"] is None or isinstance(arguments["started_from"], str),
        **{name: type(arguments[name]) is int and arguments[name] > 0 for name in ("n_px", "n_scans", "n_modes")},
    }
    for name, fine in good.items():
        if not fine:
            raise StoreError(f"{path}: '{_MANIFEST}', {name}: found {arguments[name]!r}. Save the bundle again.")
    return arguments


def _check_tensors(path: Path, wanted: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """Check that the tensors of a bundle are those of the module, one by one."""
    for name in sorted(wanted.keys() | found.keys()):
        a, b = (
            f"{t.dtype} {tuple(t.shape)}" if t is not None else "nothing" for t in (wanted.get(name), found.get(name))
        )
        if a != b:
            raise ValueError(f"'{name}': expected {a}, found {b}")


def _encode_json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=1, allow_nan=False).encode()


def _decode_json(path: Path, name: str, content: dict[str, bytes]) -> dict[str, Any]:
    try:
        values = json.loads(content[name])
    except (ValueError, RecursionError) as error:
        raise _make_damage_error(path, name, error) from None
    if not isinstance(values, dict):
        raise _make_damage_error(path, name, f"a {type(values).__name__} instead of a table")
    return values


def _make_damage_error(path: Path, name: str | None, reason: object) -> StoreError:
    where = f"'{name[:80]}': " if name else ""
    text = format_error(reason, 200)
    return StoreError(
        f"{path}: {where}expected an intact bundle; found damaged or truncated data ({text}). Copy it again."
    )
