"""Dry runs of `prepare` and `train`: everything is read and checked, and nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchptycho.analysis.inspection import inspect_scan
from torchptycho.core.config import RunConfig, to_dict
from torchptycho.core.errors import ConfigError
from torchptycho.core.scan import Scan
from torchptycho.data.cache import StoreRequest
from torchptycho.data.disk import check_new_folder, estimate_store_bytes
from torchptycho.data.prepare import check_compatible, check_existing_store, open_if_unchanged
from torchptycho.data.samplers import batches_per_epoch
from torchptycho.data.splits import choose_held_out_scans, split_and_group
from torchptycho.data.store import Store
from torchptycho.io.discovery import open_scans
from torchptycho.io.near_field import refuse_near_field
from torchptycho.io.storage.outputs import check_output_folder
from torchptycho.models.generators import build_generator
from torchptycho.models.losses import Loss
from torchptycho.training.earlier_run import check_earlier_run
from torchptycho.training.loggers import build_loggers
from torchptycho.training.resume import (
    check_frame_size,
    check_same_scans,
    check_start_options,
    load_interrupted,
    load_start_network,
)
from torchptycho.training.runtime import check_devices
from torchptycho.training.schedule import plan_epochs
from torchptycho.training.setup import apply_store_config, open_given_store

__all__ = ["plan_preparation", "plan_training"]


def plan_preparation(
    scans: Sequence[str | Path],
    config: RunConfig,
    out: str | Path,
    *,
    val_scans: Sequence[str | Path] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Read and check scans, form their groups, and describe the store that they would make.

    Raises:
        TorchptychoError: as in `prepare`.
    """
    asked = StoreRequest.from_sources(scans, config, val_scans)
    as_asked = overwrite or open_if_unchanged(out, asked) is not None
    return _plan_from_scans(*open_scans(scans, config.prepare, val_scans), config, Path(out), as_asked)


def _plan_from_scans(
    trained: Sequence[Scan], validated: Sequence[Scan], config: RunConfig, out: Path, as_asked: bool
) -> dict[str, Any]:
    opened = [*trained, *validated]
    check_compatible(opened, config)
    held_out = choose_held_out_scans(len(trained), len(validated), config.prepare)
    # A bootstrapped probe is part of a store and not yet known.
    if not (as_asked or config.prepare.bootstrap_probe):
        check_existing_store(out, opened, held_out, config)
    needed = estimate_store_bytes(opened, config)
    if not out.exists():
        check_new_folder(out, needed)
    planned_scans, problems = [], []
    for scan, held in zip(opened, held_out, strict=True):
        refuse_near_field(scan)
        summary = inspect_scan(scan)
        problems += [f"{scan.source}: {problem}" for problem in summary.problems]
        planned_scans.append(
            {
                "source": scan.source,
                "n_frames": scan.n_frames,
                "n_px": scan.n_px,
                "dtype": str(scan.frames.dtype),
                "domain": scan.domain,
                "n_modes": len(scan.probe),
                "photons_per_frame": summary.photons_mean,
                "held_out": held,
            }
        )
    division = split_and_group(opened, held_out, config)
    return {
        "out": str(out),
        "scans": planned_scans,
        "frames": sum(scan.n_frames for scan in opened),
        "frames_held_out": len(division.split.held_out),
        "groups": len(division.train),
        "frames_per_group": config.group.gridsize**2,
        "store_bytes": needed,
        "config": to_dict(config),
        "problems": problems,
    }


def plan_training(
    scans: Sequence[str | Path],
    config: RunConfig,
    out: str | Path,
    *,
    val_scans: Sequence[str | Path] = (),
    start: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Plan a training: its store, its network, and how many steps it would take.

    Raises:
        TorchptychoError: what `train` would refuse.
    """
    out = Path(out)
    check_output_folder(out)
    store = open_given_store(scans)
    if store is not None:
        if val_scans:
            raise ConfigError(f"val_scans: {store.path} is prepared already. Prepare the scans together.")
        config = apply_store_config(config, store)
    last = out / "checkpoints" / "last.ckpt"
    inputs = (start, *scans, *val_scans)
    check_earlier_run(out, last, resume=resume, overwrite=overwrite, inputs=inputs if store is None else (start,))
    interrupted = load_interrupted(last, config, out / "config.yaml") if resume else None
    check_start_options(config, start, interrupted)
    begun = load_start_network(start, config) if start is not None and interrupted is None else None
    build_loggers(config.log.logger, out)
    loss = Loss.from_config(config)
    check_devices(config.train.accelerator, config.train.devices, config.train.nodes)
    if store is not None:
        plan = _plan_from_store(store, config)
        n_px, has_truth = store.n_px, store.has_truth
    else:
        trained, validated = open_scans(scans, config.prepare, val_scans)
        store = open_if_unchanged(out / "store", StoreRequest.from_sources(scans, config, val_scans))
        plan = _plan_from_scans(trained, validated, config, out / "store", overwrite or store is not None)
        n_px = plan["scans"][0]["n_px"]
        has_truth = all(scan.truth is not None or scan.truth_patches is not None for scan in (*trained, *validated))
    if interrupted is not None and store is not None:
        check_same_scans(last, interrupted, store)
    if begun is not None:
        check_frame_size(begun, n_px)
    if loss.needs_truth and not has_truth:
        raise ConfigError("realspace_weight, realspace_mae_weight: a scan has no truth to compare with.")
    network = build_generator(config.model, n_px, config.group.gridsize)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    devices = config.train.devices * config.train.nodes
    per_batch = max(1, config.train.batch_size // config.group.gridsize**2)
    beats = plan_epochs(config.train, max(1, batches_per_epoch(plan["groups"], per_batch, devices)))
    return plan | {
        "out": str(out),
        "generator": config.model.generator,
        "parameters": parameters,
        # Weights, and two moments of each in the optimiser.
        "checkpoint_bytes": 12 * parameters,
        "batches_per_epoch": beats.batches,
        "epochs": beats.epochs,
        "steps": beats.total_steps,
        "epochs_between_validations": beats.validate_every,
    }


def _plan_from_store(store: Store, config: RunConfig) -> dict[str, Any]:
    n_modes = int(store.tensors["probes"].shape[1])
    scans = [
        {
            "source": entry.source,
            "n_frames": entry.n_frames,
            "n_px": store.n_px,
            "dtype": None,
            "domain": entry.scaling.domain,
            "n_modes": n_modes,
            "photons_per_frame": entry.scaling.photons_per_frame,
            "held_out": entry.held_out,
        }
        for entry in store.scans
    ]
    return {
        "scans": scans,
        "frames": store.n_frames,
        "frames_held_out": len(store.groups("val")),
        "groups": len(store.groups("train")),
        "frames_per_group": store.gridsize**2,
        "store_bytes": 0,
        "config": to_dict(config),
        "problems": [],
    }
