"""Exported networks in the place of torch's: they are run by ONNX Runtime, or are machine code."""

from __future__ import annotations

import importlib.util
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor

from torchptycho.core.config import ModelConfig, ReconstructConfig, to_dict
from torchptycho.core.errors import ConfigError, ExportError
from torchptycho.core.text import format_error
from torchptycho.models.export.metadata import METADATA_KEY, ExportMetadata, parse_metadata, read_package
from torchptycho.models.generators import Generator, GroupInput
from torchptycho.models.network import FrameBatch, PtychoNetwork
from torchptycho.physics.group_patches import GATHER_SCATTER, PatchOperators

__all__ = [
    "AotEngine",
    "EngineName",
    "ExportedNetwork",
    "OnnxEngine",
    "Runner",
    "check_options",
    "has_cuda",
    "is_exported",
    "load_exported",
    "require_cuda",
    "require_packages",
]  # fmt: skip

_log = logging.getLogger(__name__)

EngineName = Literal["torch", "onnx", "aot"]
_ONNX_SUFFIX, _PACKAGE_SUFFIX = ".onnx", ".pt2"


Runner = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Runs an exported graph: frames, offsets, input scale and mask to patches, see `export`."""


def require_packages(packages: Sequence[str], source: str) -> None:
    """Raise ExportError when one of these packages is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"{', '.join(missing)}: not installed. Run: pip install '{source}'")


def has_cuda() -> bool:
    """Return whether the installed ONNX Runtime computes on NVIDIA's GPUs."""
    require_packages(["onnxruntime"], "onnxruntime")
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def require_cuda() -> None:
    """Raise ExportError when the installed ONNX Runtime is not one for NVIDIA's GPUs."""
    if not has_cuda():
        raise ExportError(
            "onnxruntime: expected one for GPUs; found one for CPUs only. Run: pip install "
            "onnxruntime-gpu, or compute with --accelerator cpu."
        )


class OnnxEngine:
    """ONNX Runtime, with as many threads as torch, on a CPU or on NVIDIA's GPUs; nothing else is tried.

    Arguments:
        content: the file's bytes: one that refers to other files is refused.
        path: its name in messages.
        device: cpu or cuda.
    """

    def __init__(self, content: bytes, path: Path, device: str) -> None:
        require_packages(["onnxruntime"], "onnxruntime")
        import onnxruntime

        state = onnxruntime.capi.onnxruntime_pybind11_state
        self._path = path
        self._runtime_errors = damage = (
            state.Fail,
            state.InvalidArgument,
            state.InvalidGraph,
            state.InvalidProtobuf,
            state.NoSuchFile,
            state.NotImplemented,
            state.RuntimeException,
        )
        if device == "cuda":
            require_cuda()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
        options.log_severity_level = 3
        # TF32 has only three digits.
        providers: list[Any] = [("CUDAExecutionProvider", {"use_tf32": "0"})] if device == "cuda" else []
        try:
            # External data would be looked up in the current folder; an empty folder makes such files fail.
            with tempfile.TemporaryDirectory() as empty:
                options.add_session_config_entry("session.model_external_initializers_file_folder_path", empty)
                self._session = onnxruntime.InferenceSession(
                    content, options, providers=[*providers, "CPUExecutionProvider"]
                )
        except damage as error:
            reason = format_error(error, 200)
            raise ExportError(
                f"{path}: expected an exported network in one ONNX file; ONNX Runtime does not take it "
                f"({reason}). Copy or export it again."
            ) from None
        if device == "cuda" and "CUDAExecutionProvider" not in self._session.get_providers():
            raise ExportError(
                "onnxruntime: its CUDA provider does not start; what it needs is in its manual. Compute "
                "with --accelerator cpu."
            )

    @property
    def custom_metadata(self) -> dict[str, str]:
        """Description in the file."""
        metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return metadata

    def __call__(self, frames: Tensor, offset_px: Tensor, input_scale: Tensor, mask: Tensor) -> Tensor:
        inputs = {"frames": frames, "offset_px": offset_px, "input_scale": input_scale, "mask": mask}
        try:
            (patches,) = self._session.run(["patches"], {name: value.cpu().numpy() for name, value in inputs.items()})
        except self._runtime_errors as error:
            reason = format_error(error, 200)
            raise ExportError(
                f"{self._path}: expected the graph of an exported network; it does not run ({reason}). Export it again."
            ) from None
        if patches.shape != (*frames.shape, 2) or patches.dtype != np.float32:
            raise ExportError(
                f"{self._path}: expected patches float32 {(*frames.shape, 2)}; found {patches.dtype} "
                f"{patches.shape}. Export it again."
            )
        return torch.from_numpy(patches).to(frames.device)


class AotEngine:
    """Machine code of AOTInductor in a .pt2 archive. Loading it runs code with the rights of the user."""

    def __init__(self, path: Path) -> None:
        from torch._inductor import aoti_load_package

        try:
            self._run = aoti_load_package(str(path))
        except (RuntimeError, OSError) as error:
            reason = format_error(error, 200)
            raise ExportError(
                f"{path}: expected a package for this machine and torch {torch.__version__}; it does not "
                f"load ({reason}). Export it again, here."
            ) from None

    def __call__(self, frames: Tensor, offset_px: Tensor, input_scale: Tensor, mask: Tensor) -> Tensor:
        # The compiled code assumes contiguous memory.
        patches: Tensor = self._run(*(value.contiguous() for value in (frames, offset_px, input_scale, mask)))
        return patches


class _ExternalGenerator(Generator):
    """Stands where a network has its generator, when that is in an exported file."""

    supported_n_px = ()

    def __init__(self, patches_agree: bool) -> None:
        super().__init__()
        self.patches_agree = patches_agree  # type: ignore[misc]

    @classmethod
    def from_config(cls, config: ModelConfig, n_px: int, channels: int) -> Generator:
        raise NotImplementedError

    def forward(self, group: GroupInput) -> Complex[Tensor, "b c n n"]:
        raise NotImplementedError


class ExportedNetwork(PtychoNetwork):
    """A network of one training scan whose patches are computed by another engine; it cannot be trained.

    Arguments:
        metadata: description in the file.
        runner: computes.
        device: where it does, cpu or cuda.
    """

    def __init__(self, metadata: ExportMetadata, runner: Runner, device: str) -> None:
        # Set before nn.Module's attributes are used, because its initialiser builds the generator.
        object.__setattr__(self, "metadata", metadata)
        self.metadata: ExportMetadata
        super().__init__(to_dict(metadata.config), metadata.n_px, 1, metadata.n_modes, metadata.domain)
        self.load_state_dict(metadata.tensors)
        for parameter in self.parameters():
            parameter.requires_grad = False
        self._runner, self.execution_device = runner, torch.device(device)
        self.checkpoint = None if metadata.checkpoint is None else Path(metadata.checkpoint)
        self.checkpoint_sha256 = metadata.checkpoint_sha256
        self.eval()

    def _build_generator(self) -> Generator:
        return _ExternalGenerator(self.metadata.patches_agree)

    def expect_offsets(self, max_offset_px: float | None) -> None:
        """Check that these offsets fit onto the canvas of the exported graph.

        Raises:
            ConfigError: they do not.
        """
        room_px = self.metadata.max_offset_px
        if max_offset_px is not None and math.ceil(max_offset_px) > math.ceil(room_px):
            raise ConfigError(
                f"expected frames within {room_px:g} px of their group's centre, for which the network was exported; "
                f"found {max_offset_px:.4g} px. Export it again with "
                f"`torchptycho export CKPT FILE --max-offset-px {math.ceil(max_offset_px)}`."
            )

    def forward(
        self, batch: FrameBatch, patch_operators: PatchOperators = GATHER_SCATTER
    ) -> Complex[Tensor, "b c n n"]:
        """Predict the object patches of the frames of each group.

        Raises:
            ValueError: other patch operators than those that the exported graph has are asked for.
        """
        if patch_operators is not GATHER_SCATTER:
            raise ValueError(
                "patch_operators: expected none with an exported network, whose graph has its own; found "
                f"{type(patch_operators).__name__}"
            )
        self.expect_offsets(float(batch.offset_px.abs().max()))
        patches = self._runner(
            batch.frames.float(), batch.offset_px.float(), self.input_scale[0].float(), self.masks[0]
        )
        return torch.view_as_complex(patches)

    def check_options(self, config: ReconstructConfig, devices: int) -> None:
        """Raise ConfigError for options that this exported network does not take."""
        metadata = self.metadata
        if config.training_scan != metadata.training_scan:
            raise ConfigError(
                f"training_scan: expected {metadata.training_scan}, for which the network was exported; "
                f"found {config.training_scan}."
            )
        check_options(config, devices)


def check_options(config: ReconstructConfig, devices: int) -> None:
    """Raise ConfigError for options that no exported network takes."""
    for name, expected in (("predict_compile", False), ("predict_precision", "32-true")):
        if getattr(config, name) != expected:
            raise ConfigError(
                f"{name}: expected {expected} with an exported network; found {getattr(config, name)}. "
                "Leave it out, or compute with --engine torch."
            )
    if devices > 1:
        raise ConfigError(
            f"devices: expected 1 with an exported network; found {devices}. Leave it out, or compute "
            "with --engine torch."
        )


def is_exported(path: str | Path) -> bool:
    """Return whether a file has the name of an exported network."""
    return Path(path).suffix.lower() in (_ONNX_SUFFIX, _PACKAGE_SUFFIX)


def load_exported(path: str | Path, engine: EngineName | None = None, device: str = "cpu") -> ExportedNetwork:
    """Load an exported network, ready to predict.

    Arguments:
        path: what `export_network` wrote.
        engine: None accepts ONNX files only; a .pt2 archive is machine code, which runs when it is loaded, and must be
            requested by `aot`.
        device: cpu or cuda.

    Raises:
        ExportError: not there, damaged, not written by this package, for another engine or device.
    """
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"{path}: expected an exported network; found nothing.")
    if engine == "aot":
        metadata = read_package(path)
        if metadata.device != device:
            raise ExportError(
                f"{path}: expected machine code for {device}; found it for {metadata.device}. Export "
                "it again, or choose another --accelerator."
            )
        return _build_network(path, metadata, AotEngine(path), device)
    if engine == "torch" or path.suffix.lower() == _PACKAGE_SUFFIX:
        raise ExportError(
            f"{path}: expected a checkpoint, or the engine of an exported network; found engine "
            f"'{engine or 'torch'}'. A .pt2 archive is machine code, which runs as it is loaded: if you "
            "trust it, say --engine aot."
        )
    runner = OnnxEngine(path.read_bytes(), path, device)
    metadata = parse_metadata(runner.custom_metadata.get(METADATA_KEY), path)
    if metadata.engine != "onnx":
        raise ExportError(f"{path}: expected a network exported to ONNX; found one for {metadata.engine}.")
    return _build_network(path, metadata, runner, device)


def _build_network(path: Path, metadata: ExportMetadata, runner: Runner, device: str) -> ExportedNetwork:
    try:
        return ExportedNetwork(metadata, runner, device)
    except RuntimeError as error:
        reason = format_error(error, 200)
        raise ExportError(
            f"{path}: has other tensors than its configuration asks for ({reason}). Export it again."
        ) from None
