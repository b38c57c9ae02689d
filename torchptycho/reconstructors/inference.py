"""The pass of a network over the frames of a scan, on one device or shared by several processes."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Complex
from torch import Tensor, distributed
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from torchptycho.core.config import ReconstructConfig
from torchptycho.core.errors import StoreError
from torchptycho.core.parallel import ordered_map
from torchptycho.core.progress import create_progress_bar
from torchptycho.core.text import format_error
from torchptycho.data.inference_dataset import InferenceBatch, InferenceDataset
from torchptycho.models.export.runtimes import ExportedNetwork
from torchptycho.models.network import PtychoNetwork
from torchptycho.reconstructors.absolute_scale import ScaleStatistics
from torchptycho.reconstructors.canvas import Canvas
from torchptycho.reconstructors.stitcher import PatchStitcher

__all__ = ["InferenceJob", "InferenceResult", "batch_size_for", "iterate_predictions", "predict", "predict_patches"]

_log = logging.getLogger(__name__)

# Larger batches are no faster on a CPU, because they exceed its caches.
_CPU_BATCH_PIXELS = 1 << 17
# The GPU memory of other engines than torch cannot be measured.
_EXPORTED_BATCH_PIXELS = 1 << 21
# Fraction of a GPU's free memory for a batch, and the largest numbers of frames and pixels: more are no faster, and
# tensors of more than 2^31 elements (with some tens of channels) are not supported by all CUDA functions.
_GPU_MEMORY_FRACTION, _MAX_GPU_FRAMES, _MAX_GPU_PIXELS = 0.5, 4096, 1 << 26


@dataclasses.dataclass(frozen=True)
class InferenceJob:
    """A prediction task: data and options.

    Arguments:
        dataset: the frames.
        config: the section `reconstruct`.
        folder: for temporary files; all processes see it.
        progress: show a bar.
        on_batch: called with every batch of groups with its patches; of one process only.
    """

    dataset: InferenceDataset
    config: ReconstructConfig
    folder: Path
    progress: bool = False
    on_batch: Callable[[InferenceBatch, Tensor], None] | None = None


@dataclasses.dataclass(frozen=True)
class InferenceResult:
    """Result: the canvas, the numbers of frames that are not on it, and the sums for the absolute scale."""

    canvas: Canvas
    n_placed: int
    left_out: list[int]
    scale: ScaleStatistics | None


def predict(network: PtychoNetwork, task: InferenceJob, devices: list[torch.device]) -> InferenceResult:
    """Predict every group and stitch; the network is in evaluation mode and comes back to where it was."""
    if len(devices) == 1:
        home = network.probe_parts.device
        try:
            return _predict_share(network.to(devices[0]), task, devices[0])
        finally:
            network.to(home)
    patches = task.folder / "patches"
    if task.config.agree_phases:
        n_px = network.n_px
        with patches.open("wb") as file:
            file.truncate(len(task.dataset.positions_px) * n_px * n_px * 8)
    # The plain network, without references from the module to the training.
    plain = PtychoNetwork.from_network(network)
    try:
        spawn(_run_worker, (plain, task, devices), nprocs=len(devices))  # type: ignore[no-untyped-call]
    except (ProcessExitedException, ProcessRaisedException) as error:
        reason = str(error).strip().splitlines()[-1]
        raise StoreError(
            f"devices: one of the {len(devices)} processes that shared the frames ended: {reason}. Use fewer "
            "devices, so that each has more memory."
        ) from error
    merged = torch.load(task.folder / "predicted.pt", weights_only=True)
    scale = ScaleStatistics.from_sums(merged["scale"]) if task.config.absolute_scale else None
    return InferenceResult(Canvas.from_sums(merged["canvas"]), merged["n_placed"], merged["left_out"], scale)


def _run_worker(rank: int, network: PtychoNetwork, task: InferenceJob, devices: list[torch.device]) -> None:
    """Predict the share of one of several processes; the first writes the result of all."""
    device = devices[rank]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // len(devices)))
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{task.folder / 'meeting'}",
        rank=rank,
        world_size=len(devices),
    )
    try:
        result = _predict_share(network.to(device), task, device, rank, len(devices))
        if rank == 0:
            sums = {"canvas": result.canvas.to_sums(), "n_placed": result.n_placed, "left_out": result.left_out}
            if result.scale is not None:
                sums["scale"] = result.scale.to_sums()
            torch.save(sums, task.folder / "predicted.pt")
    finally:
        distributed.destroy_process_group()


def _predict_share(
    network: PtychoNetwork, task: InferenceJob, device: torch.device, rank: int = 0, ranks: int = 1
) -> InferenceResult:
    dataset, config = task.dataset, task.config
    size = batch_size_for(network, dataset, config, device)
    if ranks > 1:
        # All processes use the batches that one process would use.
        common = torch.tensor(size, device=device)
        distributed.all_reduce(common, distributed.ReduceOp.MIN)
        size = int(common)
    cuts = [(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]
    mosaic = PatchStitcher(
        dataset.positions_px,
        network.compute_stitch_weight(config.stitch_weight, dataset.training_scan),
        agree_phases=config.agree_phases,
        scratch=task.folder,
        shared=task.folder / "patches" if ranks > 1 else None,
    )
    scale = ScaleStatistics() if config.absolute_scale else None
    if config.predict_compile:
        _compile(network, dataset.read_batch(*cuts[0]).to(device))
    local_cuts = cuts[rank::ranks]
    bar = create_progress_bar() if task.progress and rank == 0 else None
    with torch.inference_mode(), bar or contextlib.nullcontext(), contextlib.ExitStack() as stack:
        task_id = bar.add_task("reconstructing", total=len(local_cuts), note="") if bar else None
        predicted = stack.enter_context(
            contextlib.closing(iterate_predictions(network, dataset, config, local_cuts, device))
        )
        for number, (batch, here, patches) in enumerate(predicted):
            mosaic.add(patches, batch.members, batch.is_first, local_cuts[number][0])
            if task.on_batch is not None:
                task.on_batch(batch, patches)
            if scale is not None:
                scale.add_batch(network, patches, here)
            if bar is not None and task_id is not None:
                bar.update(task_id, completed=number + 1)
        canvas = mosaic.finish()
    if ranks > 1 and scale is not None:
        scale.all_reduce(device)
    return InferenceResult(canvas, mosaic.n_placed, mosaic.left_out, scale)


def iterate_predictions(
    network: PtychoNetwork,
    dataset: InferenceDataset,
    config: ReconstructConfig,
    cuts: list[tuple[int, int]],
    device: torch.device,
) -> Generator[tuple[InferenceBatch, InferenceBatch, Complex[Tensor, "b c n n"]], None, None]:
    """Iterate over batches on the host and on the device, with their patches, in the order of `cuts`.

    Until it is closed, torch has fewer threads where it is called.

    Arguments:
        cuts: first group of each batch, and the one after its last.
    """
    # Other engines use their own threads.
    if device.type == "cuda" or config.predict_compile or isinstance(network, ExportedNetwork):
        for batch in dataset.iterate_batches(cuts):
            here = batch.copy_to_pinned_memory().to(device) if device.type == "cuda" else batch
            yield batch, here, predict_patches(network, here, config)
        return

    def predict_batch(cut: tuple[int, int]) -> tuple[InferenceBatch, InferenceBatch, Tensor]:
        batch = dataset.read_batch(*cut)
        with torch.inference_mode():
            return batch, batch, predict_patches(network, batch, config)

    with ordered_map(predict_batch, cuts) as predictions:
        yield from predictions


def predict_patches(
    network: PtychoNetwork, batch: InferenceBatch, config: ReconstructConfig
) -> Complex[Tensor, "b c n n"]:
    """Predict the patches of a batch of groups, in the configured arithmetic."""
    half = config.predict_precision == "bf16-mixed"
    with torch.autocast(batch.frames.device.type, torch.bfloat16, enabled=half):
        patches: Tensor = network(batch)
    return patches


def batch_size_for(
    network: PtychoNetwork, dataset: InferenceDataset, config: ReconstructConfig, device: torch.device
) -> int:
    """Choose the groups in a batch: the configured number, or as many as a GPU's memory or a CPU's caches hold."""
    members, n_px = network.gridsize**2, network.n_px
    frames = config.predict_batch_size
    if isinstance(frames, int):
        return max(1, frames // members)
    if device.type != "cuda":
        return max(1, _CPU_BATCH_PIXELS // n_px**2 // members)
    if isinstance(network, ExportedNetwork):
        return max(1, _EXPORTED_BATCH_PIXELS // n_px**2 // members)
    # The peak memory of a small batch predicts that of a large one.
    probe = dataset.read_batch(0, min(len(dataset), max(1, 16 // members))).to(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with torch.inference_mode():
        predict_patches(network, probe, config)
    per_group = (torch.cuda.max_memory_allocated(device) - before) / len(probe.members)
    torch.cuda.empty_cache()
    room = _GPU_MEMORY_FRACTION * torch.cuda.mem_get_info(device)[0]
    most = min(_MAX_GPU_FRAMES, _MAX_GPU_PIXELS // n_px**2) // members
    return int(np.clip(room / max(per_group, 1), 1, max(1, most)))


def _compile(network: PtychoNetwork, batch: InferenceBatch) -> None:
    """Compile the generator for this batch's shape; if this fails, it runs uncompiled, with a warning."""
    if network.generator._compiled_call_impl is not None:  # by an earlier scan
        return
    network.generator.compile()
    try:
        with torch.inference_mode():
            network(batch)
    except (RuntimeError, OSError, ImportError) as error:
        network.generator._compiled_call_impl = None
        torch._dynamo.reset()
        reason = format_error(error, 200)
        _log.warning("predict_compile: the network runs without torch.compile, which fails here: %s", reason)
