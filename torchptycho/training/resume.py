"""Where a run begins: at its own last checkpoint, or with the network of another run."""

from __future__ import annotations

import logging
from pathlib import Path

from torchptycho.core.config import RunConfig, to_dict
from torchptycho.core.errors import ConfigError, StoreError
from torchptycho.data.store import Store
from torchptycho.models.checkpoints import find_checkpoint, load_checkpoint
from torchptycho.models.lightning_module import PtychoPINN

__all__ = [
    "check_frame_size",
    "check_same_scans",
    "check_start_options",
    "copy_network_weights",
    "load_interrupted",
    "load_start_network",
]

_log = logging.getLogger(__name__)

# Fields of TrainConfig that determine duration and devices, not the result.
_LENGTH_FIELDS = ("steps", "epochs")
_MACHINE_FIELDS = ("num_workers", "accelerator", "devices", "nodes", "compile", "on_flat", "early_stop")
# Fields of ModelConfig that determine the architecture.
_NETWORK_FIELDS = ("generator", "n_filters_scale", "amplitude_activation", "probe_big")


def load_interrupted(last: Path, config: RunConfig, config_file: Path) -> PtychoPINN | None:
    """Load the module to continue; refuse another configuration, except for the machine and (not for cosine) the
    length.

    Returns:
        None, after a warning, when the run has no checkpoint yet and begins: a job script may always ask to resume.

    Raises:
        StoreError: the checkpoint cannot be read, or it is missing among others.
        ConfigError: the options differ.
    """
    if not last.exists():
        if others := sorted(path.name for path in last.parent.glob("*.ckpt")):
            raise StoreError(
                f"{last}: expected a checkpoint to resume from; found {', '.join(others)} only. Copy the one to go on "
                "from to this name, or choose another --out."
            )
        _log.warning("%s: no checkpoint to resume from yet; training begins from the start.", last)
        return None
    # What the user names is imported anyway.
    module = load_checkpoint(last, trust_generator=config.model.generator)
    trained, wanted = to_dict(module.config), to_dict(config)
    # The cosine schedule depends on the total length, so a longer run cannot continue from the end of a shorter one.
    free = () if config.train.schedule == "cosine" else _LENGTH_FIELDS
    differs = [
        f"{section}.{key} was {trained[section][key]!r}, is {value!r}"
        for section in ("group", "model", "experiment", "loss", "train")
        for key, value in wanted[section].items()
        if key not in (*free, *_MACHINE_FIELDS) and trained[section][key] != value
    ]
    if differs:
        raise ConfigError(
            f"{last}: cannot be continued with other options: {'; '.join(differs)}. Use --config {config_file}."
        )
    return module


def load_start_network(start: str | Path, config: RunConfig) -> PtychoPINN:
    """Load the trained module of a checkpoint or run, when its network is the configured one.

    Raises:
        StoreError: it cannot be read.
        ConfigError: the networks differ.
    """
    path = find_checkpoint(start)
    module = load_checkpoint(path, trust_generator=config.model.generator)
    trained, wanted = to_dict(module.config), to_dict(config)
    differs = [
        f"{key} was {trained[section][key]!r}, is {wanted[section][key]!r}"
        for section, keys in (("model", _NETWORK_FIELDS), ("group", ("gridsize",)))
        for key in keys
        if trained[section][key] != wanted[section][key]
    ]
    if differs:
        raise ConfigError(f"{path}: expected the network that is to be trained; {'; '.join(differs)}.")
    return module


def check_start_options(config: RunConfig, start: str | Path | None, interrupted: PtychoPINN | None) -> None:
    """Refuse options that say nothing where the run begins.

    Arguments:
        start: the run or checkpoint whose network training starts from.
        interrupted: the module that is resumed, None for a new run.

    Raises:
        ConfigError: an untrained encoder is frozen, or a resumed run has another start.
    """
    if interrupted is not None:
        began = interrupted.hparams["started_from"]
        if start is not None and str(start) != began:
            raise ConfigError(
                f"--from: a resumed run keeps its own network, which started from {began or 'random weights'}; "
                f"found {start}. Omit --from, or start a new run."
            )
    elif config.train.freeze_encoder and start is None:
        raise ConfigError(
            "freeze_encoder: expected a trained network (--from); found a new one, whose encoder is untrained."
        )


def check_same_scans(last: Path, interrupted: PtychoPINN, store: Store) -> None:
    """Refuse to resume a run on other scans than its own, whose statistics its checkpoint has.

    Raises:
        ConfigError: they are others.
    """
    if len(store.scans) != (trained := len(interrupted.input_scale)):
        raise ConfigError(
            f"{store.path}: has {len(store.scans)} scans, and {last} was trained on {trained}. "
            "Scans were added or dropped: start a new run from this one, with --from."
        )
    scalings = [entry.scaling for entry in store.scans]
    there = (store.n_px, scalings[0].domain, [s.input_scale for s in scalings], [s.photons_per_frame for s in scalings])
    store_scans = (
        interrupted.n_px,
        interrupted.domain,
        interrupted.input_scale.tolist(),
        interrupted.photons_per_frame.tolist(),
    )
    if there != store_scans:
        raise ConfigError(
            f"{store.path}: expected the scans that {last} was trained on; found others (frame size, domain, "
            "brightness or photons per frame differ). Start a new run from this one, with --from."
        )


def check_frame_size(start: PtychoPINN, n_px: int) -> None:
    """Refuse, by ConfigError, a trained network of another frame size."""
    if start.n_px != n_px:
        raise ConfigError(f"--from: expected a network for frames of N = {n_px} px; found N = {start.n_px}.")


def copy_network_weights(module: PtychoPINN, start: PtychoPINN) -> None:
    """Begin with the weights of another module's network; probe, scales and statistics stay those of the new scans.

    Raises:
        ConfigError: the frames have another size.
    """
    check_frame_size(start, module.n_px)
    module.generator.load_state_dict(start.generator.state_dict())
