"""From a scan and a trained network to the image: one pass over the frames, with torch alone."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from torchptycho.core.config import (
    PrepareConfig,
    ReadConfig,
    ReconstructConfig,
    as_config,
    extract_read_config,
    to_dict,
)
from torchptycho.core.config.base import Domain
from torchptycho.core.devices import find_devices
from torchptycho.core.errors import ConfigError, ScanError, StoreError
from torchptycho.core.progress import EpochProgress
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.core.text import format_first
from torchptycho.core.versions import collect_versions
from torchptycho.data.inference_dataset import InferenceBatch, InferenceDataset
from torchptycho.io.frames.frame_stacks import to_file_rows
from torchptycho.io.inputs import as_scan
from torchptycho.io.scan_choice import refuse_several_scans
from torchptycho.models.default_network import build_default_network
from torchptycho.models.export.runtimes import EngineName, ExportedNetwork, check_options
from torchptycho.models.loading import export_for_engine, load_for_inference
from torchptycho.models.network import PtychoNetwork
from torchptycho.reconstructors.absolute_scale import ScaleStatistics
from torchptycho.reconstructors.inference import InferenceJob, InferenceResult, predict

__all__ = ["adapt_to_scan", "check_fits", "check_network_options", "describe_dose", "make_read_config", "reconstruct"]

_log = logging.getLogger(__name__)

# Largest ratio of the doses of the scan and of the training scan for which no warning is given.
_DOSE_TOLERANCE = 1.2


def make_read_config(config: PrepareConfig, asked: ReadConfig = ReadConfig()) -> ReadConfig:  # noqa: B008 -- frozen
    """Make the reading options for a module trained with `config`: the same, but for all frames and with any probe.

    The module has its own probe, so that one from the mean pattern does where the file has none.

    Arguments:
        asked: its options that differ from the defaults replace those of training.

    Raises:
        ConfigError: a probe is given.
    """
    if asked.probe is not None:
        raise ConfigError(
            f"probe: a trained network has the probe of its training scan; found {asked.probe}. Leave it out, or name "
            "no checkpoint: the scan is then reconstructed with its own probe."
        )
    # What names a part of the training scan's file means nothing in another file.
    of_file: dict[str, Any] = dict.fromkeys(
        ("domain", "frames", "probe", "scan", "entry", "energy_index", "positions", "frames_axis")
    )
    trained = dataclasses.replace(extract_read_config(config), guess_probe=True, drop_frames=(), ignore=(), **of_file)
    default = ReadConfig()
    given = {
        field.name: value
        for field in dataclasses.fields(ReadConfig)
        if (value := getattr(asked, field.name)) != getattr(default, field.name)
    }
    return dataclasses.replace(trained, **given)


def reconstruct(
    checkpoint: str | Path | PtychoNetwork | None,
    scan: Scan | str | Path,
    config: ReconstructConfig | dict[str, Any] | None = None,
    *,
    accelerator: str = "auto",
    devices: int = 1,
    progress: bool = True,
    scratch: str | Path | None = None,
    refine_epochs: int = 0,
    engine: EngineName | None = None,
    on_batch: Callable[[InferenceBatch, Tensor], None] | None = None,
    trust_generator: bool | str = False,
) -> Reconstruction:
    """Reconstruct a scan by one forward pass over every frame and stitching; optionally refine the image.

    Memory depends on the batch and on the image, not on the number of frames.

    Arguments:
        checkpoint: a trained network (`load_network`, `load_checkpoint`), its file, or an exported file. None takes the
            default network, which needs no training, with the scan's own probe.
        scan: the scan to reconstruct, not necessarily the training scan.
        config: None takes the network's own.
        accelerator: auto, cpu or gpu.
        devices: number of processes among which frames are distributed, each with its own GPU or a part of the CPU.
            They are spawned, so a script that uses several needs `if __name__ == "__main__":`.
        progress: show a progress bar.
        scratch: folder with space for temporary, uncompressed frames and patches; None takes the system's.
        refine_epochs: epochs of `refine` afterwards, from this image and with the network's probe, with the section
            `refine` of its configuration.
        engine: what computes the patches: `torch`, `onnx` or `aot`, see `open_network`.
        on_batch: called with every batch of groups and its patches complex64 [B, C, N, N], where they were computed.
        trust_generator: whether a generator that the checkpoint names as `package.module:Class` may be imported, which
            runs that module; see `load_checkpoint`.

    Raises:
        TorchptychoError: the scan is unusable, or does not fit the network.
    """
    start = time.perf_counter()
    if checkpoint is None:
        scan = as_scan(scan)
        checkpoint = build_default_network(scan)
    network = load_for_inference(checkpoint, engine, accelerator=accelerator, trust_generator=trust_generator)
    network.require_statistics()
    config = network.config.reconstruct if config is None else as_config(ReconstructConfig, config)
    scan = as_scan(scan, make_read_config(network.config.prepare))
    _check_request(network, scan, config, devices, engine, calls_back=on_batch is not None)
    # Exporting takes a minute or more, so all checks come first, except for groups wider than the canvas.
    network = export_for_engine(network, engine, training_scan=config.training_scan, accelerator=accelerator)
    if isinstance(network, ExportedNetwork):
        # An exported network has one training scan, and stays on its device.
        training_scan, torch_devices = 0, [network.execution_device]
    else:
        training_scan, torch_devices = config.training_scan, find_devices(accelerator, devices)
    with tempfile.TemporaryDirectory(prefix=".torchptycho-", dir=scratch) as folder:
        dataset = InferenceDataset.from_scan(
            scan,
            Path(folder),
            gridsize=network.gridsize,
            nphotons=network.config.prepare.nphotons,
            training_scan=training_scan,
            passes=config.predict_passes,
            copy=devices > 1,
        )
        if config.input_scale == "training":
            doubt = describe_dose(float(network.input_scale[training_scan]), dataset.scaling.input_scale)
            if doubt is not None:
                _log.warning("%s: %s", scan.source, doubt)
        with adapt_to_scan(network, dataset, config):
            job = InferenceJob(
                dataset=dataset, config=config, folder=Path(folder), progress=progress, on_batch=on_batch
            )
            predicted = predict(network, job, torch_devices)
    if not predicted.n_placed:
        raise StoreError(f"{scan.source}: the network's patches are not finite, none of {scan.n_frames}. Train again.")
    provenance = _collect_provenance(network, scan, config, dataset, predicted, time.perf_counter() - start)
    image = predicted.canvas.finish(scan.geometry.with_object_pixel(scan.n_px).object_pixel_m, provenance)
    image = dataclasses.replace(image, given_positions_px=scan.positions_px)
    if predicted.scale is not None:
        image = _apply_absolute_scale(image, predicted.scale)
    if not refine_epochs:
        return image
    return _refine_image(image, network, scan, training_scan, refine_epochs, accelerator, devices, progress, scratch)


def _check_request(
    network: PtychoNetwork,
    scan: Scan,
    config: ReconstructConfig,
    devices: int,
    engine: EngineName | None,
    *,
    calls_back: bool,
) -> None:
    """Refuse options and scans that do not go with the network."""
    check_network_options(network, config, devices, engine)
    if calls_back and devices > 1:
        raise ConfigError(f"devices: expected 1 with on_batch, which other processes cannot call; found {devices}.")
    check_fits(network, scan.source, scan.n_px, scan.domain)
    refuse_several_scans(scan, "one image")


def _collect_provenance(
    network: PtychoNetwork,
    scan: Scan,
    config: ReconstructConfig,
    dataset: InferenceDataset,
    predicted: InferenceResult,
    seconds: float,
) -> dict[str, Any]:
    # The network's probe is that of its training scan; with the input scale of this scan, its photons are those of this
    # scan.
    photons = dataset.scaling.photons_per_frame / float(network.photons_per_frame[dataset.training_scan])
    return {
        "source": scan.source,
        "frames": scan.n_frames,
        "left_out": _collect_left_out(predicted, scan, config.predict_passes),
        "probe_factor": math.sqrt(photons) if config.input_scale == "scan" else 1.0,
        "checkpoint": None if network.checkpoint is None else str(network.checkpoint),
        "checkpoint_sha256": network.checkpoint_sha256,
        "engine": network.metadata.engine if isinstance(network, ExportedNetwork) else "torch",
        "config": to_dict(network.config) | {"reconstruct": to_dict(config)},
        "versions": collect_versions(),
        "seconds": round(seconds, 3),
        "frames_per_second": round(scan.n_frames / seconds, 1),
    }


def _apply_absolute_scale(image: Reconstruction, statistics: ScaleStatistics) -> Reconstruction:
    """Scale the object so that object and background fit the counts best."""
    scale = statistics.solve()
    factor = np.float32(scale.object_factor)
    assert image.spread is not None
    return dataclasses.replace(
        image,
        object=image.object * factor,
        spread=image.spread * factor,
        provenance=image.provenance | {"absolute_scale": dataclasses.asdict(scale)},
    )


def _collect_left_out(predicted: InferenceResult, scan: Scan, passes: int) -> dict[str, str]:
    """Collect the frames that are not in the image, by the numbers of the scan's file, and why."""
    named = {str(frame): why for frame, why in scan.left_out.items()}
    numbers, times = np.unique(np.asarray(predicted.left_out, np.int64) % scan.n_frames, return_counts=True)
    never = to_file_rows(scan.frames, numbers[times == passes].tolist())
    for frame in never:
        named[str(frame)] = "the network's patch is not finite"
    if never:
        shown = format_first(never, 10)
        _log.warning(
            "%s: %d frames are not in the image, their patches are not finite: %s", scan.source, len(never), shown
        )
    return named


@contextlib.contextmanager
def adapt_to_scan(network: PtychoNetwork, dataset: InferenceDataset, config: ReconstructConfig) -> Iterator[None]:
    """Give the network this scan's mask and, on request, scale; restore it afterwards."""
    training_scan = dataset.training_scan
    scale, masks, training = network.input_scale.clone(), network.masks.clone(), network.training
    try:
        # Pixels that this scan masks have no influence, even if they were used in training.
        network.masks[training_scan] &= dataset.mask.to(network.masks.device)
        if config.input_scale == "scan":
            network.input_scale[training_scan] = dataset.scaling.input_scale
        network.eval()
        network.expect_offsets(dataset.max_offset_px)
        yield
    finally:
        network.expect_offsets(None)
        network.train(training)
        network.input_scale.copy_(scale)
        network.masks.copy_(masks)


def _refine_image(
    image: Reconstruction,
    network: PtychoNetwork,
    scan: Scan,
    training_scan: int,
    epochs: int,
    accelerator: str,
    devices: int,
    progress: bool,
    scratch: str | Path | None,
) -> Reconstruction:
    """Refine the network's image with the probe of the training scan."""
    from torchptycho.reconstructors.iterative import refine

    settings = dataclasses.replace(network.config.refine, epochs=epochs)
    probe = network.probe[training_scan].detach() * image.provenance["probe_factor"]
    if network.experiment.scale is not None:
        probe = probe * network.experiment.scale[training_scan].detach().sqrt().to(probe.real.dtype)
    with EpochProgress("refining", epochs) if progress else contextlib.nullcontext() as bar:
        refined = refine(
            scan,
            image,
            probe=probe.cpu().numpy(),
            config=settings,
            device=accelerator,
            devices=devices,
            on_epoch=bar,
            scratch=scratch,
        )
    # These values describe the network's image and do not apply to the refined one.
    stale = ("absolute_scale", "frames_per_second")
    provenance = {name: value for name, value in image.provenance.items() if name not in stale}
    provenance |= {"left_out": refined.provenance["left_out"], "refinement": refined.provenance}
    provenance["seconds"] = round(image.provenance["seconds"] + refined.provenance["seconds"], 3)
    return dataclasses.replace(refined, provenance=provenance)


def check_network_options(
    network: PtychoNetwork, config: ReconstructConfig, devices: int, engine: EngineName | None = None
) -> None:
    """Refuse options that do not go with a network, or with the engine for which it is going to be exported.

    Raises:
        ConfigError: naming the option.
    """
    if isinstance(network, ExportedNetwork):
        network.check_options(config, devices)
    else:
        if config.training_scan >= len(network.probe_parts):
            raise ConfigError(
                f"training_scan: expected 0 to {len(network.probe_parts) - 1}; found {config.training_scan}."
            )
        if engine not in (None, "torch"):
            check_options(config, devices)
    if config.predict_passes > 1 and network.gridsize == 1:
        raise ConfigError(
            f"predict_passes: expected 1 with gridsize 1, in which a frame has no neighbours; found "
            f"{config.predict_passes}."
        )


def check_fits(network: PtychoNetwork, source: str, n_px: int, domain: Domain) -> None:
    """Refuse frames of another kind than the network was trained on.

    Raises:
        ScanError: naming both.
    """
    if (n_px, domain) != (network.n_px, network.domain):
        raise ScanError(
            source,
            "diffraction",
            expected=f"{network.n_px}x{network.n_px} frames of {network.domain}, as the checkpoint was trained on",
            found=f"{n_px}x{n_px} frames of {domain}",
            remedy="Say what the frames hold with --domain, crop or pad them, or train on a scan of this kind.",
        )


def describe_dose(trained_scale: float, found_scale: float) -> str | None:
    """Describe how much brighter a scan is than the training scan where that matters, by their input scales."""
    ratio = (trained_scale / found_scale) ** 2
    if 1 / _DOSE_TOLERANCE < ratio < _DOSE_TOLERANCE:
        return None
    return (
        f"its frames are {ratio:.3g} times as bright as those that the network was trained on, so the image may be "
        "poor. If the illumination differs and not the sample, use --input-scale scan."
    )
