"""Reports on the images of networks and of refinements."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from torchptycho.analysis.evaluation import Metrics
from torchptycho.analysis.history import LOGS_FOLDER, read_history
from torchptycho.core.config import RefineConfig
from torchptycho.core.reconstruction import Reconstruction
from torchptycho.core.scan import Scan
from torchptycho.models.network import PtychoNetwork
from torchptycho.reconstructors.iterative import refine
from torchptycho.reconstructors.resolution import resolution
from torchptycho.visualization.report.page import write_report
from torchptycho.visualization.report.pattern_panels import DetectorModel
from torchptycho.visualization.report.prior_section import prior_acted

__all__ = ["write_network_report", "write_refinement_report"]

# Fewer do not bring back the noise that a prior removed.
_MIN_POLISHING_EPOCHS = 20


def write_network_report(
    image: Reconstruction,
    scan: Scan,
    module: PtychoNetwork,
    path: Path,
    *,
    halves: bool = False,
    device: str = "auto",
) -> Path:
    """Write the report on an image by `reconstruct`, with the probe of its module and the curves of its run.

    Arguments:
        module: the network; if its file is part of a run, the run's curves are shown.
        halves: refine two halves of the scan for their Fourier ring correlation.
    """
    training_scan = image.provenance["config"]["reconstruct"]["training_scan"]
    run = None if module.checkpoint is None else module.checkpoint.parent
    # A bundle is in the folder of its run, a checkpoint one folder deeper.
    run = run.parent if run is not None and run.name == "checkpoints" else run
    probe = image.probe
    if probe is None:
        probe = module.probe[training_scan].detach().cpu().numpy() * np.float32(
            image.provenance.get("probe_factor", 1.0)
        )
    halves_frc = None
    if halves:
        # The network's probe, because that of the scan may only be a guess.
        known = dataclasses.replace(scan, probe=probe, probe_is_calibrated=True)
        halves_frc = _correlate_halves(known, module.config.refine, device)
    return write_report(
        image,
        scan,
        path,
        probe=probe,
        halves=halves_frc,
        # A refined image has its own background.
        detect=_make_detector_model(module, training_scan, image.provenance.get("absolute_scale"))
        if image.probe is None
        else None,
        history=read_history(run) if run is not None and (run / LOGS_FOLDER).is_dir() else None,
        plain=_refine_without_prior(image, scan, module.config.refine, device) if prior_acted(image) else None,
    )


def write_refinement_report(
    image: Reconstruction,
    scan: Scan,
    path: Path,
    config: RefineConfig,
    *,
    halves: bool = False,
    device: str = "auto",
) -> Path:
    """Write the report on an image by `refine`; where a prior acted, next to the image without it.

    Arguments:
        config: of the refinement, and for the two halves if their Fourier ring correlation is requested.
    """
    return write_report(
        image,
        scan,
        path,
        halves=_correlate_halves(scan, config, device) if halves else None,
        plain=_refine_without_prior(image, scan, config, device) if prior_acted(image) else None,
    )


def _refine_without_prior(image: Reconstruction, scan: Scan, config: RefineConfig, device: str) -> Reconstruction:
    """Polish an image as it was polished, with its probe and positions, but without the prior."""
    plain = dataclasses.replace(
        config.without_prior(),
        epochs=max(_MIN_POLISHING_EPOCHS, round(config.polish * config.epochs)),
        polish=1.0,
        probe_update=False,
        position_update="none",
        patience=None,
    )
    return refine(scan, image, config=plain, device=device, judge=False)


def _correlate_halves(scan: Scan, config: RefineConfig, device: str) -> Metrics:
    return resolution(scan, config=config, device=device).metrics


def _make_detector_model(module: PtychoNetwork, training_scan: int, absolute: dict[str, float] | None) -> DetectorModel:
    """Make the detector model of the module (blur, scale, background), for counts of a training scan's probe.

    Arguments:
        absolute: the scale that was fitted to the whole scan, whose background replaces the module's.
    """

    def detect(counts: Tensor) -> Tensor:
        scan = torch.full((len(counts),), training_scan)
        with torch.no_grad():
            if absolute is None:
                return module.experiment.apply_to_counts(counts[:, None], scan)[:, 0]
            seen = module.experiment.apply_to_counts(counts[:, None], scan, background=False)[:, 0]
            return seen + absolute["background_counts"]

    return detect
