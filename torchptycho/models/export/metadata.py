"""Description of an exported network, and the small tensors that it needs.

One JSON text: `metadata_props["torchptycho"]` of an ONNX file, `extra/torchptycho.json` of a .pt2 archive. With it a
scan can be reconstructed from the file alone.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import math
import zipfile
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from torchptycho.core.config import RunConfig, from_dict, to_dict
from torchptycho.core.config.base import Domain
from torchptycho.core.errors import ConfigError, ExportError
from torchptycho.core.text import format_error
from torchptycho.core.versions import collect_versions
from torchptycho.models.network import PtychoNetwork

__all__ = [
    "METADATA_KEY",
    "ExportMetadata",
    "add_to_package",
    "build_metadata",
    "extract_scan_state",
    "parse_metadata",
    "read_package",
]

METADATA_KEY = "torchptycho"
"""Name of the description among the metadata of an ONNX file."""

_FORMAT, _VERSION = "torchptycho-export", 1
_METADATA_MEMBER = "extra/torchptycho.json"
_SCALAR_TENSORS = ("input_scale", "photons_per_frame")
_MAX_TEXT_BYTES = 1 << 28
_UNITS = "object: transmission, 1 where nothing is; probe: sqrt(photons); offsets, canvas: pixels of the object"


@dataclasses.dataclass(frozen=True)
class ExportMetadata:
    """Description in an exported file, in addition to the graph.

    Arguments:
        engine: `onnx` or `aot`.
        device: type of the device for which it was compiled; ONNX runs on any.
        n_px, gridsize, domain: of the input frames.
        n_modes: probe modes.
        canvas_px: edge of a group's canvas in the graph, which holds offsets up to max_offset_px.
        training_scan: number of the scan whose probe it contains.
        patches_agree: as `Generator.patches_agree`.
        checkpoint, checkpoint_sha256: the exported checkpoint.
        error: largest relative L2 distance from the network, measured when it was written.
        config: the complete configuration.
        tensors: the network's state of this scan without the generator, by name.
    """

    engine: Literal["onnx", "aot"]
    device: str
    n_px: int
    gridsize: int
    domain: Domain
    n_modes: int
    canvas_px: int
    max_offset_px: float
    training_scan: int
    patches_agree: bool
    checkpoint: str | None
    checkpoint_sha256: str | None
    error: float
    config: RunConfig
    tensors: dict[str, Tensor]

    def to_json(self) -> str:
        """Return the metadata as JSON, with some of it repeated for people and other programs."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        packed = safetensors.torch.save(self.tensors)
        values |= {"config": to_dict(self.config), "tensors": base64.b64encode(packed).decode()}
        repeated = {
            "format": _FORMAT,
            "format_version": _VERSION,
            "versions": collect_versions(),
            "generator": self.config.model.generator,
            "units": _UNITS,
            "input_scale": float(self.tensors["input_scale"][0]),
            "photons_per_frame": float(self.tensors["photons_per_frame"][0]),
        }
        return json.dumps(repeated | values, allow_nan=False)


def extract_scan_state(network: PtychoNetwork, scan: int) -> dict[str, Tensor]:
    """Extract the state of a network for one of its training scans, without its generator."""
    per_scan = {"probe_parts", "input_scale", "photons_per_frame", "masks"}
    state = {k: v for k, v in network.state_dict().items() if k in per_scan or k.startswith("experiment.")}
    # The first axis of every entry is the scan.
    return {name: value[scan : scan + 1].detach().cpu().contiguous().clone() for name, value in state.items()}


def build_metadata(
    network: PtychoNetwork, engine: Literal["onnx", "aot"], scan: int, canvas_px: int, max_offset_px: float
) -> ExportMetadata:
    """Build the metadata of a network that is to be exported for one of its training scans; its error is not measured
    yet."""
    config = to_dict(network.config)
    config["reconstruct"] |= {"training_scan": scan, "predict_compile": False, "predict_precision": "32-true"}
    return ExportMetadata(
        engine=engine,
        device=network.probe_parts.device.type,
        n_px=network.n_px,
        gridsize=network.gridsize,
        domain=network.domain,
        n_modes=network.probe_parts.shape[1],
        canvas_px=canvas_px,
        max_offset_px=max_offset_px,
        training_scan=scan,
        patches_agree=network.generator.patches_agree,
        checkpoint=None if network.checkpoint is None else str(network.checkpoint),
        checkpoint_sha256=network.checkpoint_sha256,
        error=math.inf,
        config=from_dict(RunConfig, config, source="checkpoint"),
        tensors=extract_scan_state(network, scan),
    )


def parse_metadata(text: str | bytes | None, path: Path) -> ExportMetadata:
    """Parse and validate what `ExportMetadata.to_json` wrote.

    Raises:
        ExportError: it is not there, damaged or of another version.
    """
    if text is None:
        raise ExportError(
            f"{path}: expected a network that torchptycho exported; it has no description. Export it with "
            "`torchptycho export CKPT FILE`."
        )
    try:
        values = json.loads(text)
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise ValueError(f"it is no {_FORMAT}")
        if values["format_version"] != _VERSION:
            raise ValueError(f"its format is {values['format_version']}, expected {_VERSION}")
        fields = {field.name: values[field.name] for field in dataclasses.fields(ExportMetadata)}
        fields["config"] = from_dict(RunConfig, fields["config"], source=str(path))
        fields["tensors"] = safetensors.torch.load(base64.b64decode(fields["tensors"], validate=True))
        metadata = ExportMetadata(**fields)
        _check(metadata)
    except (ValueError, TypeError, LookupError, RecursionError, binascii.Error, SafetensorError, ConfigError) as error:
        reason = format_error(error, 200)
        raise ExportError(f"{path}: its description cannot be read ({reason}). Export it again.") from None
    return metadata


def _check(metadata: ExportMetadata) -> None:
    whole = (metadata.n_px, metadata.gridsize, metadata.n_modes, metadata.canvas_px)
    good = {
        "engine": metadata.engine in ("onnx", "aot"),
        "device": metadata.device in ("cpu", "cuda"),
        "domain": metadata.domain in ("counts", "amplitude"),
        "sizes": all(type(value) is int and 0 < value <= 1 << 14 for value in whole),
        "gridsize": metadata.gridsize == metadata.config.group.gridsize,
        "training_scan": metadata.training_scan == metadata.config.reconstruct.training_scan,
        "patches_agree": isinstance(metadata.patches_agree, bool),
        "checkpoint": isinstance(metadata.checkpoint, str | None)
        and isinstance(metadata.checkpoint_sha256, str | None),
        "probe": metadata.tensors["probe_parts"].shape == (1, metadata.n_modes, metadata.n_px, metadata.n_px, 2),
        "mask": metadata.tensors["masks"].shape == (1, metadata.n_px, metadata.n_px)
        and metadata.tensors["masks"].dtype == torch.bool,
        "input_scale, photons_per_frame": all(_is_positive(metadata.tensors[name]) for name in _SCALAR_TENSORS),
        "max_offset_px": metadata.max_offset_px == (metadata.canvas_px - metadata.n_px) / 2 - 1,
        "values of the probe": bool(metadata.tensors["probe_parts"].isfinite().all()),
    }
    for name, fine in good.items():
        if not fine:
            raise ValueError(f"{name} is not one that it can have")


def _is_positive(value: Tensor) -> bool:
    return value.shape == (1,) and value.is_floating_point() and bool(value.isfinite().all() and (value > 0).all())


def add_to_package(package: Path, metadata: ExportMetadata) -> None:
    """Put the description into a .pt2 archive."""
    with zipfile.ZipFile(package, "a") as archive:
        archive.writestr(f"{_find_root(archive)}/{_METADATA_MEMBER}", metadata.to_json())


def read_package(package: Path) -> ExportMetadata:
    """Read the metadata in a .pt2 archive, and nothing else; no code is run.

    Raises:
        ExportError: as `parse_metadata`, or it is no archive.
    """
    try:
        with zipfile.ZipFile(package) as archive:
            name = f"{_find_root(archive)}/{_METADATA_MEMBER}"
            if name not in archive.namelist():
                return parse_metadata(None, package)
            info = archive.getinfo(name)
            if info.file_size > _MAX_TEXT_BYTES or info.compress_type != zipfile.ZIP_STORED:
                raise ExportError(f"{package}: its description is compressed or too long. Export it again.")
            return parse_metadata(archive.read(info), package)
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError, IndexError) as error:
        reason = format_error(error, 200)
        raise ExportError(
            f"{package}: expected an archive that torchptycho exported; {reason}. Copy or export it again."
        ) from None


def _find_root(archive: zipfile.ZipFile) -> str:
    """Find the folder in which all members of such an archive lie."""
    return archive.namelist()[0].split("/")[0]
