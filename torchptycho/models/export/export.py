"""Export of a trained network as one file: ONNX, or machine code by AOTInductor.

The exported graph maps the content of a batch to object patches, normalisation included:

    frames     float32 [B, C, N, N]     counts or amplitudes, as they were recorded; B is free
    offset_px  float32 [B, C, 2]        (y, x) of each frame from its group's centre
    input_scale, mask                   of the training scan; optional in ONNX
    patches    float32 [B, C, N, N, 2]  real and imaginary part

Complex numbers become pairs of real ones (`RealArithmetic`) and Fourier transforms products with matrices: ONNX has no
complex arithmetic, and its runtimes no fast Fourier transform.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from torchptycho.core.config import to_dict
from torchptycho.core.errors import ConfigError, ExportError
from torchptycho.core.inputs import as_path
from torchptycho.core.text import format_error
from torchptycho.data.inference_dataset import InferenceBatch
from torchptycho.io.storage.file_access import replace_atomically
from torchptycho.io.storage.outputs import check_output_file
from torchptycho.models.checkpoints import load_network
from torchptycho.models.export.matrix_patches import MatrixPatches
from torchptycho.models.export.metadata import (
    METADATA_KEY,
    ExportMetadata,
    add_to_package,
    build_metadata,
    extract_scan_state,
)
from torchptycho.models.export.real_arithmetic import RealArithmetic
from torchptycho.models.export.runtimes import AotEngine, OnnxEngine, Runner, require_packages
from torchptycho.models.network import PtychoNetwork
from torchptycho.physics.overlap import merge_canvas_px
from torchptycho.physics.scaling import counts_per_squared_amplitude

__all__ = ["MAX_RELATIVE_ERROR", "Format", "export_network"]

_log = logging.getLogger(__name__)

Format = Literal["onnx", "aot"]

MAX_RELATIVE_ERROR = 1e-4
"""Relative L2 distance of exported patches from the network's beyond which nothing is written."""

_SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "aot"}
# This opset has all required operators and runs on every ONNX Runtime since 1.14.
_OPSET = 18
_MAX_OFFSET_PX = 4096
# Groups per batch in the check.
_CHECK_BATCH_SIZES = (3, 1, 5)


def export_network(
    network: PtychoNetwork | str | Path,
    path: str | Path,
    *,
    training_scan: int | None = None,
    max_offset_px: float | None = None,
) -> ExportMetadata:
    """Write a trained network as one file, which is compared with the network and written only if it agrees.

    Arguments:
        network: with its statistics, from `load_network`; aot is compiled for its device.
        path: ends in .onnx, or in .pt2 for machine code, which needs a C++ compiler and runs on this kind of machine.
        training_scan: number of the scan whose probe, input scale and mask are exported; None takes the configured one.
        max_offset_px: largest distance of a frame from its group's centre along an axis; None takes that of training.
            Larger values need larger canvases and more time.

    Returns:
        The description in the file.

    Raises:
        ExportError: a package is missing, the network uses unsupported operators, or the file does not agree.
        ConfigError: the format, path, scan or distance is invalid.
    """
    path = as_path(path, "path")
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(f"{path}: expected a name that ends in .onnx or .pt2, which tells the format.")
    check_output_file(path)
    if not 0 <= (max_offset_px or 0.0) <= _MAX_OFFSET_PX:
        raise ConfigError(f"max_offset_px: expected 0 to {_MAX_OFFSET_PX}; found {max_offset_px}.")
    if not isinstance(network, PtychoNetwork):
        network = load_network(network)
    network.require_statistics()
    require_packages(("onnx", "onnxscript", "onnxruntime") if kind == "onnx" else (), "torchptycho[onnx]")
    scan_index = network.config.reconstruct.training_scan if training_scan is None else training_scan
    if not 0 <= scan_index < len(network.probe_parts):
        raise ConfigError(f"training_scan: expected 0 to {len(network.probe_parts) - 1}; found {scan_index}.")
    canvas_px = max(network.canvas_px, merge_canvas_px(network.n_px, max_offset_px or 0.0))
    # The largest offset for which `merge_canvas_px` returns this canvas.
    room_px = (canvas_px - network.n_px) / 2 - 1
    metadata = build_metadata(network, kind, scan_index, canvas_px, room_px)
    alone = _copy_for_scan(network, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, _silence_exporters():
        # The compilers require this suffix.
        file = Path(name) / f"network{'.onnx' if kind == 'onnx' else '.pt2'}"
        write = _write_onnx if kind == "onnx" else _write_aot
        metadata = write(alone, metadata, file)
        with replace_atomically(path) as target:
            target.write(file.read_bytes())
    return metadata


class _FunctionalNetwork(nn.Module):
    """A network as a function of tensors, complex inside."""

    def __init__(self, network: PtychoNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        frames: Float[Tensor, "b c n n"],
        offset_px: Float[Tensor, "b c 2"],
        input_scale: Float[Tensor, ""],
        mask: Bool[Tensor, "n n"],
    ) -> Float[Tensor, "b c n n 2"]:
        statistics = {"input_scale": input_scale.reshape(1).double(), "masks": mask[None]}
        patches = torch.func.functional_call(
            self.network, statistics, (_make_batch(frames, offset_px), MatrixPatches())
        )
        return torch.view_as_real(patches)


def _make_batch(frames: Tensor, offset_px: Tensor) -> InferenceBatch:
    scan = torch.zeros_like(offset_px[:, 0, 0], dtype=torch.int64)
    members = torch.zeros_like(offset_px[..., 0], dtype=torch.int64)
    return InferenceBatch(frames, offset_px, scan, members, is_first=members == 0)


def _copy_for_scan(network: PtychoNetwork, metadata: ExportMetadata) -> PtychoNetwork:
    """Copy the network for one training scan, in evaluation mode, with the exported canvas."""
    copy = PtychoNetwork(to_dict(network.config), network.n_px, 1, metadata.n_modes, network.domain)
    state = {k: v for k, v in network.state_dict().items() if k.startswith("generator.")}
    copy.load_state_dict(state | extract_scan_state(network, metadata.training_scan))
    copy.expect_offsets(metadata.max_offset_px)
    for parameter in copy.parameters():
        parameter.requires_grad = False
    return copy.eval().to(network.probe_parts.device)


def _draw_examples(network: PtychoNetwork, metadata: ExportMetadata) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw batches as an experiment gives them: frames with photon noise of smooth objects, anywhere on the canvas."""
    device, n_px, members = network.probe_parts.device, network.n_px, network.gridsize**2
    random = torch.Generator().manual_seed(0)
    for groups in _CHECK_BATCH_SIZES:
        offset = torch.rand(groups, members, 2, generator=random) * 2 - 1
        offset_px = (offset * metadata.max_offset_px if members > 1 else 0 * offset).to(device)
        coarse = torch.rand(groups * members, 2, 8, 8, generator=random)
        fine = functional.interpolate(coarse, size=n_px, mode="bilinear").to(device)
        fine = fine.reshape(groups, members, 2, n_px, n_px)
        patches = torch.polar(0.5 + 0.5 * fine[:, :, 0], 3 * fine[:, :, 1])
        batch = _make_batch(patches.real, offset_px)
        counts = torch.poisson(network.compute_expected_counts(patches, batch).cpu(), random).to(device)
        if network.domain == "amplitude":
            factor = counts_per_squared_amplitude(network.photons_per_frame, network.input_scale, n_px)
            counts = (counts / factor.float()).sqrt()
        yield counts, offset_px


def _trace_real(network: PtychoNetwork, metadata: ExportMetadata, *, matrices: bool) -> torch.export.ExportedProgram:
    """Trace the network in real arithmetic."""
    frames, offset_px = next(_draw_examples(network, metadata))
    scale, mask = network.input_scale[0].float(), network.masks[0]
    arguments = (frames, offset_px, scale, mask)
    free = {0: torch.export.Dim("groups", min=1, max=1 << 20)}
    shapes = {"frames": free, "offset_px": free, "input_scale": None, "mask": None}
    try:
        traced = torch.export.export(_FunctionalNetwork(network), arguments, dynamic_shapes=shapes, strict=False)
        # Edges of the Fourier transforms: of whole frames, and of their centres.
        edges_px = (network.n_px, network.n_px // 2) if matrices else None
        plain = RealArithmetic(traced.module(check_guards=False), edges_px)
        return torch.export.export(plain.to(frames.device), arguments, dynamic_shapes=shapes, strict=False)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, NotImplementedError) as error:
        reason = format_error(error, 300)
        name = network.config.model.generator
        raise ExportError(f"export: the generator '{name}' cannot be traced: {reason}") from error


def _write_onnx(network: PtychoNetwork, metadata: ExportMetadata, file: Path) -> ExportMetadata:
    import onnx

    with torch.no_grad():
        traced = _trace_real(network, metadata, matrices=True)
        # The exporter's own optimiser takes a third of the time, and ONNX Runtime optimises the graph anyway.
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=_OPSET,
            optimize=False,
            verbose=False,
            input_names=["frames", "offset_px", "input_scale", "mask"],
            output_names=["patches"],
        )
    assert program is not None
    model = program.model_proto
    # An input with an initial value of the same name is optional.
    for name, value in (("input_scale", metadata.tensors["input_scale"][0].float()), ("mask", network.masks[0])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.cpu().numpy(), name))
    content = model.SerializeToString()
    metadata = _validate_export(network, metadata, OnnxEngine(content, file, network.probe_parts.device.type))
    model.producer_name, model.producer_version = METADATA_KEY, ""
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata.to_json()
    file.write_bytes(model.SerializeToString())
    return metadata


def _write_aot(network: PtychoNetwork, metadata: ExportMetadata, file: Path) -> ExportMetadata:
    from torch._inductor import aoti_compile_and_package

    with torch.no_grad():
        traced = _trace_real(network, metadata, matrices=False)
        try:
            aoti_compile_and_package(traced, package_path=str(file))
        except (RuntimeError, OSError, ImportError) as error:
            reason = format_error(error, 300)
            raise ExportError(
                f"export: AOTInductor cannot compile the network: {reason}. It needs a C++ compiler "
                "(g++, or what CXX names)."
            ) from error
    metadata = _validate_export(network, metadata, AotEngine(file))
    add_to_package(file, metadata)
    return metadata


def _validate_export(network: PtychoNetwork, metadata: ExportMetadata, run: Runner) -> ExportMetadata:
    """Return the metadata with the largest error that was found; raise ExportError where it is too large."""
    worst = 0.0
    scale, mask = network.input_scale[0].float(), network.masks[0]
    with torch.no_grad(), _disable_tf32():
        for frames, offset_px in _draw_examples(network, metadata):
            expected = torch.view_as_real(network(_make_batch(frames, offset_px)))
            exported = run(frames, offset_px, scale, mask)
            if exported.shape != expected.shape:
                raise ExportError(
                    f"export: expected patches {tuple(expected.shape)}; the exported network gives "
                    f"{tuple(exported.shape)}. Nothing was written."
                )
            error = float((exported - expected).double().norm() / expected.double().norm())
            # NaN must fail the comparison.
            if not error <= MAX_RELATIVE_ERROR:
                raise ExportError(
                    f"export: expected patches within {MAX_RELATIVE_ERROR:g} of the network's (relative L2); "
                    "the exported "
                    f"network is off by {error:.3g}, with {len(frames)} groups. Nothing was written."
                )
            worst = max(worst, error)
    return dataclasses.replace(metadata, error=worst)


@contextmanager
def _disable_tf32() -> Iterator[None]:
    """Disable TF32, whose three digits torch's convolutions use on a GPU by default."""
    now = torch.backends.cudnn
    flags = {"enabled": now.enabled, "benchmark": now.benchmark, "deterministic": now.deterministic}
    with now.flags(**flags, allow_tf32=False):
        yield


@contextmanager
def _silence_exporters() -> Iterator[None]:
    """Suppress the output of the exporters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        noisy = logging.getLogger("torch.onnx")
        level = noisy.level
        noisy.setLevel(logging.ERROR)
        try:
            yield
        finally:
            noisy.setLevel(level)
